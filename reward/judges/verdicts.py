"""What a judge is: a function that gives one verdict per answer.

    judge(prompts, answers) -> [{"score": 0.7, ...}, ...]

`prompts[i]` belongs to `answers[i]` and is a row as the data has it: `{"messages": [...], "meta": {...}}`. A verdict
has the key `score`, where higher is better, and any further numbers; a key may be missing on prompts for which it is
not defined, so a mean over answers is taken over the verdicts that have the key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Prompt = dict[str, Any]
Verdict = dict[str, float]
Judge = Callable[[Sequence[Prompt], Sequence[str]], list[Verdict]]


def scores_of(verdicts: Sequence[Verdict]) -> list[float]:
    """The scores alone."""
    return [verdict["score"] for verdict in verdicts]
