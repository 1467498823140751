"""A reward in Python: answers of about forty words are best.

ppo: {reward_function: "docs/examples/reward_length.py:score"}
"""

from typing import Any

WANTED = 40


def score(prompts: list[dict[str, Any]], answers: list[str]) -> list[float]:
    """One finite number an answer, here from -1 to 1; `prompts[i]["messages"]` is what answer i answers."""
    return [1.0 - 2.0 * min(1.0, abs(len(answer.split()) - WANTED) / WANTED) for answer in answers]
