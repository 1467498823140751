"""Loading, saving, adapters, and arithmetic that is counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages.modeling import adapters, loading
from gptlife.stages.modeling.adapters import LoRA
from gptlife.stages.runtime import device


def test_what_is_loaded(tiny: Any) -> None:
    model = loading.load_causal(tiny.sft)
    assert model.dtype == torch.float32
    assert model.config.use_cache is False
    assert loading.context_of(model) == 64
    # V D + positions D + 2 layers of 12 D^2 + 13 D + 2 D, with D = 32 and V = 319.
    assert loading.size_of(model) == 319 * 32 + 64 * 32 + 2 * (12 * 32**2 + 13 * 32) + 64
    assert loading.load_tokenizer(tiny.sft).padding_side == "left"


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
    loading.check_causal(model, "x")
    assert model.training


def test_an_encoder_is_no_language_model_here() -> None:
    with pytest.raises(
        UserError, match=r"^architecture: bert looks at the tokens that it is to predict; give a decoder"
    ):
        loading.check_causal(causal("bert", **SIZES), "architecture")
    loading.check_causal(causal("bert", **SIZES, is_decoder=True), "architecture")


def test_a_saved_encoder_is_refused(tiny: Any, tmp_path: Path) -> None:
    causal("bert", **SIZES, entries=400).save_pretrained(str(tmp_path))
    AutoTokenizer.from_pretrained(str(tiny.sft)).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r": bert looks at the tokens that it is to predict"):
        loading.load_causal(tmp_path)
    scorer = AutoConfig.for_model("bert", vocab_size=400, num_labels=1, **SIZES)
    AutoModelForSequenceClassification.from_config(scorer).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r": bert makes no reward model \(no `score` head\); give a decoder"):
        loading.load_scorer(tmp_path)


def test_a_new_head_scores_zero(tiny: Any) -> None:
    model = loading.load_scorer(tiny.sft, fresh_head=True).eval()
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[3, 50, 4, 51]])).logits.tolist() == [[0.0]]
    kept = loading.load_scorer(tiny.reward_model).eval()
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[3, 50]])).logits != kept(input_ids=torch.tensor([[3, 50]])).logits


def test_save(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = loading.load_causal(tiny.sft), loading.load_tokenizer(tiny.sft)
    loading.save(model, tokenizer, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
                     "tokenizer_config.json", "chat_template.jinja"}  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again.config.use_cache is True
    assert AutoTokenizer.from_pretrained(str(tmp_path)).chat_template == tokenizer.chat_template


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


def test_flops_a_token() -> None:
    def flops(kind: str, row: int, **sizes: Any) -> float:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=1000, **sizes))
        return device.flops_per_token(model, row)

    # GPT-2: tied embedding counted once (as the head), positions not. 6 N + 6 L T D.
    n = 1000 * 64 + 3 * (12 * 64**2 + 13 * 64) + 2 * 64
    assert flops("gpt2", 128, n_embd=64, n_layer=3, n_head=2) == 6 * n + 6 * 3 * 128 * 64
    # Llama: untied; the input table is looked up, not multiplied. Per layer 4 D^2 + 3 D F + 2 D.
    n = 1000 * 64 + 2 * (4 * 64**2 + 3 * 64 * 96 + 2 * 64) + 64
    found = flops("llama", 128, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
    assert found == 6 * n + 6 * 2 * 128 * 64


def test_peak_of_a_cpu() -> None:
    peak = device.peak_flops(torch.device("cpu"))
    assert peak is not None
    assert 1e8 < peak < 1e14
    assert device.peak_flops(torch.device("meta")) is None
    assert device.peak_gpu_memory_mb(torch.device("cpu")) is None
