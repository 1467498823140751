"""How often the better answer scores higher; equal scores count half, as a coin's guess would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]


def wins(margins_M: Numbers) -> NDArray[np.float64]:
    """wins_M: 1 where the margin is above 0, 0 where it is below, 1/2 where it is 0."""
    return np.asarray(0.5 * (1 + np.sign(np.asarray(margins_M, dtype=np.float64))))


def accuracy(margins_M: Numbers) -> float:
    """Mean win, 0 .. 1; 0 without pairs. A margin is the better answer's score less the other's."""
    return float(wins(margins_M).mean()) if len(margins_M) else 0.0
