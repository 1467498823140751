"""Simulated labelers: they see what the judge sees, with noise, and each has a personal taste.

A labeler's utility of an answer is the gold score, plus taste (a common and a personal weight on length, politeness and
warmth), plus Gaussian noise. Utilities that differ by less than `TIE` share a rank. The noise of both groups is set so
that two labelers of a group agree on 72.6 % (training) and 77.3 % (held-out) of the pairs that neither ties
[Ouyang et al. 2022, section 3.4]. The reference pairs are two people's answers to one prompt, half of them flawed.

Left out: labelers who learn, tire, or disagree more on some use cases.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

from gptlife.data.village import tasks
from gptlife.data.village.judge import judge
from gptlife.data.village.language import tokens_of, words_in
from gptlife.data.village.world import World

Group = Literal["training", "heldout"]

PEOPLE = {
    "training": ("Alma", "Boris", "Clara", "David", "Edith", "Felix", "Greta", "Henry"),
    "heldout": ("Iris", "Jonas", "Karin", "Louis", "Marta"),
}
NOISE = {"training": 0.355, "heldout": 0.28}
"""Standard deviation of a judgement, in units of the gold score; tuned to give the paper's agreement."""
TIE = 0.06
"""Utilities that differ by less get the same rank."""

_POLITE = frozenset(("please", "thank", "dear", "sorry", "could", "hope", "helps"))
_WARM = frozenset(("glad", "happy", "nice", "friend", "love", "joy", "smiled", "laughed", "danced", "wonderful"))


@dataclass(frozen=True)
class Labeler:
    """One labeler. `noise` is the standard deviation of a judgement; tastes are utility per unit of their feature."""

    name: str
    group: Group
    noise: float
    length: float
    politeness: float
    warmth: float

    def rank(self, meta: dict[str, Any], answers: list[str], rng: random.Random) -> list[int]:
        """Rank of each answer, 1 = best; answers that seem equal share a rank (1, 2, 2, 4).

        An answer that occurs twice is judged once, so that it ties with itself.
        """
        return self.order({answer: judge(meta, answer).score for answer in answers}, answers, rng)

    def order(self, scores: dict[str, float], answers: list[str], rng: random.Random) -> list[int]:
        """Like `rank`, with the gold score of each answer given."""
        seen = {a: scores[a] + self._liking(a) + rng.gauss(0.0, self.noise) for a in dict.fromkeys(answers)}
        best_first = sorted(answers, key=lambda answer: -seen[answer])
        rank_of: dict[str, int] = {}
        leader = 0
        for index, answer in enumerate(best_first):
            if seen[best_first[leader]] - seen[answer] >= TIE:
                leader = index
            rank_of.setdefault(answer, leader + 1)
        return [rank_of[answer] for answer in answers]

    def _liking(self, answer: str) -> float:
        words = words_in(tokens_of(answer))
        polite = min(1, len(_POLITE.intersection(words)))
        warm = min(1, len(_WARM.intersection(words)))
        return self.length * min(len(words), 40) / 40 + self.politeness * polite + self.warmth * warm


def panel(group: Group, seed: int) -> list[Labeler]:
    """The labelers of a group: eight for training, five held out. Equal arguments give equal labelers."""
    rng = random.Random(f"village/labelers/{group}/{seed}")
    people = PEOPLE[group]
    # Evenly spread, so that the group's agreement does not depend on the draw of its members.
    factors = [0.8 + 0.4 * i / (len(people) - 1) for i in range(len(people))]
    rng.shuffle(factors)
    return [
        Labeler(
            name,
            group,
            noise=NOISE[group] * factor,
            length=rng.gauss(0.04, 0.03),
            politeness=rng.gauss(0.03, 0.02),
            warmth=rng.gauss(0.03, 0.02),
        )
        for name, factor in zip(people, factors, strict=True)
    ]


class Agreement(NamedTuple):
    """How much the labelers of a group agree.

    agreement: share of the pairs, tied by neither, that two labelers order alike. ceiling: share of the pairs that a
    labeler orders as the judge does, among those that neither ties: the accuracy of a single label. tied: share of a
    labeler's pairs that are ties. pairs: number of pairs behind `agreement`.
    """

    agreement: float
    ceiling: float
    tied: float
    pairs: int


def agreement(labelers: list[Labeler], world: World, prompts: int, seed: int) -> Agreement:
    """Have all `labelers` compare two answers to each of `prompts` prompts; half of the answers are flawed."""
    rng = random.Random(f"village/agreement/{seed}")
    alike = compared = right = judged = tied = 0
    for meta, answers in _reference(world, prompts, rng):
        scores = {answer: judge(meta, answer).score for answer in answers}
        signs = [b - a for a, b in (labeler.order(scores, answers, rng) for labeler in labelers)]
        gap = scores[answers[0]] - scores[answers[1]]
        tied += signs.count(0)
        judged += sum(sign != 0 for sign in signs if gap != 0)
        right += sum(sign * gap > 0 for sign in signs)
        pairs = [one * two for one, two in combinations(signs, 2) if one * two != 0]
        compared += len(pairs)
        alike += sum(product > 0 for product in pairs)
    return Agreement(alike / compared, right / judged, tied / (prompts * len(labelers)), compared)


def _reference(world: World, prompts: int, rng: random.Random) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Two different answers to each prompt."""
    for i in range(prompts):
        use_case = tasks.draw_use_case(rng)
        answers: list[str] = []
        while len(answers) < 2:
            drawn = tasks.draft(world, "validation", use_case, random.Random(f"{i}/{use_case}"), rng)
            answer = tasks.answer(drawn, tasks.draw_flaw(rng, 0.5), rng)
            if answer not in answers:
                answers.append(answer)
        yield tasks.meta_of(world, use_case, drawn), answers
