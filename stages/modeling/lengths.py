"""How long a row may be: the model's context, and the lengths that configs ask for. All lengths are in tokens."""

from __future__ import annotations

from typing import Any

from gptlife.data.errors import UserError
from gptlife.stages.modeling.forward import unwrapped

DEFAULT_ROW = 128
"""Tokens of a row of text where a config names none and the model's context allows it."""


def context_of(model: Any) -> int:
    """The longest row that `model` can read; 2**20 where its config has no bound. A config will do as well."""
    config = getattr(unwrapped(model), "config", model)
    return int(getattr(config, "max_position_embeddings", None) or 2**20)


def check_context(length: int, model: Any, field: str, act: str = "lower it") -> int:
    """`length`, where a row of so many tokens fits into the context of `model` (a config will do as well).

    Args:
        field: the config field that asks for this length, for the error.
        act: what the user should do about it, for the error.

    Raises:
        UserError: when it doesn't fit.
    """
    if length > context_of(model):
        raise UserError(f"{field}: {length} is longer than the model's context of {context_of(model)}; {act}")
    return length


def limit_of(length: int | None, model: Any, field: str) -> int:
    """The longest conversation: `length` after `check_context`, or the model's context."""
    return context_of(model) if length is None else check_context(length, model, field)


def row_length(length: int | None, model: Any, field: str) -> int:
    """Tokens of a row of text: `length` after `check_context`, or `DEFAULT_ROW` where the context allows it."""
    return min(DEFAULT_ROW, context_of(model)) if length is None else check_context(length, model, field)
