"""What every task is made with: a `Desk` to draw words from, and the `Draft` of a prompt with its answers.

A Desk has two random streams: `asking` decides the prompt, `saying` the wording of the answers. So many people can
answer the same prompt: equal `asking`, different `saying`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gptlife.data.village.world import Fact, World


class Draft(NamedTuple):
    """A prompt, one answer of each quality, and what the judge needs.

    `good` does everything that is asked; `wrong` names a wrong thing; `half` does half of it or nothing. `facts` are
    the ids of the facts behind the prompt, `wanted` the judge's fields (see `judge`).
    """

    prompt: str
    good: str
    wrong: str
    half: str
    facts: list[str]
    wanted: dict[str, Any]


@dataclass(frozen=True)
class Desk:
    """What a task is drawn from: the world, the split of its facts, and the two random streams."""

    world: World
    split: str
    asking: random.Random
    saying: random.Random

    def combination(self, label: str, *pools: tuple[str, ...]) -> tuple[str, list[str]]:
        """One word of each pool, all different, in a combination that belongs to the split.

        Returns (id of the combination, words).
        """
        while True:
            words = [self.asking.choice(pool) for pool in pools]
            fact_id = "/".join([label, *words])
            if len(set(words)) == len(words) and self.world.split_of(fact_id) == self.split:
                return fact_id, words

    def sentence(self, label: str, write: Callable[[], str]) -> tuple[str, str]:
        """A sentence that belongs to the split as a whole. Returns (id, sentence)."""
        while True:
            text = write()
            if self.world.split_of(fact_id := f"{label}/{text}") == self.split:
                return fact_id, text

    def fact(self) -> Fact:
        """One fact of the split."""
        return self.asking.choice(self.world.facts_of(self.split))

    def ask(self, *phrasings: str) -> str:
        """One wording of the prompt."""
        return self.asking.choice(phrasings)

    def say(self, *phrasings: str) -> str:
        """One wording of an answer."""
        return self.saying.choice(phrasings)

    def other(self, kind: str, *words: str) -> str:
        """A word of class `kind` that is not one of `words`: a mistake."""
        pool = self.world.classes[kind]
        while True:
            if (word := self.saying.choice(pool)) not in words:
                return word
