"""Oracles: counts by hand, the binomial's standard error, a plain gradient descent, simulations with known truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlife.reward.statistics import winrate
from gptlife.reward.statistics.winrate import bootstrap_mean, preferences_of


def win_rate(scores_a, scores_b, **settings):
    return winrate.win_rate(preferences_of(scores_a, scores_b), **settings)


def length_controlled(scores_a, scores_b, lengths_a, lengths_b, **settings):
    return winrate.length_controlled(preferences_of(scores_a, scores_b), lengths_a, lengths_b, **settings)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_win_rate_by_hand():
    # Wins 2, tie 1, loss 1: (2 + 1/2) / 4.
    result = win_rate([3, 1.0, 5, 0], [1, 1.0, 2, 4])
    assert (result.rate, result.wins, result.ties, result.losses, result.n) == (0.625, 2, 1, 1, 4)
    assert 0 <= result.low <= result.rate <= result.high <= 1


def test_preferences_by_hand():
    assert preferences_of([3, 1.0, 5, 0], [1, 1.0, 2, 4]).tolist() == [1, 0.5, 1, 0]
    result = winrate.win_rate([1, 0.5, 1, 0])
    assert (result.rate, result.wins, result.ties, result.losses, result.n) == (0.625, 2, 1, 1, 4)
    assert result == win_rate([3, 1.0, 5, 0], [1, 1.0, 2, 4])
    assert result != winrate.win_rate([1, 0.5, 1, 0.5])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
@settings(deadline=None, max_examples=30)
def test_win_rate_is_antisymmetric(pairs):
    a, b = zip(*pairs, strict=True)
    there, back = win_rate(a, b, n_boot=50), win_rate(b, a, n_boot=50)
    assert there.rate == pytest.approx(1 - back.rate)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    # The same resamples seen from the other side.
    assert there.low == pytest.approx(1 - back.high)


def test_interval_is_that_of_the_binomial():
    # 300 wins of 400: 0.75 ± 1.96 sqrt(.75 .25 / 400) = 0.75 ± 0.0424
    result = win_rate(np.repeat([1, -1], [300, 100]), np.zeros(400), n_boot=4000)
    assert result.low == pytest.approx(0.7076, abs=0.005)
    assert result.high == pytest.approx(0.7924, abs=0.005)
    # Twin: a quarter of the prompts has twice the interval.
    few = win_rate(np.repeat([1, -1], [75, 25]), np.zeros(100), n_boot=4000)
    assert few.low != pytest.approx(0.7076, abs=0.005)
    assert few.high - few.low == pytest.approx(2 * (result.high - result.low), rel=0.1)


def test_ties_narrow_the_interval():
    # All ties: 0.5 for certain; half wins, half losses: 0.5 with the widest interval.
    ties, split = win_rate(np.zeros(100), np.zeros(100)), win_rate(np.repeat([1, -1], 50), np.zeros(100))
    assert (ties.low, ties.rate, ties.high) == (0.5, 0.5, 0.5)
    assert split.rate == 0.5
    assert split.high - split.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        result = win_rate(rng.random(150), np.full(150, 0.4), n_boot=400, seed=trial)  # true rate 0.6
        covered += result.low <= 0.6 <= result.high
    assert 180 <= covered <= 199


def test_bootstrap_mean_against_the_standard_error():
    x = np.random.default_rng(0).normal(5, 2, 900)
    estimate = bootstrap_mean(x, n_boot=4000)
    half = 1.96 * x.std() / math.sqrt(900)
    assert estimate.mean == pytest.approx(x.mean())
    assert estimate.low == pytest.approx(x.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(x.mean() + half, abs=0.02)
    assert estimate.n == 900


def test_seed_decides_and_blocks_do_not_repeat():
    x = np.random.default_rng(0).normal(size=700_000)  # one resample a block
    one, same, other = (bootstrap_mean(x, n_boot=4, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert one.low < one.high  # every block has draws of its own


def loses_to_length(n=3000, seed=0, quality=0.4, taste=1.5):
    """A is longer by 30 on average; the judge likes length. Known: the rate at equal length is sigmoid(quality)."""
    rng = np.random.default_rng(seed)
    lengths_a, lengths_b = rng.normal(130, 30, n), rng.normal(100, 30, n)
    difference = lengths_a - lengths_b
    pull = taste * np.tanh(difference / np.sqrt(np.mean(difference**2)))
    return quality + pull + rng.logistic(size=n), np.zeros(n), lengths_a, lengths_b


def test_length_controlled_finds_the_rate_at_equal_length():
    scores_a, scores_b, lengths_a, lengths_b = loses_to_length()
    controlled = length_controlled(scores_a, scores_b, lengths_a, lengths_b, n_boot=300)
    plain = win_rate(scores_a, scores_b)
    truth = float(sigmoid(0.4))
    assert controlled.rate == pytest.approx(truth, abs=0.03)
    assert controlled.low < truth < controlled.high
    assert plain.rate != pytest.approx(truth, abs=0.03)  # twin: the plain rate is taken in
    assert (controlled.wins, controlled.losses) == (plain.wins, plain.losses)


def test_length_controlled_against_gradient_descent():
    scores_a, scores_b, lengths_a, lengths_b = loses_to_length(n=200)
    difference = torch.tensor(lengths_a - lengths_b)
    x_N = torch.tanh(difference / difference.square().mean().sqrt())
    y_N = torch.tensor(scores_a > scores_b).double()
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        nll = torch.nn.functional.binary_cross_entropy_with_logits(weights[0] + weights[1] * x_N, y_N, reduction="sum")
        total = nll + 0.5 * (1e-3 * weights[0] ** 2 + 0.1 * weights[1] ** 2)
        total.backward()
        return total

    optimizer.step(loss)
    expected = torch.sigmoid(weights[0]).item()
    result = length_controlled(scores_a, scores_b, lengths_a, lengths_b, n_boot=10)
    assert result.rate == pytest.approx(expected, abs=1e-6)
    # Twin: a strong prior on the slope takes its share.
    strong = length_controlled(scores_a, scores_b, lengths_a, lengths_b, n_boot=10, ridge=50.0)
    assert strong.rate != pytest.approx(expected, abs=1e-6)


def test_length_controlled_from_preferences():
    scores_a, scores_b, lengths_a, lengths_b = loses_to_length(n=100)
    by_hand = [1.0 if a > b else 0.0 for a, b in zip(scores_a, scores_b, strict=True)]
    result = winrate.length_controlled(by_hand, lengths_a, lengths_b, n_boot=20)
    assert result == length_controlled(scores_a, scores_b, lengths_a, lengths_b, n_boot=20)
    assert result != winrate.length_controlled(by_hand, lengths_b, lengths_b, n_boot=20)


def test_length_controlled_changes_sides():
    scores_a, scores_b, lengths_a, lengths_b = loses_to_length(n=300)
    there = length_controlled(scores_a, scores_b, lengths_a, lengths_b, n_boot=50)
    back = length_controlled(scores_b, scores_a, lengths_b, lengths_a, n_boot=50)
    assert there.rate == pytest.approx(1 - back.rate)
    assert there.low == pytest.approx(1 - back.high)


def test_equal_lengths_leave_the_plain_rate():
    scores_a = [3, 1, 5, 0, 2, 2, 7, 1]
    result = length_controlled(scores_a, [1] * 8, [50] * 8, [50] * 8, n_boot=100)
    assert result.rate == pytest.approx(win_rate(scores_a, [1] * 8).rate, abs=1e-3)
    # Always longer by the same amount: nothing can be learnt about length, the rate stays about where it was.
    shifted = length_controlled(scores_a, [1] * 8, [60] * 8, [50] * 8, n_boot=100)
    assert shifted.rate == pytest.approx(result.rate, abs=0.02)


def test_unit_of_length_does_not_matter():
    scores_a, scores_b, lengths_a, lengths_b = loses_to_length(n=300)
    tokens = length_controlled(scores_a, scores_b, lengths_a, lengths_b, n_boot=20)
    characters = length_controlled(scores_a, scores_b, 4.2 * lengths_a, 4.2 * lengths_b, n_boot=20)
    assert characters == pytest.approx(tokens)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1000, 1000)), min_size=1, max_size=12))
def test_length_controlled_is_finite_and_in_order(rows):
    """Even where one side wins everything or length separates the two perfectly."""
    preferences, differences = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    result = length_controlled(preferences, np.zeros(len(rows)), differences, np.zeros(len(rows)), n_boot=40)
    assert 0 <= result.low <= result.high <= 1
    assert 0 < result.rate < 1


def test_winning_everything():
    result = length_controlled(np.ones(50), np.zeros(50), np.full(50, 9), np.full(50, 7), n_boot=50)
    assert result.rate > 0.99
    assert win_rate(np.ones(50), np.zeros(50)) == (1, 1, 1, 50, 0, 0, 50)


def test_refuses():
    with pytest.raises(ValueError, match="got 2 and 1"):
        win_rate([1, 2], [1])
    with pytest.raises(ValueError, match="scores of A: needs a non-empty list"):
        win_rate([], [])
    with pytest.raises(ValueError, match="scores of B: needs"):
        win_rate([1.0], [math.nan])
    with pytest.raises(ValueError, match="got 2 and 1 for 2"):
        length_controlled([1, 2], [1, 2], [3, 3], [4])
    with pytest.raises(ValueError, match=r"preferences: must lie in 0 \.\. 1, got 0\.0 \.\. 2\.0"):
        winrate.win_rate([0, 2])
    with pytest.raises(ValueError, match="preferences: must lie in"):
        winrate.length_controlled([-1, 1], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="ridge must be > 0"):
        length_controlled([1], [2], [3], [4], ridge=0.0)
    with pytest.raises(ValueError, match="n_boot must be >= 1"):
        bootstrap_mean([1.0], n_boot=0)
