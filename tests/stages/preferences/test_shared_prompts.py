"""A prompt read once for all its answers: the same scores, loss and gradient as K rows of their own."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from gptlife.data.tokens import Encoded
from gptlife.stages import reward_model
from gptlife.stages.modeling.forward import SelectedScores
from gptlife.stages.preferences.rankings import Rankings, sharing_is_exact

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
             "embd_pdrop": 0.0},
    "llama": {},
    "qwen2": {"num_key_value_heads": 1},
    "gpt_neox": {},
}  # fmt: skip
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 64}  # fmt: skip


def reader(kind: str, attention: str = "sdpa") -> SelectedScores:
    """A random scalar-head model far from uniform."""
    torch.manual_seed(0)
    sizes = SIZES[kind] if kind == "gpt2" else {**WIDE, **SIZES[kind]}
    config = AutoConfig.for_model(
        kind,
        vocab_size=50,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        num_labels=1,
        initializer_range=0.3,
        **sizes,
    )
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()
    torch.nn.init.normal_(model.score.weight)
    return SelectedScores(model)


def drawn(count: int) -> list[dict[str, Any]]:
    """Rankings of 2 to 9 answers: some equal, some an empty continuation of the prompt, some of one beginning."""
    rng, rows = random.Random(0), []
    for _ in range(count):
        prompt = [rng.randrange(2, 50) for _ in range(rng.randint(1, 9))]
        answers = [prompt + [rng.randrange(2, 50) for _ in range(rng.randint(0, 7))] for _ in range(rng.randint(1, 7))]
        answers += [list(answers[0]), [*answers[0], 7]]
        rows.append(
            {"encoded": list(map(Encoded.prompt, answers)), "ranks": [rng.randint(1, 3) for _ in answers[1:]] + [4]}
        )
    return rows


def loss_and_gradient(model: SelectedScores, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss, _ = reward_model._loss(model, batch)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", SIZES)
def test_the_same_loss_and_gradient(kind: str) -> None:
    model, rows = reader(kind), drawn(6)
    plain, shared = (Rankings(rows, how).collate(range(6)) for how in (False, True))
    one, two = loss_and_gradient(model, plain), loss_and_gradient(model, shared)
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    torch.testing.assert_close(two[1], one[1], rtol=1e-4, atol=1e-4)
    assert sharing_is_exact(model, rows)
    # Twins: answers that see each other, and positions that run on.
    for name, value in (
        ("attention_mask", torch.ones_like(shared.inputs["attention_mask"]).tril()),
        ("position_ids", torch.arange(shared.inputs["input_ids"].shape[1]).expand_as(shared.inputs["input_ids"])),
    ):
        broken = loss_and_gradient(model, replace(shared, inputs={**shared.inputs, name: value}))
        assert broken[0] != pytest.approx(one[0], rel=1e-2)


def test_a_row_by_hand() -> None:
    """[5 6] is said once; answers add 7 8, nothing but their own 6, and 9."""
    answers = [Encoded.prompt(tokens) for tokens in ([5, 6, 7, 8], [5, 6], [5, 6, 9])]
    rows = [{"encoded": answers, "ranks": [1, 2, 3]}]
    examples = Rankings(rows, shared=True)
    batch = examples.collate([0])
    # What all begin with is [5]: were it [5 6], the second answer would have no token to be read at.
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 6, 6, 9]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 1, 1, 2]]
    assert batch.select.int().tolist() == [[0, 0, 0, 1, 1, 0, 1]]
    assert batch.inputs["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1, 1],
    ]
    assert examples.lengths == [7]
    assert Rankings(rows).lengths == [12]


def test_a_model_that_does_not_heed_the_mask_is_found_out() -> None:
    """Eager attention adds a mask to its scores, and a bool one adds next to nothing."""
    rows = drawn(4)
    assert sharing_is_exact(reader("llama"), rows)
    assert not sharing_is_exact(reader("llama", "eager"), rows)

    class Deaf(SelectedScores):
        def forward(self, inputs: Any, select_BT: torch.Tensor) -> torch.Tensor:
            return super().forward({"input_ids": inputs["input_ids"]}, select_BT)

    assert not sharing_is_exact(Deaf(reader("llama").model), rows)


def test_the_stage_trains_the_same_either_way(tiny: Any, run: Any, tmp_path: Any, weights: Any) -> None:
    fields = {"learning_rate": 1e-3, "batch_size": 4, "adam_eps": 1e-5}
    inputs = {"base": tiny.sft, "comparisons": tiny.comparisons}
    metrics = [
        run(reward_model.STAGE, {**fields, "share_prompts": how}, tmp_path / str(how), **inputs)
        for how in (True, False)
    ]
    assert metrics[0]["tokens"] < 0.8 * metrics[1]["tokens"]
    assert metrics[0]["validation_accuracy"] == pytest.approx(metrics[1]["validation_accuracy"], abs=0.02)
    one, two = weights(tmp_path / "True"), weights(tmp_path / "False")
    for name, tensor in two.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-3, atol=1e-4)
