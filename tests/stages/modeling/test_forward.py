"""Selected logits and scores against full forward passes of plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from gptlife.stages.modeling import forward
from gptlife.stages.modeling.forward import pad_right

ROWS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16, 17]]
SELECT = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0]]).bool()
PLACES = [(0, 1), (0, 2), (1, 0), (1, 3), (1, 5), (2, 3)]
SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    # Its logits are divided by a number: the head alone would be wrong.
    "granite": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
                "intermediate_size": 32, "logits_scaling": 8.0},
}  # fmt: skip


def inputs_of(fill: int) -> dict[str, torch.Tensor]:
    return {"input_ids": pad_right(ROWS, fill, torch.device("cpu"))}


def causal(kind: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=40, initializer_range=0.3, pad_token_id=1, eos_token_id=0, bos_token_id=0, **SIZES[kind]
    )
    return AutoModelForCausalLM.from_config(config).eval()


def expected(model: Any) -> torch.Tensor:
    """Each row alone, without padding."""
    full = [model(input_ids=torch.tensor([row])).logits[0] for row in ROWS]
    return torch.stack([full[row][place] for row, place in PLACES])


@torch.no_grad()
@pytest.mark.parametrize(("kind", "direct"), [("gpt2", True), ("llama", True), ("granite", False)])
def test_selected_logits(kind: str, direct: bool) -> None:
    model = causal(kind)
    reader = forward.SelectedLogits(model)
    assert reader.direct is direct
    found = reader(inputs_of(0), SELECT)
    assert_close(found, expected(model), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):  # twin: one position further left
        assert_close(
            reader(inputs_of(0), SELECT.roll(-1, 1)),
            expected(model),
            rtol=0,
            atol=1e-5,
        )


@torch.no_grad()
def test_padding_is_never_read() -> None:
    reader = forward.SelectedLogits(causal("gpt2"))
    assert torch.equal(reader(inputs_of(0), SELECT), reader(inputs_of(39), SELECT))


@torch.no_grad()
def test_adapters_stay_active() -> None:
    plain = expected(causal("gpt2"))
    model = get_peft_model(causal("gpt2"), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    reader = forward.SelectedLogits(model)
    inputs = inputs_of(0)
    adapted = reader(inputs, SELECT)
    assert_close(adapted, expected(model), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(adapted, plain, rtol=0, atol=1e-5)
    with model.disable_adapter():
        assert_close(reader(inputs, SELECT), plain, rtol=0, atol=1e-5)
