"""Models that are refused before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages.modeling import checks, loading

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": SIZES,
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "opt": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "llama": SIZES,
    "mistral": {**SIZES, "num_key_value_heads": 1},
    "qwen3": {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
    "gemma": {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
}


def causal(kind: str, entries: int = 50, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=entries, bos_token_id=0, eos_token_id=0, pad_token_id=1, **fields)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_look_back_only(kind: str) -> None:
    model = causal(kind, **DECODERS[kind]).train()
    checks.check_causal(model, "x")
    assert model.training


def test_an_encoder_is_no_language_model_here() -> None:
    with pytest.raises(
        UserError, match=r"^architecture: bert looks at the tokens that it is to predict; give a decoder"
    ):
        checks.check_causal(causal("bert", **SIZES), "architecture")
    checks.check_causal(causal("bert", **SIZES, is_decoder=True), "architecture")


def test_a_saved_encoder_is_refused(tiny: Any, tmp_path: Path) -> None:
    causal("bert", **SIZES, entries=400).save_pretrained(str(tmp_path))
    AutoTokenizer.from_pretrained(str(tiny.sft)).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r": bert looks at the tokens that it is to predict"):
        loading.load_causal(tmp_path)
    scorer = AutoConfig.for_model("bert", vocab_size=400, num_labels=1, **SIZES)
    AutoModelForSequenceClassification.from_config(scorer).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r": bert makes no reward model \(no `score` head\); give a decoder"):
        loading.load_scorer(tmp_path)
