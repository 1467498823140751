"""Accuracy with ties, by hand."""

from __future__ import annotations

import numpy as np

from gptlife.reward.statistics.accuracy import accuracy, wins


def test_by_hand() -> None:
    # Right, wrong, tie, right: 2.5 of 4.
    margins = [1.0, -1.0, 0.0, 10.0]
    assert wins(margins).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert accuracy(margins) == accuracy(np.array(margins)) == 0.625
    assert accuracy(margins) not in (0.5, 0.75)  # twins: a tie counted as wrong, or as right


def test_without_pairs() -> None:
    assert accuracy([]) == 0.0
