"""Lengths that configs ask for, against the model's context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig

from gptlife.data.errors import UserError
from gptlife.stages.modeling import adapters, lengths
from gptlife.stages.modeling.adapters import LoRA

CONFIG = AutoConfig.for_model("gpt2", n_positions=64)
UNBOUNDED = AutoConfig.for_model("bloom")


def test_the_context(small: Callable[..., Any]) -> None:
    assert lengths.context_of(CONFIG) == 64
    assert lengths.context_of(UNBOUNDED) == 2**20
    model = adapters.add_lora(small("gpt2"), LoRA(rank=2, alpha=4), "CAUSAL_LM")
    assert lengths.context_of(model) == model.get_base_model().config.n_positions


@pytest.mark.parametrize(("length", "limit", "row"), [(None, 64, 64), (64, 64, 64), (10, 10, 10)])
def test_a_length_that_fits(length: int | None, limit: int, row: int) -> None:
    assert lengths.limit_of(length, CONFIG, "x") == limit
    assert lengths.row_length(length, CONFIG, "x") == row


def test_a_row_without_a_length_has_128_tokens() -> None:
    assert lengths.row_length(None, UNBOUNDED, "x") == 128
    assert lengths.limit_of(None, UNBOUNDED, "x") == 2**20


def test_a_length_that_does_not_fit() -> None:
    for function in (lengths.limit_of, lengths.row_length, lengths.check_context):
        with pytest.raises(
            UserError, match=r"^sft\.max_length: 65 is longer than the model's context of 64; lower it$"
        ):
            function(65, CONFIG, "sft.max_length")
