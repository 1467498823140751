"""Prompts in InstructGPT's ten use cases, and people's answers to them, good and flawed.

Shares of the use cases: Ouyang et al. 2022, Table 1. A flawed demonstration has one of four flaws: it names a wrong
thing, follows half of the instruction or none of it, is rude, or rambles. Left out: answers with several flaws, and
dialogues of several turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from gptlife.data.village import answering, lexicon, writing
from gptlife.data.village.drafts import Desk, Draft
from gptlife.data.village.world import World

USE_CASES: dict[str, tuple[float, Callable[[Desk], Draft]]] = {
    "generation": (45.6, writing.generation),
    "open_qa": (12.4, answering.open_qa),
    "brainstorming": (11.2, writing.brainstorming),
    "chat": (8.4, writing.chat),
    "rewrite": (6.6, writing.rewrite),
    "summarization": (4.2, answering.summarization),
    "classification": (3.5, answering.classification),
    "other": (3.5, answering.other),
    "closed_qa": (2.6, answering.closed_qa),
    "extract": (1.9, answering.extract),
}
"""Use case -> (share of the prompts in percent [InstructGPT Table 1], how to draw one)."""

FLAWS = ("wrong", "half", "rude", "rambling")
REQUESTS = ("Answer politely.", "Be kind when you answer.", "Please be polite.")
"""Beginnings of prompts that ask for manners."""
POLITE = 0.1
"""Share of the exercises on the web that ask for manners."""
COURTESIES = ("Of course.", "I hope that helps.")
LONGEST = 45
"""Words in the longest answer."""

_NAMES = tuple(USE_CASES)
_WEIGHTS = tuple(weight for weight, _ in USE_CASES.values())


def draw_use_case(rng: random.Random) -> str:
    """A use case, by the weights of the table."""
    return rng.choices(_NAMES, _WEIGHTS)[0]


def draft(world: World, split: str, use_case: str, asking: random.Random, saying: random.Random) -> Draft:
    """A task of `use_case`. `asking` alone decides the prompt, `saying` the wording of the answers."""
    return USE_CASES[use_case][1](Desk(world, split, asking, saying))


def politely(drawn: Draft, rng: random.Random) -> Draft:
    """The same task after a request to be polite; its answers are never rude."""
    return drawn._replace(prompt=f"{rng.choice(REQUESTS)} {drawn.prompt}", wanted={**drawn.wanted, "polite": True})


def meta_of(world: World, use_case: str, drawn: Draft) -> dict[str, Any]:
    """JSON-able: what the judge needs, and the ids of the facts behind the prompt."""
    return {
        "use_case": use_case,
        **drawn.wanted,
        "prompt": drawn.prompt,
        "facts": drawn.facts,
        "world": [world.seed, world.villagers],
    }


def draw_flaw(rng: random.Random, flawed: float) -> str | None:
    """A flaw with probability `flawed`, each kind with equal probability; else None."""
    return rng.choice(FLAWS) if rng.random() < flawed else None


def answer(drawn: Draft, flaw: str | None, rng: random.Random) -> str:
    """An answer with the given flaw, or a good one."""
    if flaw == "wrong":
        return drawn.wrong
    if flaw == "half":
        return drawn.half
    if flaw == "rude" and not drawn.wanted.get("polite"):
        remark = rng.choice(lexicon.RUDE_REMARKS)
        return f"{remark} {drawn.good}" if rng.random() < 0.4 else f"{drawn.good} {remark}"
    if flaw == "rambling":
        return _ramble(drawn, rng)
    return _courteous(drawn, rng)


def _courteous(drawn: Draft, rng: random.Random) -> str:
    """Some people add a kind phrase to answers of free form."""
    if drawn.wanted["task"] not in ("fact", "list", "reading") or rng.random() > 0.2:
        return drawn.good
    first, last = COURTESIES
    return f"{first} {drawn.good}" if rng.random() < 0.5 else f"{drawn.good} {last}"


def _ramble(drawn: Draft, rng: random.Random) -> str:
    """The good answer, then aimless talk that may repeat itself, beyond the judge's limit on words."""
    enough = min(drawn.wanted["words"] + rng.randint(4, 14), LONGEST - 2)
    said = [drawn.good]
    while (length := sum(len(part.split()) for part in said)) < enough:
        fitting = [part for part in lexicon.RAMBLES if length + len(part.split()) <= LONGEST]
        said.append(rng.choice(fitting))
    return " ".join(said)
