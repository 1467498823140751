"""Loading, saving, adapters, and arithmetic that is counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages.modeling import loading


def test_what_is_loaded(tiny: Any) -> None:
    model = loading.load_causal(tiny.sft)
    assert model.dtype == torch.float32
    assert model.config.use_cache is False
    # V D + positions D + 2 layers of 12 D^2 + 13 D + 2 D, with D = 32 and V = 319.
    assert model.num_parameters() == 319 * 32 + 64 * 32 + 2 * (12 * 32**2 + 13 * 32) + 64
    assert loading.load_tokenizer(tiny.sft).padding_side == "left"


def test_a_tokenizer_is_loaded_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loading.load_tokenizer(tiny.sft)
    paths: list[Path] = []
    load = loading.load_tokenizer
    monkeypatch.setattr(loading, "load_tokenizer", lambda path: paths.append(path) or load(path))
    expected = loading.load_causal(tiny.sft)
    assert paths == [tiny.sft]
    given = loading.load_causal(tiny.sft, tokenizer)
    loading.load_scorer(tiny.reward_model, tokenizer=tokenizer)
    assert paths == [tiny.sft]
    assert_close(given.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_a_reward_model_is_no_language_model(tiny: Any) -> None:
    """Its embeddings are tied, so that no weight of a language model is missing in it."""
    with pytest.raises(UserError, match=r": GPT2ForSequenceClassification gives scores and is no language model; give"):
        loading.load_causal(tiny.reward_model)
    assert loading.load_causal(tiny.sft) is not None


def test_dropouts_are_off_but_those_given(tiny: Any) -> None:
    config = loading.load_causal(tiny.sft, dropouts={"resid_pdrop": 0.25}).config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.25, 0.0, 0.0)


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
