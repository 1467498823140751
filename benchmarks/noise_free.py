"""A labeler without noise or taste: what would a reward model learn if labelers were right? See noise_free.yaml."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gptlife.data.village.judge import judge


def rank(prompt: dict[str, Any], answers: Sequence[str], rng: random.Random) -> list[int]:
    """1 for the answer of highest gold score; answers within the labelers' tie of .06 share a rank."""
    scores = [judge(prompt["meta"], answer).score for answer in answers]
    best_first = sorted(scores, reverse=True)
    leaders: list[float] = []
    for score in best_first:
        if not leaders or leaders[-1] - score >= 0.06:
            leaders.append(score)
    return [1 + sum(score < leader - 0.06 + 1e-12 for leader in leaders) for score in scores]
