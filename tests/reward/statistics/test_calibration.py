"""Oracles: bins filled by hand, a loop over pairs, and a simulation that is calibrated by construction."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlife.reward.statistics.calibration import accuracy_by, reliability, spearman


def logit(p):
    return math.log(p / (1 - p))


def test_by_hand():
    # Two bins, .5-.75 and .75-1. Confidences .6 right, .7 wrong | .8 right, .9 right, .8 wrong.
    curve = reliability([logit(0.6), -logit(0.7), logit(0.8), logit(0.9), -logit(0.8)], n_bins=2)
    assert curve.edges == [0.5, 0.75, 1]
    assert curve.counts == [2, 3]
    assert curve.confidence == pytest.approx([0.65, 2.5 / 3])
    assert curve.accuracy == pytest.approx([0.5, 2 / 3])
    # 2/5 |.5 - .65| + 3/5 |2/3 - 2.5/3| = .06 + .1
    assert curve.ece == pytest.approx(0.16)
    assert curve.overall_accuracy == pytest.approx(0.6)
    assert curve.overall_confidence == pytest.approx(3.8 / 5)
    assert curve.log_loss == pytest.approx(-sum(map(math.log, [0.6, 0.3, 0.8, 0.9, 0.2])) / 5)
    assert curve.n == 5


def test_a_model_that_knows_nothing():
    curve = reliability(np.zeros(4))
    assert curve.overall_accuracy == curve.overall_confidence == 0.5
    assert curve.ece == 0
    assert curve.log_loss == pytest.approx(math.log(2))
    assert curve.counts == [4] + [0] * 9
    assert curve.accuracy[1:] == curve.confidence[1:] == [None] * 9


def test_certainty_is_in_the_last_bin_and_finite():
    curve = reliability([800.0, -800.0])
    assert curve.counts[-1] == 2
    assert curve.accuracy[-1] == 0.5
    assert curve.log_loss == pytest.approx(400)


def test_json_has_plain_numbers():
    curve = asdict(reliability(np.array([0.1, 2.0, -1.0], dtype=np.float32)))
    assert json.loads(json.dumps(curve, allow_nan=False)) == curve


def simulated(scale):
    """Margins of a model whose margins are `scale` times the true ones, the pairs oriented by the labeler's choice."""
    rng = np.random.default_rng(0)
    true_margin = rng.normal(0, 2, 40_000)
    chose_first = rng.random(40_000) < 1 / (1 + np.exp(-true_margin))
    return scale * np.where(chose_first, true_margin, -true_margin)


def test_calibrated_by_construction():
    curve = reliability(simulated(1))
    assert curve.ece < 0.015
    # Twins of the same accuracy: three times too sure, three times too shy.
    sure, shy = reliability(simulated(3)), reliability(simulated(1 / 3))
    assert sure.overall_accuracy == shy.overall_accuracy == curve.overall_accuracy
    assert sure.ece > 0.05
    assert sure.overall_confidence > sure.overall_accuracy
    assert shy.ece > 0.05
    assert shy.overall_confidence < shy.overall_accuracy
    assert curve.log_loss < min(sure.log_loss, shy.log_loss)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=30), st.integers(1, 12))
def test_against_loop(margins, n_bins):
    curve = reliability(margins, n_bins)
    bins = [[] for _ in range(n_bins)]
    for margin in margins:
        confidence = 1 / (1 + math.exp(-abs(margin)))
        number = next((b for b in range(n_bins) if confidence < curve.edges[b + 1]), n_bins - 1)
        bins[number].append((confidence, 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0))
    assert curve.counts == [len(members) for members in bins]
    gaps = [abs(sum(right for _, right in members) - sum(sure for sure, _ in members)) for members in bins]
    assert curve.ece == pytest.approx(sum(gaps) / len(margins), abs=1e-12)


@pytest.mark.parametrize(("margins", "n_bins"), [([], 10), ([math.nan], 10), ([math.inf], 10), ([1.0], 0)])
def test_refuses(margins, n_bins):
    with pytest.raises(ValueError, match="needs finite margins"):
        reliability(margins, n_bins)


def test_accuracy_by_any_key():
    # Keys in falling order: the last pair has the lowest. Five pairs in two bins: three and two.
    assert accuracy_by([5, 4, 3, 2, 1], [1.0, -1.0, 2.0, -3.0, 0.0], 2) == pytest.approx([1.5 / 3, 1 / 2])
    assert accuracy_by([1, 2, 3, 4, 5], [1.0, -1.0, 2.0, -3.0, 0.0], 2) == pytest.approx([2 / 3, 0.5 / 2])
    assert accuracy_by([1, 1, 1, 1], [1.0, 1.0, -1.0, -1.0], 2) == [1.0, 0.0]  # equal keys: as they come
    assert accuracy_by([2, 1], [1.0, -1.0]) == [0.0, 1.0, None, None]


def test_spearman_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 · 15).
    assert spearman([0.1, 0.2, 5.0, 70.0], [2, 1, 4, 3]) == pytest.approx(1 - 24 / 60)
    # Ties: ranks 1.5 1.5 3 against 1 2 3; deviations -.5 -.5 1 and -1 0 1: 1.5 / sqrt(1.5 · 2).
    assert spearman([1, 1, 9], [1, 2, 3]) == pytest.approx(1.5 / 3**0.5)
    assert spearman([3, 2, 1], [10, 20, 30]) == pytest.approx(-1)
    # Twin: Pearson's correlation of the values is another.
    assert spearman([0.1, 0.2, 5.0, 70.0], [2, 1, 4, 3]) != pytest.approx(
        np.corrcoef([0.1, 0.2, 5.0, 70.0], [2, 1, 4, 3])[0, 1], abs=0.01
    )


def test_no_order_no_correlation():
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([1], [2]) is None
