"""Stage `dpo`: TRL's loss and gradient against a loop by hand, metrics against plain transformers, refusals."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded
from gptlife.stages import dpo
from gptlife.stages.preferences.trl_trainer import DPOTrainer

FIELDS = {
    "pairs": "best_worst", "learning_rate": 1e-3, "batch_size": 6, "warmup_steps": 1, "validate_every": 2,
    "adam_eps": 1e-5,
}  # fmt: skip
ANSWERS = [[7, 8, 9, 0], [11, 12], [13, 0]]
ROWS = [
    {"prompt_ids": [3, 20, 21, 4], "chosen_ids": ANSWERS[0], "rejected_ids": ANSWERS[1]},
    {"prompt_ids": [3, 22, 4], "chosen_ids": ANSWERS[2], "rejected_ids": ANSWERS[0]},
]


@pytest.fixture
def dpo_loss(logprob: Any) -> Any:
    """Eq 7, a pair at a time."""

    def loss(policy: Any, reference: Any, beta: float, smoothing: float, sign: int = 1) -> torch.Tensor:
        losses = []
        for row in ROWS:
            ratios = []
            for side in ("chosen_ids", "rejected_ids"):
                with torch.no_grad():
                    before = logprob(reference, row["prompt_ids"], row[side])
                ratios.append(logprob(policy, row["prompt_ids"], row[side]) - before)
            right = torch.sigmoid(sign * beta * (ratios[0] - ratios[1]))
            losses.append(-(1 - smoothing) * torch.log(right) - smoothing * torch.log(1 - right))
        return torch.stack(losses).mean()

    return loss


@pytest.fixture(scope="module")
def trained(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("dpo") / "one"
    return output, run(dpo.STAGE, FIELDS, output, policy=tiny.sft, comparisons=tiny.comparisons)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_the_papers(
    smoothing: float, tiny: Any, trainer_of: Any, plain: Any, dpo_loss: Any
) -> None:
    options = dpo.loss_options(smoothing)
    trainer = trainer_of(DPOTrainer, dpo.STAGE, tiny.pretrain, ROWS, options, beta=0.3, label_smoothing=smoothing)
    policy, reference = plain(tiny.sft), plain(tiny.pretrain)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    expected = dpo_loss(policy, reference, 0.3, smoothing)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    assert_close(theirs, {name: p.grad for name, p in policy.named_parameters()}, rtol=1e-3, atol=1e-5)
    # Twins: the sign of the margin, and (TRL's `sigmoid` alone has none) the smoothing.
    flipped = dpo_loss(policy, reference, 0.3, smoothing, sign=-1)
    assert loss.item() != pytest.approx(flipped.item(), rel=1e-2)
    policy.zero_grad()
    flipped.backward()
    with pytest.raises(AssertionError):
        assert_close(theirs, {name: p.grad for name, p in policy.named_parameters()}, rtol=1e-3, atol=1e-5)
    assert loss.item() != pytest.approx(dpo_loss(policy, reference, 0.3, 0.2 - smoothing).item(), rel=1e-2)


def test_the_first_loss_is_log_two(
    trained: tuple[Path, dict[str, Any]], tiny: Any, trainer_of: Any, log_of: Any
) -> None:
    first = log_of(trained[0])[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["margin"], first["chosen_reward"], first["rejected_reward"]) == (0.0, 0.0, 0.0)
    # Twin: another reference.
    trainer = trainer_of(DPOTrainer, dpo.STAGE, tiny.pretrain, ROWS, dpo.loss_options(0.0))
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert loss.item() != pytest.approx(math.log(2), abs=1e-3)


@pytest.fixture(scope="module")
def yes_and_no(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Say {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(20)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def learnt(tiny: Any, plain: Any, logprob: Any) -> Any:
    """`learnt(output, n)`: log-ratio of `yes n` less that of `no n`, by plain transformers."""
    tokenizer, before = AutoTokenizer.from_pretrained(str(tiny.sft)), plain(tiny.sft)

    @torch.no_grad()
    def margin(output: Path, number: int) -> float:
        after, prompt = plain(output), [3, *tokenizer(f"Say {number}")["input_ids"], 4]
        sides = [[*tokenizer(f"{text} {number}")["input_ids"], 0] for text in ("yes", "no")]
        yes, no = (float(logprob(after, prompt, ids) - logprob(before, prompt, ids)) for ids in sides)
        return yes - no

    return margin


def test_the_chosen_answer_gains(tiny: Any, run: Any, yes_and_no: Path, tmp_path: Path, learnt: Any) -> None:
    options = {**FIELDS, "data": str(yes_and_no), "epochs": 6, "learning_rate": 5e-3, "validate_every": 100}
    metrics = run(dpo.STAGE, options, tmp_path / "one", policy=tiny.sft)
    assert (metrics["pairs"], metrics["validation_pairs"], metrics["steps"]) == (18, 2, 18)
    assert metrics["train_accuracy"] == metrics["validation_accuracy"] == 1.0
    assert learnt(tmp_path / "one", 19) > 1


def test_adapters_are_merged_and_their_reference_is_without(
    tiny: Any, run: Any, yes_and_no: Path, tmp_path: Path, weights: Any, log_of: Any, learnt: Any
) -> None:
    options = {**FIELDS, "data": str(yes_and_no), "epochs": 6, "learning_rate": 2e-2}
    options["lora"] = {"rank": 4, "dropout": 0.2}
    metrics = run(dpo.STAGE, {**options, "gradient_checkpointing": True}, tmp_path / "lora", policy=tiny.sft)
    after, before = weights(tmp_path / "lora"), weights(tiny.sft)
    assert after.keys() == before.keys()
    assert torch.equal(after["transformer.wte.weight"], before["transformer.wte.weight"])
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.allclose(after[name], before[name], atol=1e-4)
    lines = log_of(tmp_path / "lora")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[-1]["margin"] > 0.03  # a reference that moved along would keep it at 0
    # Measured without the adapters' dropout.
    margins = [0.1 * learnt(tmp_path / "lora", number) for number in range(18)]
    assert metrics["train_margin"] == pytest.approx(sum(margins) / 18, rel=1e-4)


def rankings_of(tiny: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tiny.comparisons / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_metrics_are_those_of_plain_transformers(
    trained: tuple[Path, dict[str, Any]], tiny: Any, plain: Any, logprob: Any
) -> None:
    tokenizer, metrics = AutoTokenizer.from_pretrained(str(tiny.sft)), trained[1]
    before, after, margins = plain(tiny.sft), plain(trained[0]), []
    for row in rankings_of(tiny, "validation"):
        rewards, prompt = [], [3, *tokenizer(row["messages"][0]["content"])["input_ids"], 4]
        for text, ended in zip(row["answers"], row["finished"], strict=True):
            answer = [*tokenizer(text)["input_ids"], *([0] if ended else [])]
            with torch.no_grad():
                rewards.append(0.1 * float(logprob(after, prompt, answer) - logprob(before, prompt, answer)))
        for i, j in combinations(range(len(rewards)), 2):
            if row["ranks"][i] != row["ranks"][j]:
                margins.append((rewards[i] - rewards[j]) * (1 if row["ranks"][i] < row["ranks"][j] else -1))
    assert metrics["validation_pairs"] == len(margins)
    assert metrics["validation_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-6)
    losses = [math.log1p(math.exp(-margin)) for margin in margins]
    assert metrics["validation_loss"] == pytest.approx(sum(losses) / len(losses))
    right = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
    assert metrics["validation_accuracy"] == pytest.approx(right)
    assert metrics["tokens"] == tokens_of_one_pass(tiny, tokenizer)
    json.dumps(metrics, allow_nan=False)


def tokens_of_one_pass(tiny: Any, tokenizer: Any) -> int:
    """Tokens of one pass: each ranking's first best and first worst answer, each after its prompt."""
    total = 0
    for row in rankings_of(tiny, "train"):
        for index in (row["ranks"].index(min(row["ranks"])), row["ranks"].index(max(row["ranks"]))):
            parts = (row["messages"][0]["content"], row["answers"][index])
            total += 2 + sum(len(tokenizer(part)["input_ids"]) for part in parts) + row["finished"][index]
    return total


def test_pairs_of_a_ranking() -> None:
    ranking = {"encoded": [Encoded.prompt([3, 4]).followed_by([n]) for n in (10, 11, 12, 13)], "ranks": [2, 1, 3, 1]}
    rows = [(row["chosen_ids"], row["rejected_ids"]) for row in dpo.pair_rows(ranking, "all")]
    assert sorted(rows) == [([10], [12]), ([11], [10]), ([11], [12]), ([13], [10]), ([13], [12])]
    assert dpo.pair_rows(ranking, "best_worst") == [{"prompt_ids": [3, 4], "chosen_ids": [11], "rejected_ids": [12]}]


def test_refusals(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    output, inputs = tmp_path / "one", {"policy": tiny.sft, "comparisons": tiny.comparisons}
    with pytest.raises(UserError, match=r"^dpo\.data: no rankings; give `data`, or the input `comparisons`"):
        run(dpo.STAGE, FIELDS, output, policy=tiny.sft)
    with pytest.raises(UserError, match=r"train\.jsonl: can't be read .*; run the stage `comparisons` again"):
        run(dpo.STAGE, FIELDS, output, policy=tiny.sft, comparisons=tiny.pretrain)
    with pytest.raises(UserError, match=r"^dpo\.data: no ranking has two untied answers of at most 5 tokens"):
        run(dpo.STAGE, {**FIELDS, "max_length": 5}, output, **inputs)
    for name, value in (("beta", 0.0), ("label_smoothing", 0.5)):
        with pytest.raises(UserError, match=rf"dpo\.{name}: "):
            run(dpo.STAGE, {**FIELDS, name: value}, output, **inputs)
    with pytest.raises(UserError, match=r"^dpo: step 2: the gradient is not finite; nothing was stepped"):
        run(dpo.STAGE, {**FIELDS, "learning_rate": 1e38, "validate_every": 9}, output, **inputs)
    assert [line["step"] for line in log_of(output)] == [1]
