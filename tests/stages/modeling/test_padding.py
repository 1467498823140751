"""Adopted models without a PAD of their own: it is added, with a mean row in the model, and both are saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from gptlife.data.tokens import CHAT_TEMPLATE, Encoded, encode_text, tokenizer_hash
from gptlife.stages import ppo, reward_model, sft
from gptlife.stages.modeling import loading
from gptlife.stages.modeling.forward import SelectedScores
from gptlife.stages.modeling.scorer import score

SPECIALS = ("<|endoftext|>", "<|user|>", "<|assistant|>")
SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
              "max_position_embeddings": 64, "initializer_range": 0.3, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.fixture
def adopted(tmp_path: Path) -> Callable[..., Path]:
    """`adopted("gpt2", pad)`: a random model of bytes and three special tokens, its PAD missing (None) or EOS."""

    def make(kind: str, pad: str | None, spare: int = 0) -> Path:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
        backend = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=SPECIALS[0],
            pad_token=pad,
            additional_special_tokens=list(SPECIALS[1:]),
            chat_template=CHAT_TEMPLATE,
        )
        assert len(tokenizer) == 259
        torch.manual_seed(0)
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None if pad is None else 0}
        config = AutoConfig.for_model(kind, vocab_size=259 + spare, **ids, **SIZES[kind])
        output = tmp_path / f"{kind} {pad} {spare}"
        AutoModelForCausalLM.from_config(config).save_pretrained(str(output))
        tokenizer.save_pretrained(str(output))
        return output

    return make


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
def test_a_token_of_its_own(pad: str | None, adopted: Callable[..., Path], tmp_path: Path) -> None:
    path = adopted("gpt2", pad)
    plain, tokenizer = AutoTokenizer.from_pretrained(str(path)), loading.load_tokenizer(path)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("<|pad|>", 259, 0)
    for text in ("Hi <|pad|> there", "<|endoftext|>"):
        assert encode_text(tokenizer, text) == encode_text(plain, text)
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    # A policy that was adopted and a reward model that was trained from it are of one family.
    assert tokenizer_hash(loading.load_tokenizer(path)) == tokenizer_hash(loading.load_tokenizer(tmp_path / "saved"))


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
def test_a_token_that_is_there_is_taken(pad: str | None, tiny: Any, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(str(tiny.sft)).save_pretrained(str(tmp_path))
    vocabulary = AutoTokenizer.from_pretrained(str(tiny.sft))
    vocabulary.pad_token = pad
    vocabulary.save_pretrained(str(tmp_path))
    assert loading.load_tokenizer(tmp_path).pad_token_id == 1
    model = loading.load_causal(tmp_path)
    assert model.config.pad_token_id == 1
    assert_close(model.state_dict(), loading.load_causal(tiny.sft).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_its_row_is_the_mean_row(kind: str, pad: str | None, adopted: Callable[..., Path]) -> None:
    path = adopted(kind, pad)
    plain, model = AutoModelForCausalLM.from_pretrained(str(path)).eval(), loading.load_causal(path).eval()
    assert (model.config.vocab_size, model.config.pad_token_id) == (260, 259)
    tokens = torch.tensor([[1, 40, 0, 41, 2, 50, 0]])
    with torch.no_grad():
        before, after = plain(input_ids=tokens).logits, model(input_ids=tokens).logits
    assert_close(after[..., :259], before, rtol=0, atol=1e-5)
    assert_close(after[..., 259], before.mean(-1), rtol=0, atol=1e-4)
    table = plain.get_input_embeddings().weight
    assert_close(model.get_input_embeddings().weight[259], table.mean(0), rtol=0, atol=1e-6)
    assert not torch.allclose(model.get_input_embeddings().weight[259], table[0], atol=1e-2)
    # The end-of-text token learns: PAD's row is kept out of training by some families.
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert float(model.get_input_embeddings().weight.grad[0].abs().max()) > 0


def test_a_spare_row_is_used(adopted: Callable[..., Path]) -> None:
    model = loading.load_causal(adopted("gpt2", None, spare=5))
    assert (model.config.vocab_size, model.config.pad_token_id) == (264, 259)


@torch.no_grad()
def scores_by_transformers(model: Any, rows: list[list[int]], pad: int) -> list[float]:
    """All rows in one batch, padded on the right, as a user of the saved model would."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return [float(value) for value in model(input_ids=tokens, attention_mask=mask).logits[:, 0]]


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
def test_through_the_life(pad: str | None, adopted: Callable[..., Path], tiny: Any, run: Any, tmp_path: Path) -> None:
    base, tuned, reward, aligned = adopted("gpt2", pad), tmp_path / "sft", tmp_path / "reward", tmp_path / "ppo"
    fields = {"data": str(tiny.conversations), "epochs": 1, "batch_size": 16, "learning_rate": 1e-3}
    run(sft.STAGE, fields, tuned, base=base)
    ranked = {"batch_size": 8, "learning_rate": 1e-3, "demonstrations": str(tiny.conversations)}
    run(reward_model.STAGE, ranked, reward, base=tuned, comparisons=tiny.comparisons)
    steps = {"steps": 1, "batch_size": 4, "minibatch_size": 4, "max_new_tokens": 4, "prompts": str(tiny.prompts)}
    metrics = run(ppo.STAGE, steps, aligned, policy=tuned, reward=reward)
    assert (metrics["kl"], metrics["first_ratio"]) == (0.0, 1.0)
    for output in (tuned, reward, aligned, aligned / "ema", aligned / "value"):
        config, tokenizer = AutoConfig.from_pretrained(str(output)), AutoTokenizer.from_pretrained(str(output))
        assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (260, 259, 0)
        assert (len(tokenizer), tokenizer.pad_token, tokenizer.pad_token_id) == (260, "<|pad|>", 259)

    rows = [[1, 40, 41, 2, 50, 0], [1, 42, 2, 60, 61, 62, 63, 0], [1, 43, 2, 0]]
    model = AutoModelForSequenceClassification.from_pretrained(str(reward)).eval()
    ours = score(SelectedScores(loading.load_scorer(reward)).eval(), [Encoded.prompt(row) for row in rows]).tolist()
    assert ours == pytest.approx(scores_by_transformers(model, rows, 259), abs=1e-5)
    model.config.pad_token_id = 0  # twin: with PAD = EOS the score is read before the end of the answer
    assert ours != pytest.approx(scores_by_transformers(model, rows, 0), abs=1e-5)


@pytest.mark.parametrize("stage", ["reward_model", "ppo"])
def test_a_later_stage_may_be_the_first(
    stage: str, adopted: Callable[..., Path], tiny: Any, run: Any, tmp_path: Path
) -> None:
    base = adopted("gpt2", "<|endoftext|>")
    if stage == "reward_model":
        run(reward_model.STAGE, {"batch_size": 8}, tmp_path / "one", base=base, comparisons=tiny.comparisons)
    else:
        fields = {"steps": 1, "batch_size": 4, "minibatch_size": 4, "max_new_tokens": 4, "prompts": str(tiny.prompts)}
        function = {"reward_function": f"{tiny.functions}:count_e"}
        assert run(ppo.STAGE, {**fields, **function}, tmp_path / "one", policy=base)["kl"] == 0.0
    config = AutoConfig.from_pretrained(str(tmp_path / "one"))
    assert (config.vocab_size, config.pad_token_id) == (260, 259)
