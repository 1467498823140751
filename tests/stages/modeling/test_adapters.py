"""Adapters: nothing at first, and merged they are what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from gptlife.stages.modeling import adapters
from gptlife.stages.modeling.adapters import LoRA


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_merged_is_adapted(kind: str, small: Callable[..., Any]) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = small(kind)
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        model = adapters.add_lora(small(kind), LoRA(rank=2, alpha=4), "CAUSAL_LM").eval()
        assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)  # B is 0 at first
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained
        assert all("lora_" in name for name in trained)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        adapted = model(input_ids=ids).logits
        merged = adapters.merge_lora(model)
        assert_close(merged(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-4)
        assert merged.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(AssertionError):
        assert_close(adapted, before, rtol=1e-4, atol=1e-4)


def test_merging_nothing(small: Callable[..., Any]) -> None:
    model = small()
    assert adapters.merge_lora(model) is model
