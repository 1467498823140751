"""The world: who lives in the village, what is true there, and the old tongue.

A world is a function of (seed, villagers). Facts are triples (subject, relation, value); each relation has sentences
(`says`), questions (`asks`) and a short answer (`brief`). The same sentences, read as patterns, let the judge find
statements in an answer and compare them with the facts.

The old tongue has a word for each of 40 common words; its adjectives follow their noun: "red hat" is "hat red" in
the old tongue's own words. Left out: tense, number and gender, people who change, facts that need two steps.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache
from typing import NamedTuple

from gptlife.data.village import lexicon

SPLITS = {"train": 75, "validation": 10, "test": 15}
"""Percentage of the facts and of the combinations in each split."""


class Relation(NamedTuple):
    """One kind of fact: {s} is its subject, {v} its value."""

    subject: str
    kind: str
    says: tuple[str, ...]
    asks: tuple[str, ...]
    brief: str


class Fact(NamedTuple):
    """`value` is true of `subject` under `relation`; prompts list the `id` of each fact behind them."""

    id: str
    subject: str
    relation: str
    value: str


RELATIONS = {
    "job": Relation(
        "name",
        "job",
        ("{s} is a {v}.", "{s} works as a {v}.", "The job of {s} is {v}."),
        (
            "What is {s}'s job?",
            "What does {s} do for work?",
            "What is the job of {s}?",
            "Tell me, what work does {s} do?",
            "Can you tell me {s}'s job?",
        ),
        "a {v}",
    ),
    "home": Relation(
        "name",
        "place",
        ("{s} lives by the {v}.", "{s} has a house by the {v}.", "The home of {s} is by the {v}."),
        (
            "Where does {s} live?",
            "Where is {s}'s house?",
            "Where is the home of {s}?",
            "Tell me, where does {s} live?",
            "Can you tell me where {s} lives?",
        ),
        "by the {v}",
    ),
    "pet": Relation(
        "name",
        "animal",
        ("{s} has a pet {v}.", "{s} keeps a {v} as a pet.", "The pet of {s} is a {v}."),
        (
            "What pet does {s} have?",
            "What pet does {s} keep?",
            "What kind of pet has {s}?",
            "Tell me, what is the pet of {s}?",
            "Can you tell me what pet {s} has?",
        ),
        "a {v}",
    ),
    "colour": Relation(
        "name",
        "colour",
        ("{s}'s pet is {v}.", "The colour of {s}'s pet is {v}.", "{s} has a {v} pet."),
        (
            "What colour is {s}'s pet?",
            "What is the colour of {s}'s pet?",
            "Tell me, what colour has {s}'s pet?",
            "Can you tell me the colour of {s}'s pet?",
        ),
        "{v}",
    ),
    "food": Relation(
        "name",
        "food",
        ("{s} likes {v} best.", "{s} loves to eat {v}.", "The best food for {s} is {v}."),
        (
            "What food does {s} like best?",
            "What does {s} love to eat?",
            "What is the best food for {s}?",
            "Tell me, what does {s} like to eat?",
            "Can you tell me what food {s} likes best?",
        ),
        "{v}",
    ),
    "friend": Relation(
        "name",
        "name",
        ("{s}'s best friend is {v}.", "The best friend of {s} is {v}.", "{s} is a good friend of {v}."),
        (
            "Who is {s}'s best friend?",
            "Who is the best friend of {s}?",
            "What is the name of {s}'s best friend?",
            "Tell me, who is {s}'s best friend?",
            "Can you tell me who is the best friend of {s}?",
        ),
        "{v}",
    ),
    "tool": Relation(
        "job",
        "tool",
        ("A {s} works with a {v}.", "A good {s} needs a {v}.", "The tool of a {s} is a {v}."),
        (
            "What does a {s} work with?",
            "What tool does a {s} need?",
            "What is the tool of a {s}?",
            "Tell me, what does a {s} need for work?",
        ),
        "a {v}",
    ),
    "eats": Relation(
        "animal",
        "fodder",
        ("A {s} eats {v}.", "A {s} likes {v} best of all.", "The food of a {s} is {v}."),
        (
            "What does a {s} eat?",
            "What is the food of a {s}?",
            "What should I give a {s} to eat?",
            "What does a {s} like best?",
        ),
        "{v}",
    ),
    "bed": Relation(
        "animal",
        "bed",
        ("A {s} sleeps in a {v}.", "The bed of a {s} is a {v}.", "At night a {s} goes to a {v}."),
        (
            "Where does a {s} sleep?",
            "What is the bed of a {s}?",
            "Where does a {s} go at night?",
            "Tell me, where does a {s} sleep?",
        ),
        "in a {v}",
    ),
    "sold": Relation(
        "place",
        "food",
        ("You can buy {v} by the {s}.", "They sell {v} by the {s}.", "The shop by the {s} has {v}."),
        (
            "What can I buy by the {s}?",
            "What do they sell by the {s}?",
            "What does the shop by the {s} have?",
            "Tell me, what can you buy by the {s}?",
        ),
        "{v}",
    ),
    "found": Relation(
        "place",
        "thing",
        ("There is an old {v} by the {s}.", "You can see an old {v} by the {s}.", "By the {s} there is an old {v}."),
        (
            "What old thing is there by the {s}?",
            "What old thing can I see by the {s}?",
            "What can you see by the {s}?",
            "Tell me, what old thing is by the {s}?",
        ),
        "an old {v}",
    ),
}


class World:
    """A village: its names, facts and old tongue. Equal arguments give equal worlds in every process."""

    def __init__(self, seed: int, villagers: int = 48) -> None:
        rng = random.Random(f"village/{seed}/{villagers}")
        self.seed, self.villagers = seed, villagers
        self.key = f"{seed}/{villagers}"
        self.names = _names(villagers)
        self.classes: dict[str, tuple[str, ...]] = {"name": self.names, **lexicon.CLASSES}
        self.facts = {fact.id: fact for fact in self._draw_facts(rng)}
        self.fact_list = list(self.facts.values())
        words = [*lexicon.COLOURS, *lexicon.SIZES, *lexicon.ANIMALS, *lexicon.THINGS]
        self.tongue = dict(zip(words, rng.sample(lexicon.TONGUE, len(words)), strict=True))
        self._by_split = {split: [f for f in self.fact_list if self.split_of(f.id) == split] for split in SPLITS}

    def _draw_facts(self, rng: random.Random) -> list[Fact]:
        facts = []
        for relation, form in RELATIONS.items():
            subjects = self.classes[form.subject]
            if relation == "tool":
                values = list(lexicon.TOOLS)
            elif relation == "friend":
                order = rng.sample(subjects, len(subjects))
                friend = dict(zip(order, order[1:] + order[:1], strict=True))
                values = [friend[subject] for subject in subjects]
            else:
                pool = self.classes[form.kind]
                # Every value about equally often, so that guessing by frequency gains little.
                values = (rng.sample(pool, len(pool)) * (len(subjects) // len(pool) + 1))[: len(subjects)]
                rng.shuffle(values)
            facts += [Fact(f"{s}.{relation}", s, relation, v) for s, v in zip(subjects, values, strict=True)]
        return facts

    def split_of(self, fact_id: str) -> str:
        """The split of `fact_id`, which is a fact or a combination such as `story/Anna/fox/mill`."""
        digest = hashlib.blake2b(f"{self.key}/{fact_id}".encode(), digest_size=4).digest()
        percent = int.from_bytes(digest, "big") % 100
        for split, share in SPLITS.items():
            if percent < share:
                return split
            percent -= share
        raise AssertionError("shares of SPLITS sum to 100")

    def facts_of(self, split: str) -> list[Fact]:
        """The facts that prompts of `split` may ask for."""
        return self._by_split[split]

    def translate(self, adjective: str, noun: str) -> str:
        """`adjective noun` in the old tongue: the noun comes first."""
        return f"{self.tongue[noun]} {self.tongue[adjective]}"


def say(fact: Fact, rng: random.Random) -> str:
    """One of the fact's sentences."""
    return rng.choice(RELATIONS[fact.relation].says).format(s=fact.subject, v=fact.value)


def ask(fact: Fact, rng: random.Random) -> str:
    """One of the fact's questions."""
    return rng.choice(RELATIONS[fact.relation].asks).format(s=fact.subject)


def brief(fact: Fact) -> str:
    """The fact's value as a phrase: `by the mill`."""
    return RELATIONS[fact.relation].brief.format(v=fact.value)


@lru_cache(maxsize=8)
def world_of(seed: int, villagers: int) -> World:
    """The world of these arguments, built once per process."""
    return World(seed, villagers)


def _names(count: int) -> tuple[str, ...]:
    """The first `count` names; after those in the lexicon come names made of syllables."""
    made = (
        f"{first}{last}" for first in ("Ba", "De", "Ki", "Lo", "Mu", "Ra", "Se", "Ti", "Vo", "Zu") for last in _ENDINGS
    )
    return (*lexicon.NAMES, *made)[:count]


_ENDINGS = tuple(f"{c}{v}{n}" for c in "dklmrt" for v in "aeio" for n in "ns")
MAX_VILLAGERS = len(lexicon.NAMES) + 10 * len(_ENDINGS)
