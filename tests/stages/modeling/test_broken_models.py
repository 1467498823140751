"""Adopted models that aren't what they say: refused in one line, where transformers would draw weights at random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages.modeling import loading

SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 and its tokenizer, as somebody would adopt them."""
    path, tokenizer = tmp_path_factory.mktemp("adopted"), AutoTokenizer.from_pretrained(str(tiny.tokenizer))
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    return path


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """A damage that changes the tensors."""

    def damage(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return damage


def without(part: str) -> Damage:
    return weights(lambda tensors: [tensors.pop(name) for name in [*tensors] if part in name])


def config(**fields: Any) -> Damage:
    """A damage that changes config.json."""

    def damage(path: Path) -> None:
        known = json.loads((path / "config.json").read_text(encoding="utf-8"))
        (path / "config.json").write_text(json.dumps({**known, **fields}), encoding="utf-8")

    return damage


def content(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """A damage that changes a file."""
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


def first_is_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["transformer.h.1.mlp.c_fc.bias"][0] = torch.nan


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a layer without its weights": (
        without("h.1."), r"GPT2LMHeadModel needs transformer\.h\.1\.attn\.c_attn\.bias and 11 more, and its weights"),
    "one tensor missing": (
        without("ln_f.bias"), r"GPT2LMHeadModel needs transformer\.ln_f\.bias, and its weights have none"),
    "fewer layers in the config": (
        config(n_layer=1), r"its config leaves transformer\.h\.1\..* out, a layer that its weights"),
    "another width in the config": (
        config(n_embd=32), r"transformer\.h\.0\.attn\.c_attn\.bias has shape \[48\], its config wants \[96\]; give"),
    "heads that don't divide the width": (config(n_head=7), r"no model can be loaded \(.*divisible by num_heads"),
    "a word for a number": (config(vocab_size="many"), r"no model can be loaded \(Validation error for field 'vocab_"),
    "no model type": (config(model_type=None), r"no model can be loaded \("),
    "a model type that is none": (config(model_type="gpt9"), r"no model can be loaded \("),
    "config cut short": (content("config.json", lambda data: data[:30]), r"no model can be loaded \(.*not a valid"),
    "weights cut short": (content("model.safetensors", lambda data: data[:-8]), r"no model can be loaded \(Error"),
    "weights of zeros": (content("model.safetensors", lambda data: bytes(len(data))), r"no model can be loaded \("),
    "weights that are empty": (content("model.safetensors", lambda data: b""), r"no model can be loaded \("),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), r"no model can be loaded \("),
    "a weight that is no number": (weights(first_is_nan), r"its logits are nan; its weights are damaged, give"),
    "tokenizer cut short": (content("tokenizer.json", lambda data: data[:99]), r"no tokenizer can be loaded \("),
    "an empty tokenizer": (content("tokenizer.json", lambda data: b"{}"), r"no tokenizer can be loaded \("),
    "no tokenizer": (
        lambda path: [file.unlink() for file in path.glob("tokenizer*")], r"no tokenizer can be loaded \(it has no"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_model_is_one_line(name: str, whole: Path, tmp_path: Path) -> None:
    damage, said = DAMAGES[name]
    path = shutil.copytree(whole, tmp_path / "model")
    loading.load_causal(path)
    damage(path)
    with pytest.raises(UserError, match=said) as error:
        loading.load_causal(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_model(whole: Path, tmp_path: Path) -> None:
    path = shutil.copytree(whole, tmp_path / "model")
    small = AutoConfig.for_model("gpt2", vocab_size=300, bos_token_id=0, eos_token_id=0, **SIZES)
    AutoModelForCausalLM.from_config(small).save_pretrained(str(path))
    entries = len(AutoTokenizer.from_pretrained(str(path)))
    with pytest.raises(UserError, match=rf"tokens up to number {entries - 1}, its model 300 entries: they"):
        loading.load_causal(path)


def test_a_language_model_is_no_reward_model(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r": GPT2ForSequenceClassification needs score\.weight, and its"):
        loading.load_reward(whole)
    loading.load_scorer(whole, fresh_head=True)
    path = shutil.copytree(whole, tmp_path / "model")
    two = AutoModelForSequenceClassification.from_pretrained(str(whole), num_labels=2)
    two.save_pretrained(str(path))
    with pytest.raises(UserError, match=r": score\.weight has shape \[2, 16\], its config wants \[1, 16\]"):
        loading.load_reward(path)


def test_what_older_versions_wrote_beside_the_weights_is_no_damage(whole: Path, tmp_path: Path) -> None:
    path = shutil.copytree(whole, tmp_path / "model")
    weights(lambda tensors: tensors.update({"transformer.h.0.attn.old_buffer": torch.ones(2)}))(path)
    loading.load_causal(path)
