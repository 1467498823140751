"""Over-optimisation: how the true score rises and falls with a policy's distance from its starting point.

Gao, Schulman and Hilton 2022 (arXiv 2210.10760, section 3) describe the gold score by the distance d = sqrt(KL) from
the initial policy, in nats^(1/2). R(0) = 0: the caller subtracts the initial policy's mean score first.

    best_of_n    R(d) = d (alpha - beta d)          highest at d = alpha / (2 beta)
    rl           R(d) = d (alpha - beta log d)      highest at d = exp(alpha / beta - 1)

Both are linear in alpha and beta, so the fit is least squares without an intercept. R² is 1 - (squared residuals) /
(squared deviations from the mean reward), weighted like the fit: 0 for a fit as good as the mean, and below 0 for a
worse one, which can happen without an intercept.

Points of one curve share prompts and answers, so their residuals say little about the errors of alpha and beta.
Standard errors come from replicates of the whole curve, one per bootstrap sample of the prompts. Left out: the paper's
smooth change of alpha and beta with the size of the reward model, and its division by the gold score's deviation.

Legend: M points, S bootstrap samples.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from gptlife.reward.statistics.winrate import Floats

Form = Literal["best_of_n", "rl"]
FORMS: tuple[Form, ...] = get_args(Form)
POINTS_MIN = 3
"""Fewest points of a fit: two would be fitted exactly."""


class Fit(NamedTuple):
    """One of the two forms fitted to a curve."""

    form: Form
    alpha: float
    """First slope of the reward, per unit of d."""
    beta: float
    """How fast the curve bends down; <= 0: it doesn't."""
    alpha_error: float | None
    """Standard deviation of alpha over the replicates; None without replicates."""
    beta_error: float | None
    """Standard deviation of beta over the replicates."""
    r2: float | None
    """As defined above; None where all rewards are equal."""
    peak_d: float | None
    """d at which the form is highest, inside the measured range or beyond it; None without a peak at d > 0."""
    peak_reward: float | None
    """The form's value at the peak."""
    n: int
    """Points."""


class PeakPrediction(NamedTuple):
    """Where the first part of a run predicts the peak, and where the whole run has it."""

    form: Form
    alpha: float
    """alpha and beta are fitted to the first part."""
    beta: float
    predicted_d: float | None
    """Peak of that fit; None without a peak."""
    predicted_reward: float | None
    found_d: float
    """d at which the smoothed rewards of the whole run are highest."""
    found_reward: float
    """The smoothed reward at `found_d`."""
    at_end: bool
    """Whether that is the run's end: the true peak may lie beyond."""
    n_fit: int
    """Points of the first part."""
    n: int
    """Points of the run."""


def fitted_reward(form: Form, alpha: float, beta: float, d: float) -> float:
    """R(d) of the form; 0 at d = 0."""
    if d == 0:
        return 0.0
    return d * (alpha - beta * (d if form == "best_of_n" else math.log(d)))


def peak_of(form: Form, alpha: float, beta: float) -> float | None:
    """d at which R is highest; None without a peak at d > 0 (beta <= 0), or where it overflows."""
    if beta <= 0 or (form == "best_of_n" and alpha <= 0):
        return None
    if form == "best_of_n":
        return alpha / (2 * beta)
    try:
        return math.exp(alpha / beta - 1)
    except OverflowError:
        return None


def fit(
    d_M: ArrayLike,
    reward_M: ArrayLike,
    form: Form,
    weights_M: ArrayLike | None = None,
    replicates_SM: ArrayLike | None = None,
) -> Fit:
    """Least squares of `form` through recentred rewards at d = sqrt(KL) > 0.

    Args:
        d_M: distances; leave the initial policy out, where both forms are 0 whatever alpha and beta are.
        weights_M: > 0, such as 1 / variance; by default all alike.
        replicates_SM: resampled curves at the same d, from which the standard errors come.

    Raises:
        ValueError: for fewer than three points, all of them at one d, d <= 0, weights <= 0, numbers that are not
            finite, or lengths that differ.
    """
    d, reward = _points(d_M, reward_M)
    weights = np.ones_like(d) if weights_M is None else np.asarray(weights_M, dtype=np.float64)
    if weights.shape != d.shape or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"needs one finite weight > 0 per point, got {weights.tolist()} for {len(d)} points")
    solve_2M = _solver(d, form, weights)
    alpha, beta = (solve_2M @ reward).tolist()
    errors: tuple[float | None, float | None] = (None, None)
    if replicates_SM is not None:
        replicates = np.asarray(replicates_SM, dtype=np.float64)
        if replicates.ndim != 2 or replicates.shape[1] != len(d) or len(replicates) < 2:
            raise ValueError(f"replicates: needs at least two curves of {len(d)} points, got {replicates.shape}")
        alpha_error, beta_error = (replicates @ solve_2M.T).std(0, ddof=1).tolist()
        errors = alpha_error, beta_error
    fitted = _columns(d, form) @ np.array([alpha, beta])
    spread = float(weights @ (reward - np.average(reward, weights=weights)) ** 2)
    r2 = 1 - float(weights @ (reward - fitted) ** 2) / spread if spread > 0 else None
    peak = peak_of(form, alpha, beta)
    top = None if peak is None else fitted_reward(form, alpha, beta, peak)
    return Fit(form, alpha, beta, *errors, r2, peak, top, len(d))


def predict_peak(
    d_M: ArrayLike, reward_M: ArrayLike, form: Form, fraction: float = 0.5, window: int | None = None
) -> PeakPrediction:
    """The peak that the first `fraction` of the run predicts, beside the one that the whole run has.

    The points are in the run's order: by step for a training run, by n for best-of-n. So the first part is what had
    been measured at that moment, wherever d was. To find the peak of the whole run, d and rewards are averaged over
    `window` neighbouring points (by default a fifth of the run), since the highest of many noisy points is too high.

    Raises:
        ValueError: as `fit` does, also for the first part alone, and when `fraction` or `window` is out of range.
    """
    d, reward = _points(d_M, reward_M)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    width = max(1, len(d) // 5) if window is None else window
    if not 1 <= width <= len(d):
        raise ValueError(f"window must be in 1 .. {len(d)}, got {window}")
    n_fit = math.ceil(fraction * len(d))
    first = fit(d[:n_fit], reward[:n_fit], form)
    smooth_d, smooth = (np.convolve(x, np.full(width, 1 / width), mode="valid") for x in (d, reward))
    top = int(smooth.argmax())
    return PeakPrediction(
        form,
        first.alpha,
        first.beta,
        first.peak_d,
        first.peak_reward,
        float(smooth_d[top]),
        float(smooth[top]),
        top == len(smooth) - 1,
        n_fit,
        len(d),
    )


def _columns(d_M: Floats, form: Form) -> Floats:
    """X_M2 with R = X (alpha, beta)."""
    return np.stack([d_M, -d_M * (d_M if form == "best_of_n" else np.log(d_M))], axis=1)


def _solver(d_M: Floats, form: Form, weights_M: Floats) -> Floats:
    """The (2, M) matrix that maps rewards to alpha and beta."""
    root_M = np.sqrt(weights_M)
    return np.asarray(np.linalg.pinv(_columns(d_M, form) * root_M[:, None]) * root_M)


def _points(d_M: ArrayLike, reward_M: ArrayLike) -> tuple[Floats, Floats]:
    d, reward = np.asarray(d_M, dtype=np.float64), np.asarray(reward_M, dtype=np.float64)
    if d.ndim != 1 or d.shape != reward.shape or not (np.isfinite(d) & np.isfinite(reward)).all():
        raise ValueError(f"needs one finite reward per finite d, got shapes {d.shape} and {reward.shape}")
    if len(d) < POINTS_MIN or len(np.unique(d)) < 2:
        raise ValueError(f"needs at least {POINTS_MIN} points, not all at one d, got d = {d.tolist()}")
    if (d <= 0).any():
        raise ValueError(f"needs d > 0 (leave the initial policy out), got {d.min()}")
    return d, reward
