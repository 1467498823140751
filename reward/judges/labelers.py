"""Labelers: each ranks the K answers to a prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptlife.reward.judges.config import PanelConfig
from gptlife.reward.judges.functions import load_function
from gptlife.reward.judges.verdicts import Prompt

Rank = Callable[[Prompt, Sequence[str], random.Random], list[int]]


@dataclass(frozen=True)
class Labeler:
    """One labeler; `rank(prompt, answers, rng)` gives each answer's rank: 1 is the best, equal ranks are ties."""

    name: str
    group: str
    rank: Rank


def load_panel(config: PanelConfig, field: str = "labelers") -> list[Labeler]:
    """The labelers of a config: people of the Village, or a user's function as the only one.

    Raises:
        UserError: when the function can't be loaded.
    """
    if config.function is not None:
        function = load_function(config.function, field)
        return [Labeler(config.function, "function", lambda prompt, answers, rng: list(function(prompt, answers, rng)))]
    from gptlife.data.village.labelers import panel

    assert config.village is not None
    return [Labeler(person.name, person.group, _by_meta(person.rank)) for person in panel(config.village, config.seed)]


def _by_meta(rank: Callable[..., list[int]]) -> Rank:
    return lambda prompt, answers, rng: rank(prompt["meta"], list(answers), rng)
