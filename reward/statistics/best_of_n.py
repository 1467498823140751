"""Best-of-n: sample n answers and keep the one that the reward model (the proxy) scores highest.

It is the strongest simple baseline for PPO, and its distance from the policy that it samples from needs no measurement
(Stiennon et al. 2020, appendix G.3): KL = log n - (n-1)/n. That is exact where no two answers have the same proxy, and
an upper bound otherwise (Beirami et al. 2024, arXiv 2401.01879).

N answers per prompt give an unbiased estimate for every n <= N (Nakano et al. 2021, arXiv 2112.09332; as Gao et al.
2022, arXiv 2210.10760, use it): with the answers sorted by proxy, lowest first, the i-th is the best of a share
C(i-1, n-1) / C(N, n) of all subsets of n. Answers of equal proxy are equally likely to be taken, so each is given their
mean value.

Legend: P prompts, N answers per prompt, M sizes n, S bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gptlife.reward.statistics.winrate import Estimate, Floats


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the policy that it samples from, nats: log n - (n-1)/n.

    Raises:
        ValueError: when n < 1.
    """
    if n < 1:
        raise ValueError(f"best of n needs n >= 1, got {n}")
    return math.log(n) - (n - 1) / n


def subset_weights(n_answers: int, n: int) -> Floats:
    """weights_N: share of the subsets of n out of N whose highest member is the i-th lowest, C(i-1, n-1) / C(N, n).

    Computed from the top: w_N = n/N and w_(i-1) = w_i (i-n)/(i-1), products of numbers in 0 .. 1, which can't overflow.

    Raises:
        ValueError: when n is not in 1 .. N.
    """
    if not 1 <= n <= n_answers:
        raise ValueError(f"best of n out of {n_answers} answers needs n in 1 .. {n_answers}, got {n}")
    i = np.arange(n_answers, 1, -1, dtype=np.float64)
    return np.cumprod(np.concatenate([[n / n_answers], np.maximum(i - n, 0) / (i - 1)]))[::-1]


def best_of_n(proxy_PN: ArrayLike, values_PN: ArrayLike, ns: Sequence[int]) -> Floats:
    """values_PM: expected value of the answer of highest proxy among n, for every prompt and every n of `ns`.

    `values_PN` is any number that describes an answer: its gold score, its length, the proxy itself. The mean over
    prompts is unbiased for n independent answers; `curve_estimates` gives it an interval.

    Raises:
        ValueError: when the two differ in shape, are not tables of finite numbers, or an n is not in 1 .. N.
    """
    proxy, values = _table("proxy", proxy_PN), _table("values", values_PN)
    if proxy.shape != values.shape:
        raise ValueError(f"needs one value per proxy score, got shapes {values.shape} and {proxy.shape}")
    weights_MN = np.stack([subset_weights(proxy.shape[1], n) for n in ns])
    return np.stack([weights_MN @ _by_proxy(*row) for row in zip(proxy, values, strict=True)])


def _by_proxy(proxy_N: Floats, values_N: Floats) -> Floats:
    """values_N sorted by proxy, lowest first; answers of equal proxy are given their mean value."""
    _, group_N, counts = np.unique(proxy_N, return_inverse=True, return_counts=True)
    means = np.bincount(group_N, values_N) / counts
    return np.repeat(means, counts)


def win_shares(values_PN: ArrayLike) -> Floats:
    """shares_PN: how often an answer is preferred to one drawn from the prompt's own N; equal values count half.

    As values of `best_of_n` they give the win rate of best-of-n over a single answer: 1/2 at n = 1. The answer may be
    drawn against itself, which causes a bias of order 1/N (with gold as proxy: (n/(n+1) - 1/2) / N too high).

    Raises:
        ValueError: when `values_PN` is not a table of finite numbers.
    """
    values = _table("values", values_PN)
    shares = np.empty_like(values)
    for row_N, share_N in zip(values, shares, strict=True):
        sorted_N = np.sort(row_N)
        below_N, up_to_N = (np.searchsorted(sorted_N, row_N, side) for side in ("left", "right"))
        share_N[:] = (below_N + up_to_N) / (2 * len(row_N))
    return shares


def bootstrap_curves(values_PM: ArrayLike, n_boot: int = 2000, seed: int = 0) -> Floats:
    """means_SM: the mean curve over prompts in each of `n_boot` resamples; a prompt is drawn with its whole curve.

    Raises:
        ValueError: when `values_PM` is not a table of finite numbers, or `n_boot` < 1.
    """
    values = _table("values", values_PM)
    if n_boot < 1:
        raise ValueError(f"n_boot must be >= 1, got {n_boot}")
    n_prompts = len(values)
    counts_SP = np.random.default_rng(seed).multinomial(n_prompts, [1 / n_prompts] * n_prompts, size=n_boot)
    return np.asarray(counts_SP @ values / n_prompts)


def curve_estimates(values_PM: ArrayLike, n_boot: int = 2000, seed: int = 0) -> list[Estimate]:
    """The mean over prompts at each of the M sizes, with its 95 % percentile bootstrap interval.

    Raises:
        ValueError: as `bootstrap_curves` does.
    """
    means_SM = bootstrap_curves(values_PM, n_boot, seed)
    values = np.asarray(values_PM, dtype=np.float64)
    low_M, high_M = np.percentile(means_SM, (2.5, 97.5), axis=0)
    triples = zip(values.mean(0).tolist(), low_M.tolist(), high_M.tolist(), strict=True)
    return [Estimate(mean, low, high, len(values)) for mean, low, high in triples]


def _table(what: str, x: ArrayLike) -> Floats:
    table = np.asarray(x, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"{what}: needs a table of finite numbers, one row per prompt, got shape {table.shape}")
    return table
