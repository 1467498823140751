"""Architectures by name against the papers' parameter counts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.stages.modeling.presets import PRESETS, Architecture

# Brown et al. 2020, Table 2.1.
GPT3 = {
    "gpt3-small": 125e6,
    "gpt3-medium": 350e6,
    "gpt3-large": 760e6,
    "gpt3-xl": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13e9,
    "gpt3-175b": 175e9,
}
# Counts of the published checkpoints. Per layer 12 D^2 + 13 D; embeddings (V + positions) D; GPT-2's last norm 2 D.
EXACT = {
    ("gpt1", 40478): 116_534_784,
    ("gpt2-small", 50257): 124_439_808,
    ("gpt2-medium", 50257): 354_823_168,
    ("gpt2-large", 50257): 774_030_080,
    ("gpt2-xl", 50257): 1_557_611_200,
}


def size(preset: str, vocabulary: int) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Architecture(preset=preset).build(vocabulary, 0, 1))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("preset", "vocabulary"), EXACT)
def test_published_sizes(preset: str, vocabulary: int) -> None:
    assert size(preset, vocabulary) == EXACT[preset, vocabulary]


@pytest.mark.parametrize("preset", GPT3)
def test_gpt3_table(preset: str) -> None:
    assert size(preset, 50257) == pytest.approx(GPT3[preset], rel=0.03)


def test_every_preset_is_checked() -> None:
    assert set(PRESETS) == set(GPT3) | {preset for preset, _ in EXACT}
    # Twin: a neighbour in the table is not within the tolerance.
    assert size("gpt3-xl", 50257) != pytest.approx(GPT3["gpt3-large"], rel=0.03)


def test_special_tokens_and_changes() -> None:
    config = Architecture(preset="gpt2-small", fields={"n_layer": 3}).build(300, 7, 8)
    assert (config.vocab_size, config.eos_token_id, config.bos_token_id, config.pad_token_id) == (300, 7, 7, 8)
    assert (config.n_layer, config.n_embd) == (3, 768)


def test_an_unknown_preset_is_refused_when_it_is_read() -> None:
    with pytest.raises(UserError) as error:
        decode(Architecture, {"preset": "gpt2-smal"}, "r.yaml: pretrain.architecture")
    assert str(error.value) == (
        "r.yaml: pretrain.architecture.preset: no preset 'gpt2-smal'; did you mean 'gpt2-small'?"
    )


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture(model_type="lama"), "no model type 'lama'; did you mean 'llama'"),
        (Architecture(fields={"n_layers": 2}), "fields.n_layers: gpt2 has no such field; did you mean 'n_layer'"),
    ],
)
def test_refusals(architecture: Architecture, message: str) -> None:
    with pytest.raises(UserError, match="architecture") as error:
        architecture.build(100, 0, 1)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
