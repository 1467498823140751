"""Is a reward model's confidence right, and does it order answers as the truth does?

A reward model says that one answer beats another with probability sigmoid(margin). Its favourite is the answer with the
higher score, its confidence is sigmoid(|margin|), 0.5 .. 1, and it is right when the labeler preferred that answer too.
A calibrated model is right on four in five of the pairs with confidence 0.8. The expected calibration error is the mean
distance between confidence and accuracy over bins of equal width (Guo et al. 2017, arXiv 1706.04599, section 2). It
matters beside accuracy: reward models of equal accuracy can be unequally good to optimise (Zheng et al. 2023, arXiv
2307.04964, section 4).

`accuracy_by` does the same for any other measure of doubt, such as the disagreement of an ensemble's members, in bins
of equally many pairs. `spearman` compares the order of the scores with that of a judge that knows the truth.

Left out: fitting a temperature.

Legend: M pairs, N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlife.reward.statistics.accuracy import wins


@dataclass(frozen=True)
class Reliability:
    """Reliability curve and its summary; `dataclasses.asdict` of it is JSON."""

    edges: list[float]
    """Borders of the confidence bins, from 0.5 to 1; a bin includes its lower border, the last bin both."""
    counts: list[int]
    """Pairs per bin."""
    confidence: list[float | None]
    """Mean confidence per bin, None in an empty one."""
    accuracy: list[float | None]
    """Fraction of pairs per bin where the model is right, None in an empty one."""
    ece: float
    """Expected calibration error, 0 .. 1."""
    overall_accuracy: float
    """Fraction of all pairs where the model is right; equal scores count half."""
    overall_confidence: float
    """Mean confidence; above `overall_accuracy` the model is overconfident."""
    log_loss: float
    """Mean of -log sigmoid(margin), nats; log 2 for a model whose margins are all 0."""
    n: int
    """Pairs."""


def reliability(margins_M: Sequence[float] | NDArray[np.floating], n_bins: int = 10) -> Reliability:
    """Reliability over pairs; `margins_M[i]` is the score of the preferred answer less that of the other.

    Raises:
        ValueError: when there is no pair, a margin is not finite, or `n_bins` < 1.
    """
    margins_M = np.asarray(margins_M, dtype=np.float64).ravel()
    if not len(margins_M) or not np.isfinite(margins_M).all() or n_bins < 1:
        raise ValueError(f"needs finite margins and n_bins >= 1, got {len(margins_M)} margins, {n_bins} bins")
    confidence_M = 1 / (1 + np.exp(-np.abs(margins_M)))
    right_M = wins(margins_M)
    edges = np.linspace(0.5, 1, n_bins + 1)
    bin_M = np.clip(np.searchsorted(edges, confidence_M, side="right") - 1, 0, n_bins - 1)
    counts = np.bincount(bin_M, minlength=n_bins)
    sum_confidence = np.bincount(bin_M, confidence_M, n_bins)
    sum_right = np.bincount(bin_M, right_M, n_bins)
    return Reliability(
        edges=edges.tolist(),
        counts=counts.tolist(),
        confidence=_means(sum_confidence, counts),
        accuracy=_means(sum_right, counts),
        ece=float(np.abs(sum_right - sum_confidence).sum() / len(margins_M)),
        overall_accuracy=float(right_M.mean()),
        overall_confidence=float(confidence_M.mean()),
        log_loss=float(np.logaddexp(0, -margins_M).mean()),
        n=len(margins_M),
    )


def accuracy_by(
    key_M: Sequence[float] | NDArray[np.floating], margins_M: Sequence[float] | NDArray[np.floating], n_bins: int = 4
) -> list[float | None]:
    """Fraction of pairs where the model is right in `n_bins` bins of equal mass, from the lowest to the highest key.

    Equal scores count half. Equal keys stay in the pairs' order, so a bin's border may fall between them. With fewer
    pairs than bins, the empty bins are None.
    """
    right_M = wins(margins_M)
    order_M = np.argsort(np.asarray(key_M, dtype=np.float64), kind="stable")
    return [float(right_M[part].mean()) if len(part) else None for part in np.array_split(order_M, n_bins)]


def spearman(x_N: Sequence[float], y_N: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1 .. 1: Pearson's of the ranks, where equal values share their mean rank.

    None where all values of either side are equal.
    """
    left_N, right_N = (_mean_ranks(np.asarray(values, dtype=np.float64)) for values in (x_N, y_N))
    left_N, right_N = left_N - left_N.mean(), right_N - right_N.mean()
    square = float((left_N**2).sum() * (right_N**2).sum())
    return float((left_N * right_N).sum() / square**0.5) if square > 0 else None


def _mean_ranks(values_N: NDArray[Any]) -> NDArray[Any]:
    """Ranks from 1; equal values share their mean rank."""
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_ranks: NDArray[Any] = (np.cumsum(counts) - (counts - 1) / 2)[group_N]
    return mean_ranks


def _means(sums: NDArray[Any], counts: NDArray[Any]) -> list[float | None]:
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
