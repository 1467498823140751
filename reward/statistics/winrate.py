"""How often is A preferred over B? Win rates from preferences or a judge's scores, with intervals over prompts.

Both answer the same prompts. A preference is 1 where A is better, 0 where B is, .5 for a tie; of two scores the higher
one wins, and equal scores are a tie. The 95 % interval is a percentile bootstrap over prompts (Efron), which keeps the
two answers to a prompt together. It shrinks to a point when one side wins everything: with few prompts, look at `n`.

Judges prefer long answers. The length-controlled rate estimates the rate for equally long answers (after Dubois et al.
2024, "Length-Controlled AlpacaEval", arXiv 2404.04475):

    P(A preferred) = sigmoid(intercept + slope tanh(d / scale)),  d = length of A - length of B
    rate           = sigmoid(intercept)

The scale is the root mean square of d, and d is not centred: "equally long" must stay at 0. A weak Gaussian prior on
the slope (`ridge`), and a far weaker one on the intercept, keep the fit finite when one side wins everything. Where A
is longer by the same amount everywhere, the data say nothing about length, and the rate stays close to the plain one.
Left out: the paper's term for each prompt's difficulty, which needs many models on the same prompts.

Legend: N prompts, S bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptlife.reward.statistics.accuracy import Numbers, wins

Floats = NDArray[np.float64]

_INTERVAL = (2.5, 97.5)
_BLOCK = 1_000_000  # resampled entries held at once
_INTERCEPT_RIDGE = 1e-3
_NEWTON_STEPS = 30


class Estimate(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


class WinRate(NamedTuple):
    """Preference of A over B, 0 .. 1, with its 95 % interval; the counts are not length-controlled."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    n: int


def bootstrap_mean(x: Numbers, n_boot: int = 2000, seed: int = 0) -> Estimate:
    """Mean of `x` with its 95 % percentile interval over `n_boot` resamples.

    Raises:
        ValueError: when `x` is empty or has a value that is not finite.
    """
    x_N = _finite("values", x)
    means_S = np.concatenate([x_N[index_SN].mean(1) for index_SN in _resamples(len(x_N), n_boot, seed)])
    low, high = np.percentile(means_S, _INTERVAL)
    return Estimate(float(x_N.mean()), float(low), float(high), len(x_N))


def preferences_of(scores_a: Numbers, scores_b: Numbers) -> Floats:
    """preferences_N of A over B from scores: 1, .5 or 0; `scores_a[i]` and `scores_b[i]` are of the same prompt.

    Raises:
        ValueError: when the lists differ in length, are empty, or have a score that is not finite.
    """
    a_N, b_N = _finite("scores of A", scores_a), _finite("scores of B", scores_b)
    if len(a_N) != len(b_N):
        raise ValueError(f"needs one score of A and one of B per prompt, got {len(a_N)} and {len(b_N)}")
    return wins(a_N - b_N)


def win_rate(preferences: Numbers, n_boot: int = 2000, seed: int = 0) -> WinRate:
    """Mean preference of A over B; a preference other than 1 or 0 counts as a tie.

    Raises:
        ValueError: when `preferences` is empty or has a value outside 0 .. 1.
    """
    preferences_N = _shares(preferences)
    estimate = bootstrap_mean(preferences_N, n_boot, seed)
    return _with_counts(preferences_N, estimate.mean, estimate.low, estimate.high)


def length_controlled(
    preferences: Numbers,
    lengths_a: Numbers,
    lengths_b: Numbers,
    n_boot: int = 2000,
    seed: int = 0,
    ridge: float = 0.1,
) -> WinRate:
    """Win rate of A at equal lengths (in any unit: tokens, characters), by logistic regression.

    `ridge` is the precision of the prior on the slope, > 0.

    Raises:
        ValueError: as `win_rate` does, when the numbers of lengths differ, and when `ridge` is too small for the fit
            to converge.
    """
    preference_N = _shares(preferences)
    a_N, b_N = _finite("lengths of A", lengths_a), _finite("lengths of B", lengths_b)
    if not len(a_N) == len(b_N) == len(preference_N):
        raise ValueError(f"needs one length per preference, got {len(a_N)} and {len(b_N)} for {len(preference_N)}")
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}")
    difference_N = a_N - b_N
    scale = np.sqrt(np.mean(difference_N**2))
    x_N = np.tanh(difference_N / scale) if scale > 0 else difference_N
    intercept = _fit(x_N[None], preference_N[None], ridge)[0]
    intercepts_S = np.concatenate(
        [_fit(x_N[index_SN], preference_N[index_SN], ridge) for index_SN in _resamples(len(x_N), n_boot, seed)]
    )
    low, high = np.percentile(_sigmoid(intercepts_S), _INTERVAL)
    return _with_counts(preference_N, float(_sigmoid(intercept)), float(low), float(high))


def _fit(x_SN: Floats, y_SN: Floats, ridge: float) -> Floats:
    """intercepts_S of S ridge logistic regressions at once, by Newton's method."""
    intercept_S, slope_S = np.zeros((2, len(x_SN)))
    for _ in range(_NEWTON_STEPS):
        p_SN = _sigmoid(intercept_S[:, None] + slope_S[:, None] * x_SN)
        residual_SN, weight_SN = y_SN - p_SN, p_SN * (1 - p_SN)
        gradient0_S = residual_SN.sum(1) - _INTERCEPT_RIDGE * intercept_S
        gradient1_S = (residual_SN * x_SN).sum(1) - ridge * slope_S
        h00_S = weight_SN.sum(1) + _INTERCEPT_RIDGE
        h01_S = (weight_SN * x_SN).sum(1)
        h11_S = (weight_SN * x_SN**2).sum(1) + ridge
        determinant_S = h00_S * h11_S - h01_S**2
        step0_S = (h11_S * gradient0_S - h01_S * gradient1_S) / determinant_S
        step1_S = (h00_S * gradient1_S - h01_S * gradient0_S) / determinant_S
        intercept_S, slope_S = intercept_S + step0_S, slope_S + step1_S
        if max(np.abs(step0_S).max(), np.abs(step1_S).max()) < 1e-6:
            return intercept_S
    raise ValueError(f"the regression on length does not converge with ridge {ridge}; give a larger one")


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))  # exp would overflow far out


def _resamples(n: int, n_boot: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of bootstrap indices_SN, `n_boot` rows in all, each of `n` draws with replacement."""
    if n_boot < 1:
        raise ValueError(f"n_boot must be >= 1, got {n_boot}")
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    for start in range(0, n_boot, block):
        yield rng.integers(n, size=(min(block, n_boot - start), n))


def _finite(what: str, x: Numbers) -> Floats:
    x_N = np.asarray(x, dtype=np.float64)
    if x_N.ndim != 1 or not len(x_N) or not np.isfinite(x_N).all():
        raise ValueError(f"{what}: needs a non-empty list of finite numbers, got shape {x_N.shape}")
    return x_N


def _shares(preferences: Numbers) -> Floats:
    preferences_N = _finite("preferences", preferences)
    if preferences_N.min() < 0 or preferences_N.max() > 1:
        raise ValueError(f"preferences: must lie in 0 .. 1, got {preferences_N.min()} .. {preferences_N.max()}")
    return preferences_N


def _with_counts(preference_N: Floats, rate: float, low: float, high: float) -> WinRate:
    wins, losses = int((preference_N == 1).sum()), int((preference_N == 0).sum())
    return WinRate(rate, low, high, wins, len(preference_N) - wins - losses, losses, len(preference_N))
