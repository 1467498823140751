"""Oracles: subsets by hand, all subsets by brute force in exact fractions, the binomial's standard error."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlife.reward.statistics.best_of_n import (
    best_of_n,
    best_of_n_kl,
    bootstrap_curves,
    curve_estimates,
    subset_weights,
    win_shares,
)


def brute_force(proxy, values, n):
    """Mean over all subsets of n of the value of the best by proxy; equally good ones with their mean."""
    taken = []
    for subset in combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [Fraction(values[i]) for i in subset if proxy[i] == top]
        taken.append(sum(best) / len(best))
    return sum(taken) / len(taken)


def test_kl_by_hand():
    # Gao et al. 2022: n=4 .64, 16 1.84, 64 3.17, 256 4.55, 1000 5.91, 60k 10.0 nats.
    found = [best_of_n_kl(n) for n in (4, 16, 64, 256, 1000, 60_000)]
    assert found == pytest.approx([0.64, 1.84, 3.17, 4.55, 5.91, 10.0], abs=0.006)
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    with pytest.raises(ValueError, match="n >= 1"):
        best_of_n_kl(0)


def test_kl_is_that_of_the_distribution():
    # Of many equally likely answers in order of proxy, best-of-n takes the i-th with probability (i/m)^n - ((i-1)/m)^n.
    m, n = 100_000, 8
    p = np.diff((np.arange(m + 1) / m) ** n)
    assert best_of_n_kl(n) == pytest.approx(float((p * np.log(p * m)).sum()), abs=1e-4)
    # Few answers: the formula is an upper bound.
    p = np.diff((np.arange(4) / 3) ** n)
    assert float((p * np.log(p * 3)).sum()) < best_of_n_kl(n) - 0.1


def test_weights_by_hand():
    # Of the 6 pairs out of 4 the highest is in 3, the next in 2, then 1, 0.
    assert subset_weights(4, 2).tolist() == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert subset_weights(4, 1).tolist() == [0.25] * 4
    assert subset_weights(4, 4).tolist() == [0, 0, 0, 1]
    assert subset_weights(1, 1).tolist() == [1]
    for n in (0, 5):
        with pytest.raises(ValueError, match=r"needs n in 1 \.\. 4"):
            subset_weights(4, n)


@pytest.mark.parametrize(("n_answers", "n"), [(64, 16), (1000, 500), (1000, 3), (60_000, 1000)])
def test_weights_of_large_samples(n_answers, n):
    weights = subset_weights(n_answers, n)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    if n_answers <= 1000:
        exact = [float(Fraction(math.comb(i - 1, n - 1), math.comb(n_answers, n))) for i in range(1, n_answers + 1)]
        np.testing.assert_allclose(weights, exact, rtol=1e-10, atol=1e-300)


def test_best_of_n_by_hand():
    # Pairs of (proxy, gold) (1, 5), (2, 0), (3, 2): the best are 0, 2, 2; of all three it is 2; of one, any.
    found = best_of_n([[2, 1, 3.0]], [[0, 5, 2.0]], [1, 2, 3])
    assert found.tolist() == [pytest.approx([7 / 3, 4 / 3, 2])]
    # A tie of the two first, gold 4 and 0: pairs (a, b) 2, (a, c) 4, (b, c) 0; all three 2.
    tied = best_of_n([[1, 1, 0.0]], [[4, 0, 9.0]], [2, 3])
    assert tied.tolist() == [pytest.approx([2, 2])]
    # Twin: an order that breaks the tie by place would give (4 + 4 + 0) / 3 and 4.
    assert best_of_n([[1.001, 1, 0]], [[4, 0, 9.0]], [2, 3]).tolist() == [pytest.approx([8 / 3, 4])]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=8), st.data())
@settings(deadline=None, max_examples=80)
def test_equals_all_subsets(answers, data):
    proxy, values = (list(column) for column in zip(*answers, strict=True))
    n = data.draw(st.integers(1, len(answers)))
    assert best_of_n([proxy], [values], [n])[0, 0] == pytest.approx(float(brute_force(proxy, values, n)), abs=1e-12)


def test_one_prompt_does_not_touch_another():
    proxy, values = np.random.default_rng(0).normal(size=(2, 5, 7))
    whole = best_of_n(proxy, values, [1, 3, 7])
    for row in range(5):
        assert whole[row].tolist() == best_of_n(proxy[row : row + 1], values[row : row + 1], [1, 3, 7])[0].tolist()
    assert whole.shape == (5, 3)


def test_is_unbiased_for_fresh_answers():
    # Proxy uniform: the best of n has mean n / (n+1).
    proxy = np.random.default_rng(0).random((4000, 8))
    found = best_of_n(proxy, proxy, [1, 2, 4, 8]).mean(0)
    wanted = np.array([1 / 2, 2 / 3, 4 / 5, 8 / 9])
    np.testing.assert_allclose(found, wanted, atol=0.008)
    weights = np.stack([np.diff((np.arange(9) / 8) ** n) for n in (1, 2, 4, 8)], 1)
    with pytest.raises(AssertionError):  # twin: with replacement, as (i/N)^n - ((i-1)/N)^n has it
        np.testing.assert_allclose((np.sort(proxy) @ weights).mean(0), wanted, atol=0.008)


def test_win_shares_by_hand():
    # 3 beats 1, 1 and ties itself; a 1 ties two of three.
    assert win_shares([[1, 3, 1.0]]).tolist() == [pytest.approx([1 / 3, 5 / 6, 1 / 3])]
    assert win_shares([[2, 2.0], [0, 1.0]]).tolist() == [[0.5, 0.5], [0.25, 0.75]]


def test_win_rate_of_a_perfect_and_a_blind_choice():
    gold = np.arange(10.0)[None]
    found = best_of_n(gold, win_shares(gold), [1, 2, 5])[0]
    # The documented bias: n/(n+1) + (n/(n+1) - 1/2) / N.
    assert found.tolist() == pytest.approx([0.5, 2 / 3 + (2 / 3 - 1 / 2) / 10, 5 / 6 + (5 / 6 - 1 / 2) / 10])
    assert best_of_n(np.zeros((1, 10)), win_shares(gold), [1, 5])[0].tolist() == pytest.approx([0.5, 0.5])


def test_bootstrap_draws_prompts_with_their_whole_curve():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=400), np.zeros(400), np.zeros(400)], 1)
    values[:, 2] = 3 * values[:, 0] + 1
    means = bootstrap_curves(values, n_boot=3000)
    assert means.shape == (3000, 3)
    # The standard error of a mean of 400, and a curve that keeps its shape in every sample.
    assert means[:, 0].std() == pytest.approx(values[:, 0].std() / 20, rel=0.05)
    np.testing.assert_allclose(means[:, 2], 3 * means[:, 0] + 1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(means[:, 2], 3 * bootstrap_curves(values, 3000, seed=1)[:, 0] + 1)


def test_curve_estimates():
    # 300 ones of 400: 0.75 ± 1.96 sqrt(.75 .25 / 400) = 0.75 ± 0.0424
    values = np.stack([np.repeat([1.0, 0.0], [300, 100]), np.full(400, 2.0)], 1)
    one, two = curve_estimates(values, n_boot=4000)
    assert (one.mean, one.n) == (0.75, 400)
    assert (one.low, one.high) == (pytest.approx(0.7076, abs=0.005), pytest.approx(0.7924, abs=0.005))
    assert (two.mean, two.low, two.high) == (2, 2, 2)


@pytest.mark.parametrize(
    ("proxy", "values", "found"),
    [
        ([[1.0, 2.0]], [[1.0]], "one value per proxy score"),
        ([1.0, 2.0], [1.0, 2.0], "proxy: needs a table"),
        ([[1.0, math.nan]], [[1.0, 2.0]], "proxy: needs a table"),
        ([[1.0, 2.0]], [[1.0, math.inf]], "values: needs a table"),
        (np.zeros((0, 4)), np.zeros((0, 4)), "proxy: needs a table"),
    ],
)
def test_refusals(proxy, values, found):
    with pytest.raises(ValueError, match=found):
        best_of_n(proxy, values, [1])


def test_refuses_no_resample():
    with pytest.raises(ValueError, match="n_boot must be >= 1"):
        bootstrap_curves([[1.0]], n_boot=0)
