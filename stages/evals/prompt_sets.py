"""The sets of prompts of an evaluation: the main one, on which win rates are taken, and further ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptlife.data.forms import prompts
from gptlife.data.sources import Data
from gptlife.reward.judges.verdicts import Prompt

MAIN = "prompts"
"""Name of the main set."""
PROMPTED = "_prompted"
"""Ends the name of a base model that sees worked examples before the prompt."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts that every candidate answers."""

    rows: list[Prompt]
    seed: str
    """What the draws depend on, together with a prompt's number."""
    field: str
    """The config field that the prompts come from; errors begin with it."""


def load_sets(main: Data, further: Mapping[str, Data], seed: int) -> dict[str, PromptSet]:
    """All sets by name, the main one first.

    Raises:
        UserError: when a file can't be read, or a row has no prompt.
    """
    sets = {MAIN: PromptSet(prompts(main, seed), f"evaluation {seed}", "evaluation.prompts")}
    for name, data in further.items():
        field = f"evaluation.further_prompts.{name}"
        sets[name] = PromptSet(prompts(data, seed), f"evaluation {seed} {name}", field)
    return sets
