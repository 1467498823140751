"""What stages that learn from rankings have in common, and the fields of those on TRL's trainers. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from pydantic import Field

from gptlife.data.config import Share
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.stages.training.config import FinetuningConfig

SHOWN = 400
"""Training rankings or answers on which the `train_` metrics are measured."""


def check_data(stage: str) -> Callable[[Any, Collection[str]], None]:
    """The `check` of a stage that learns from `data`, or from inputs that are outputs of `comparisons`."""
    return lambda config, inputs: refuse_nothing(stage, config.data, {*inputs} - {"policy", "base"})


def refuse_nothing(stage: str, data: Data | None, comparisons: Collection[Any]) -> None:
    """Refuse a stage that has neither. Raises UserError."""
    if data is None and not comparisons:
        raise UserError(f"{stage}.data: no rankings; give `data`, or the input `comparisons`")


class PreferenceConfig(FinetuningConfig):
    """Train a policy against the reference that it starts from."""

    data: Data | None = None
    """Rows to learn from; None: those of the input `comparisons`."""
    validation: Data | Share = 0.1
    """Rows held out, or the share of `data`; the input `comparisons` brings its own."""
    beta: float = Field(0.1, gt=0)
    """Strength of the KL constraint: the higher, the nearer the policy stays to the reference. [DPO App. B, which has
    0.5 for TL;DR; KTO section 4: 0.1 is a good default]"""
