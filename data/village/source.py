"""The Village as a source of rows: which part of which village, and how many.

`rows` makes the text of a village web, prompts in InstructGPT's ten use cases, demonstrations (some flawed) and
few-shot questions; `judge` knows what is true and asked for; `labelers` are simulated people. All of it is a
function of the source's fields. See docs/village.md.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from gptlife.data.config import Config
from gptlife.data.village import capabilities, tasks, web
from gptlife.data.village.drafts import Desk
from gptlife.data.village.world import MAX_VILLAGERS, World, world_of

VERSION = 2
"""Raise it when the same source gives other rows: it enters their address."""

_TRIES = 20


class VillageSource(Config):
    """Rows of one part of the Village."""

    part: Literal["web", "demonstrations", "prompts", "few_shot"]
    """web: {"text"}. prompts: {"messages", "meta"}. demonstrations: the same with an answer. few_shot: {"task",
    "query", "choices", "gold"}."""
    split: Literal["train", "validation", "test"] = "train"
    """Prompts, demonstrations and few-shot items of two splits share no fact. Web: other pages of the same world."""
    count: int = Field(ge=1)
    """Number of rows."""
    seed: int = 0
    """Seed of the world: who lives there and what is true."""
    draw: int = 0
    """Number of the draw: another one gives other rows of the same split, possibly with some of the same prompts."""
    villagers: int = Field(default=48, ge=12, le=MAX_VILLAGERS)
    """Number of villagers; each has six facts. Above 48 there are too many words for 1024 BPE entries."""
    polite: float = Field(default=0.1, ge=0, le=1)
    """Share of the prompts (and demonstrations) that ask for a polite answer; their answers are never rude."""
    flawed: float = Field(default=0.3, ge=0, le=1)
    """Share of the demonstrations, and of answers on the web, that are wrong, half, rude or rambling."""


def rows(source: VillageSource) -> Iterator[dict[str, Any]]:
    """The source's rows, lazily; row i does not depend on `count`."""
    world = world_of(source.seed, source.villagers)
    stream = random.Random(f"village/{world.key}/{source.part}/{source.split}/{source.draw}")
    if source.part == "web":
        return ({"text": web.document(world, stream, source.flawed)} for _ in range(source.count))
    if source.part == "few_shot":
        return _few_shot(world, source, stream)
    return _prompts(world, source, stream)


def _few_shot(world: World, source: VillageSource, stream: random.Random) -> Iterator[dict[str, Any]]:
    names = tuple(capabilities.TASKS)
    for i in range(source.count):
        desk = Desk(world, source.split, stream, stream)
        yield capabilities.few_shot_row(desk, names[i % len(names)])


def _prompts(world: World, source: VillageSource, stream: random.Random) -> Iterator[dict[str, Any]]:
    """Prompts, each a new one if twenty tries give one, with an answer for the part `demonstrations`."""
    seen: set[str] = set()
    manners = random.Random(f"village/{world.key}/polite/{source.split}/{source.draw}")
    for _ in range(source.count):
        use_case = tasks.draw_use_case(stream)
        for _ in range(_TRIES):
            drawn = tasks.draft(world, source.split, use_case, stream, stream)
            if drawn.prompt not in seen:
                break
        seen.add(drawn.prompt)
        # A separate random stream: with another share of polite prompts the tasks stay the same.
        asked = tasks.politely(drawn, manners)
        drawn = asked if manners.random() < source.polite else drawn
        meta = tasks.meta_of(world, use_case, drawn)
        messages = [{"role": "user", "content": drawn.prompt}]
        if source.part == "demonstrations":
            meta["flaw"] = tasks.draw_flaw(stream, source.flawed)
            messages.append({"role": "assistant", "content": tasks.answer(drawn, meta["flaw"], stream)})
        yield {"messages": messages, "meta": meta}
