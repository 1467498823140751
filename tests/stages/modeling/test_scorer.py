"""The reward model's score and its normalisation, against plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForSequenceClassification

from gptlife.data.tokens import Encoded
from gptlife.stages.modeling.forward import SelectedScores
from gptlife.stages.modeling.scorer import fold_normalisation, score

ROWS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16, 17, 18]]
ENCODED = [Encoded.prompt(row) for row in ROWS]
PAD = 1
SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
             "embd_pdrop": 0.0},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
}  # fmt: skip


def scorer(kind: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=40, num_labels=1, initializer_range=0.3, pad_token_id=PAD, eos_token_id=0, bos_token_id=0,
        **SIZES[kind],
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval()


@torch.no_grad()
def padded(model: Any, side: str) -> torch.Tensor:
    """Plain transformers on one padded batch."""
    width = max(map(len, ROWS))
    fill = [[PAD] * (width - len(row)) for row in ROWS]
    ids = torch.tensor([row + pad if side == "right" else pad + row for row, pad in zip(ROWS, fill, strict=True)])
    mask = (ids != PAD).long()
    # GPT-2 has absolute positions: on the left, padding shifts them unless they are counted from the mask.
    positions = {} if side == "right" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return model(input_ids=ids, attention_mask=mask, **positions).logits[:, 0]


@pytest.mark.parametrize("tokens", [1, 8, 1000])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_score_is_that_of_transformers(kind: str, side: str, tokens: int) -> None:
    model = scorer(kind)
    assert_close(score(SelectedScores(model), ENCODED, tokens), padded(model, side), rtol=0, atol=1e-5)
    cut = [Encoded.prompt(row[:-1] or row) for row in ROWS]
    with pytest.raises(AssertionError):  # twin: the score at the last token but one
        assert_close(score(SelectedScores(model), cut, tokens), padded(model, side), rtol=0, atol=1e-5)


def test_left_padding_needs_positions_where_they_are_absolute() -> None:
    model, width = scorer("gpt2"), max(map(len, ROWS))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in ROWS])
    with torch.no_grad():
        shifted = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, 0]
    with pytest.raises(AssertionError):
        assert_close(shifted, score(SelectedScores(model), ENCODED), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("gain", "bias"), [(2.5, -0.75), (0.1, 3.0), (1.0, 0.0)])
def test_normalisation_is_folded_into_gpt2(gain: float, bias: float, tmp_path: Path) -> None:
    model = scorer("gpt2")
    expected = padded(model, "right") * gain + bias
    fold_normalisation(model, gain, bias)
    assert_close(score(SelectedScores(model), ENCODED), expected, rtol=0, atol=1e-5)
    model.save_pretrained(str(tmp_path))
    plain = AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    assert_close(padded(plain, "right"), expected, rtol=0, atol=1e-5)
    assert not hasattr(plain.config, "reward_bias")


def test_folding_twice_is_the_product() -> None:
    model = scorer("gpt2")
    before = padded(model, "right")
    fold_normalisation(model, 2.0, 1.0)
    fold_normalisation(model, 3.0, -0.5)
    assert_close(padded(model, "right"), 6.0 * before + 2.5, rtol=0, atol=1e-5)


def test_a_norm_without_bias_keeps_the_shift_in_the_config(tmp_path: Path) -> None:
    model = scorer("llama")
    before = padded(model, "right")
    fold_normalisation(model, 2.0, 1.0)
    fold_normalisation(model, 3.0, -0.5)
    model.save_pretrained(str(tmp_path))
    plain = AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    assert plain.config.reward_bias == pytest.approx(2.5)
    assert_close(score(SelectedScores(plain), ENCODED), 6.0 * before + 2.5, rtol=0, atol=1e-5)
    assert_close(padded(plain, "right"), 6.0 * before, rtol=0, atol=1e-5)  # as the docstring says: without the shift


def test_a_head_of_zeros_can_be_shifted() -> None:
    model = scorer("gpt2")
    torch.nn.init.zeros_(model.score.weight)
    fold_normalisation(model, 2.0, 1.5)
    assert score(SelectedScores(model), ENCODED).tolist() == [1.5] * 4
