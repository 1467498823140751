"""Stage `dpo`: TRL's loss and gradient against a loop by hand, our tokens, exact resuming, nothing said or sent."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.tokens import encode_answer, encode_prompt
from gptlife.stages import dpo
from gptlife.stages.modeling import loading
from gptlife.stages.preferences import trl_trainer
from gptlife.stages.runtime.execution import COST
from gptlife.stages.runtime.files import read_piece
from gptlife.stages.training.checkpoints import Checkpoints
from gptlife.stages.training.setup import epochs

FIELDS = {
    "pairs": "best_worst", "learning_rate": 1e-3, "batch_size": 6, "warmup_steps": 1, "validate_every": 2,
    "adam_eps": 1e-5,
}  # fmt: skip
ANSWERS = [[7, 8, 9, 0], [11, 12], [13, 0]]
ROWS = [
    {"prompt_ids": [3, 20, 21, 4], "chosen_ids": ANSWERS[0], "rejected_ids": ANSWERS[1]},
    {"prompt_ids": [3, 22, 4], "chosen_ids": ANSWERS[2], "rejected_ids": ANSWERS[0]},
]


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32).eval()


def logprob(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p(answer | prompt), one token after the other, the row alone."""
    logits_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    total = torch.zeros((), dtype=torch.float64)
    for place, token in enumerate(answer, len(prompt)):
        total = total + logits_TV[place - 1, token] - logits_TV[place - 1].logsumexp(0)
    return total


def dpo_loss(policy: Any, reference: Any, rows: list[Any], beta: float, smoothing: float, sign: int = 1) -> Any:
    """Eq 7, a pair at a time."""
    losses = []
    for row in rows:
        ratios = []
        for side in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                before = logprob(reference, row["prompt_ids"], row[side])
            ratios.append(logprob(policy, row["prompt_ids"], row[side]) - before)
        right = torch.sigmoid(sign * beta * (ratios[0] - ratios[1]))
        losses.append(-(1 - smoothing) * torch.log(right) - smoothing * torch.log(1 - right))
    return torch.stack(losses).mean()


def trainer_of(tiny: Any, folder: Path, reference: Path, rows: list[Any], **fields: Any) -> trl_trainer.PairTrainer:
    config = decode(dpo.DPOConfig, {"device": "cpu", "batch_size": len(rows), **fields}, "dpo")
    settings = trl_trainer.settings_of(config, folder)
    plan = epochs(config, len(rows), len(rows), 1, 0)
    tokenizer, model = loading.load_tokenizer(tiny.sft), loading.load_causal(tiny.sft)
    return trl_trainer.PairTrainer(config, plan, settings, model, loading.load_causal(reference), tokenizer, rows)


@pytest.fixture(scope="module")
def trained(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("dpo") / "one"
    return output, run(dpo.STAGE, FIELDS, output, policy=tiny.sft, comparisons=tiny.comparisons)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_the_papers(smoothing: float, tiny: Any, tmp_path: Path) -> None:
    trainer = trainer_of(tiny, tmp_path, tiny.pretrain, ROWS, beta=0.3, label_smoothing=smoothing)
    policy, reference = plain(tiny.sft), plain(tiny.pretrain)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    expected = dpo_loss(policy, reference, ROWS, 0.3, smoothing)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    assert_close(theirs, {name: p.grad for name, p in policy.named_parameters()}, rtol=1e-3, atol=1e-5)
    # Twins: the sign of the margin, and (TRL's `sigmoid` alone has none) the smoothing.
    flipped = dpo_loss(policy, reference, ROWS, 0.3, smoothing, sign=-1)
    assert loss.item() != pytest.approx(flipped.item(), rel=1e-2)
    policy.zero_grad()
    flipped.backward()
    with pytest.raises(AssertionError):
        assert_close(theirs, {name: p.grad for name, p in policy.named_parameters()}, rtol=1e-3, atol=1e-5)
    other = dpo_loss(policy, reference, ROWS, 0.3, 0.2 - smoothing)
    assert loss.item() != pytest.approx(other.item(), rel=1e-2)


def test_the_first_loss_is_log_two(
    trained: tuple[Path, dict[str, Any]], tiny: Any, tmp_path: Path, log_of: Any
) -> None:
    first = log_of(trained[0])[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["margin"], first["chosen_reward"], first["rejected_reward"]) == (0.0, 0.0, 0.0)
    # Twin: another reference.
    trainer = trainer_of(tiny, tmp_path, tiny.pretrain, ROWS)
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert loss.item() != pytest.approx(math.log(2), abs=1e-3)


@pytest.fixture(scope="module")
def yes_and_no(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Say {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(20)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_chosen_answer_gains(tiny: Any, run: Any, yes_and_no: Path, tmp_path: Path) -> None:
    options = {**FIELDS, "data": str(yes_and_no), "epochs": 6, "learning_rate": 5e-3, "validate_every": 100}
    metrics = run(dpo.STAGE, options, tmp_path / "one", policy=tiny.sft)
    assert (metrics["pairs"], metrics["validation_pairs"], metrics["steps"]) == (18, 2, 18)
    assert metrics["train_accuracy"] == metrics["validation_accuracy"] == 1.0
    tokenizer, before, after = AutoTokenizer.from_pretrained(str(tiny.sft)), plain(tiny.sft), plain(tmp_path / "one")
    prompt = [3, *tokenizer("Say 19")["input_ids"], 4]
    sides = [[*tokenizer(text)["input_ids"], 0] for text in ("yes 19", "no 19")]
    with torch.no_grad():
        chosen, rejected = (float(logprob(after, prompt, ids) - logprob(before, prompt, ids)) for ids in sides)
    assert chosen > rejected + 1


def test_metrics_are_those_of_plain_transformers(trained: tuple[Path, dict[str, Any]], tiny: Any) -> None:
    tokenizer, metrics = AutoTokenizer.from_pretrained(str(tiny.sft)), trained[1]
    before, after, found = plain(tiny.sft), plain(trained[0]), []
    for line in (tiny.comparisons / "validation.jsonl").read_text("utf-8").splitlines():
        row, rewards = json.loads(line), []
        prompt = [3, *tokenizer(row["messages"][0]["content"])["input_ids"], 4]
        for text, ended in zip(row["answers"], row["finished"], strict=True):
            answer = [*tokenizer(text)["input_ids"], *([0] if ended else [])]
            with torch.no_grad():
                rewards.append(0.1 * float(logprob(after, prompt, answer) - logprob(before, prompt, answer)))
        for i, j in combinations(range(len(rewards)), 2):
            if row["ranks"][i] != row["ranks"][j]:
                found.append((rewards[i] - rewards[j]) * (1 if row["ranks"][i] < row["ranks"][j] else -1))
    assert metrics["validation_pairs"] == len(found)
    assert metrics["validation_margin"] == pytest.approx(sum(found) / len(found), abs=1e-6)
    assert metrics["validation_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in found) / len(found))
    right = sum((margin > 0) + 0.5 * (margin == 0) for margin in found) / len(found)
    assert metrics["validation_accuracy"] == pytest.approx(right)
    assert metrics["tokens"] == tokens_of_one_pass(tiny, tokenizer)
    json.dumps(metrics, allow_nan=False)


def tokens_of_one_pass(tiny: Any, tokenizer: Any) -> int:
    """Tokens of one pass: each ranking's first best and first worst answer, each after its prompt."""
    total = 0
    for row in rankings_of(tiny):
        for place in (row["ranks"].index(min(row["ranks"])), row["ranks"].index(max(row["ranks"]))):
            parts = (row["messages"][0]["content"], row["answers"][place])
            total += 2 + sum(len(tokenizer(part)["input_ids"]) for part in parts) + row["finished"][place]
    return total


def test_pairs_of_a_ranking() -> None:
    ranking = dpo.Ranking([3, 4], [[10], [11], [12], [13]], [2, 1, 3, 1], "all")
    found = [(row["chosen_ids"][0], row["rejected_ids"][0]) for row in dpo.pair_rows(ranking, "all")]
    assert sorted(found) == [(10, 12), (11, 10), (11, 12), (13, 10), (13, 12)]
    assert dpo.pair_rows(ranking, "best_worst") == [{"prompt_ids": [3, 4], "chosen_ids": [11], "rejected_ids": [12]}]


def rankings_of(tiny: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tiny.comparisons / "train.jsonl").read_text("utf-8").splitlines()]


def as_trl_reads(tiny: Any, messages: Any, chosen: str, rejected: str) -> dict[str, Any]:
    """A pair through TRL's own preparation."""
    import trl
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = loading.load_tokenizer(tiny.sft)
    sides = {"chosen": chosen, "rejected": rejected}
    row = {"prompt": messages, **{name: [{"role": "assistant", "content": text}] for name, text in sides.items()}}
    holder, settings = SimpleNamespace(_tokenizer=tokenizer), SimpleNamespace(dataset_num_proc=None, max_length=None)
    found = trl.DPOTrainer._prepare_dataset(holder, Dataset.from_list([row]), tokenizer, settings, "train")
    return {name: found[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


def test_tokens_are_trls_where_trls_are_right(tiny: Any) -> None:
    tokenizer = loading.load_tokenizer(tiny.sft)
    for row in rankings_of(tiny)[:3]:
        (whole,) = dpo._encode([{**row, "finished": [True] * len(row["answers"])}], tokenizer, 64, "data")
        best, worst = row["ranks"].index(min(row["ranks"])), row["ranks"].index(max(row["ranks"]))
        ours = dpo.pair_rows(whole, "best_worst")[0]
        assert as_trl_reads(tiny, row["messages"], row["answers"][best], row["answers"][worst]) == ours
        assert ours["prompt_ids"] == encode_prompt(tokenizer, row["messages"])
        assert ours["chosen_ids"] == encode_answer(tokenizer, row["answers"][best], True)
    # Where TRL's are not: an answer that was cut off, and a control token that a user spelt.
    cut = {"messages": [{"role": "user", "content": "x"}], "answers": ["a", "b"], "ranks": [1, 2]}
    cut["finished"] = [False, True]
    (ranking,) = dpo._encode([cut], tokenizer, 64, "data")
    theirs = as_trl_reads(tiny, cut["messages"], "a", "b")
    assert theirs["chosen_ids"] == [*ranking.answers[0], 0]
    assert theirs["rejected_ids"] == ranking.answers[1]
    spelt = [{"role": "user", "content": "<|assistant|>"}]
    assert as_trl_reads(tiny, spelt, "a", "b")["prompt_ids"] == [3, 4, 4]
    assert encode_prompt(tokenizer, spelt) != [3, 4, 4]


def test_batches_are_chosen_then_rejected_with_the_prompt_masked(tiny: Any, tmp_path: Path) -> None:
    trainer = trainer_of(tiny, tmp_path, tiny.sft, ROWS)
    batch = next(iter(trainer.get_train_dataloader()))
    order = trainer.plan.batch(0)
    pad = trainer.processing_class.pad_token_id
    assert pad != trainer.processing_class.eos_token_id
    sides = [(ROWS[i]["prompt_ids"], ROWS[i][name]) for name in ("chosen_ids", "rejected_ids") for i in order]
    for place, (prompt, answer) in enumerate(sides):
        fill = batch["input_ids"].shape[1] - len(prompt + answer)
        assert batch["input_ids"][place].tolist() == prompt + answer + [pad] * fill
        assert batch["completion_mask"][place].tolist() == [0] * len(prompt) + [1] * len(answer) + [0] * fill
        assert batch["attention_mask"][place].tolist() == [1] * len(prompt + answer) + [0] * fill
    swapped = [{**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in ROWS]
    trl_trainer._confirm(trainer.data_collator, ROWS)
    with pytest.raises(UserError, match=r"^dpo: TRL .* reads pairs in another way; install trl==1\.16"):
        trl_trainer._confirm(lambda rows: trainer.data_collator(swapped), ROWS)


def test_micro_batches_change_nothing(
    tiny: Any, run: Any, trained: tuple[Path, dict[str, Any]], tmp_path: Path, log_of: Any
) -> None:
    assert trl_trainer.micro_batch_size(6, 30, 4096) == 6
    assert [trl_trainer.micro_batch_size(6, 30, n) for n in (1, 100, 120, 200, 300)] == [1, 1, 2, 3, 3]
    run(dpo.STAGE, {**FIELDS, "micro_batch_tokens": 1}, tmp_path / "two", policy=tiny.sft, comparisons=tiny.comparisons)
    ones, others = log_of(trained[0]), log_of(tmp_path / "two")
    assert len(ones) == len(others) == 3
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in ("loss", "grad_norm", "accuracy", "margin", "tokens", "learning_rate"):
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)


def test_what_is_saved_is_the_policys_but_its_weights(
    tiny: Any, trained: tuple[Path, dict[str, Any]], weights: Any
) -> None:
    def settings(path: Path, name: str) -> dict[str, Any]:
        found = dict(json.loads((path / name).read_text("utf-8")))
        return {key: value for key, value in found.items() if key != "resid_pdrop"}  # 0 after dpo

    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert settings(trained[0], name) == settings(tiny.sft, name)
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (trained[0] / name).read_bytes() == (tiny.sft / name).read_bytes()
    assert weights(trained[0]).keys() == weights(tiny.sft).keys()
    with pytest.raises(AssertionError):
        assert_close(weights(trained[0]), weights(tiny.sft), rtol=0, atol=1e-5)


def test_adapters_are_merged_and_their_reference_is_without(
    tiny: Any, run: Any, yes_and_no: Path, tmp_path: Path, weights: Any, log_of: Any
) -> None:
    options = {**FIELDS, "data": str(yes_and_no), "epochs": 6, "learning_rate": 2e-2}
    options["lora"] = {"rank": 4, "dropout": 0.2}
    metrics = run(dpo.STAGE, {**options, "gradient_checkpointing": True}, tmp_path / "lora", policy=tiny.sft)
    found, before = weights(tmp_path / "lora"), weights(tiny.sft)
    assert found.keys() == before.keys()
    assert torch.equal(found["transformer.wte.weight"], before["transformer.wte.weight"])
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.allclose(found[name], before[name], atol=1e-4)
    lines = log_of(tmp_path / "lora")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    # A reference that moved along would keep the margin at 0.
    assert lines[-1]["margin"] > 0.1
    # Measured without the adapters' dropout.
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.sft))
    old, new, margins = plain(tiny.sft), plain(tmp_path / "lora"), []
    for number in range(18):
        prompt = [3, *tokenizer(f"Say {number}")["input_ids"], 4]
        sides = [[*tokenizer(f"{text} {number}")["input_ids"], 0] for text in ("yes", "no")]
        with torch.no_grad():
            chosen, rejected = (float(logprob(new, prompt, ids) - logprob(old, prompt, ids)) for ids in sides)
        margins.append(0.1 * (chosen - rejected))
    assert metrics["train_margin"] == pytest.approx(sum(margins) / 18, rel=1e-4)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "dropout": 0.1}], ids=["whole", "lora"])
def test_resumed_is_uninterrupted(
    lora: Any, tiny: Any, run: Any, tmp_path: Path, digests: Any, log_of: Any, cut_short: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fields, inputs = {**FIELDS, "epochs": 2, "lora": lora}, {"policy": tiny.sft, "comparisons": tiny.comparisons}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = run(dpo.STAGE, fields, whole, **inputs)
    # What is random in a step is a function of the step: no generator's state may matter.
    monkeypatch.setattr(Trainer, "_load_rng_state", lambda self, folder: (torch.manual_seed(9), random.seed(9)))
    for step in (3, 5):
        cut_short(step, lambda: run(dpo.STAGE, fields, parts, **inputs))
        assert [line["step"] for line in log_of(parts)] == list(range(1, step + 1))
        assert (
            sorted(path.name for path in (parts / "checkpoints").glob("checkpoint-*"))[-1] == f"checkpoint-{step - 1}"
        )
    # The newest was not finished: its optimizer is missing, with which the Trainer would go on without a word.
    (parts / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()
    again = run(dpo.STAGE, fields, parts, **inputs)
    assert not (parts / "checkpoints" / "checkpoint-4").exists()
    assert digests(parts) == digests(whole)
    assert log_of(parts) == log_of(whole)
    assert len(log_of(whole)) == 6
    assert {k: v for k, v in again.items() if k not in COST} == {k: v for k, v in metrics.items() if k not in COST}


def test_a_checkpoint_without_its_optimizer_ends_elsewhere(
    tiny: Any, run: Any, trained: tuple[Path, dict[str, Any]], tmp_path: Path, digests: Any,
    cut_short: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The twin: what the list of files guards against."""

    def believed(self: Checkpoints, path: Path) -> dict[str, Any]:
        state = read_piece(path / "state")
        return {name: value for name, value in state.items() if name not in ("files", "log", "owner")}

    inputs = {"policy": tiny.sft, "comparisons": tiny.comparisons}
    cut_short(3, lambda: run(dpo.STAGE, FIELDS, tmp_path / "parts", **inputs))
    (tmp_path / "parts" / "checkpoints" / "checkpoint-2" / "optimizer.pt").unlink()
    monkeypatch.setattr(Checkpoints, "_good", believed)
    run(dpo.STAGE, FIELDS, tmp_path / "parts", **inputs)
    assert digests(tmp_path / "parts") != digests(trained[0])


@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "lora"])
def test_nothing_is_sent_said_or_left_elsewhere(
    lora: Any, tiny: Any, run: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *rest, **_: tried.append(rest))
    monkeypatch.chdir(tmp_path)
    options = {**FIELDS, "checkpoint_seconds": 0.0, "lora": lora, "gradient_checkpointing": lora is not None}
    run(dpo.STAGE, options, tmp_path / "one", policy=tiny.sft, comparisons=tiny.comparisons)
    assert tried == []
    said = capfd.readouterr()
    assert said.out == ""
    assert all(line.startswith("dpo ") for line in said.err.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    kept = sorted(path.name for path in (tmp_path / "one" / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-2"]
    if lora is None:  # peft writes one with its adapters
        assert not list((tmp_path / "one").rglob("README.md"))


def test_refusals(tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_of: Any) -> None:
    output, inputs = tmp_path / "one", {"policy": tiny.sft, "comparisons": tiny.comparisons}
    with pytest.raises(UserError, match=r"^dpo\.data: no rankings; give `data`, or the input `comparisons`"):
        run(dpo.STAGE, FIELDS, output, policy=tiny.sft)
    with pytest.raises(UserError, match=r"train\.jsonl: no rankings can be read .*; run the stage `comparisons` again"):
        run(dpo.STAGE, FIELDS, output, policy=tiny.sft, comparisons=tiny.pretrain)
    with pytest.raises(UserError, match=r"^dpo\.data: no ranking has two untied answers of at most 5 tokens"):
        run(dpo.STAGE, {**FIELDS, "max_length": 5}, output, **inputs)
    for name, value in (("beta", 0.0), ("label_smoothing", 0.5)):
        with pytest.raises(UserError, match=rf"dpo\.{name}: "):
            run(dpo.STAGE, {**FIELDS, name: value}, output, **inputs)
    with pytest.raises(UserError, match=r"^dpo: step 2: the gradient is not finite; nothing was stepped"):
        run(dpo.STAGE, {**FIELDS, "learning_rate": 1e38, "validate_every": 9}, output, **inputs)
    assert [line["step"] for line in log_of(output)] == [1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^dpo: TRL is not installed; pip install gptlife\[dpo\]$"):
        run(dpo.STAGE, FIELDS, output, **inputs)


CUT = """\
from gptlife.stages import dpo_loop
mark = dpo_loop.TrainerCheckpoints.mark
def marked(self, step, state):
    mark(self, step, state)
    if step == 2:
        raise SystemExit(7)
dpo_loop.TrainerCheckpoints.mark = marked
from gptlife.stages.dpo import STAGE
STAGE.main()
"""


@pytest.mark.slow
def test_two_processes_and_their_checkpoints(
    tiny: Any, trained: tuple[Path, dict[str, Any]], tmp_path: Path, log_of: Any, weights: Any, digests: Any
) -> None:
    def launch(output: Path, *module: str) -> subprocess.CompletedProcess[str]:
        table = {"device": "cpu", "track": [], "processes": 2, "checkpoint_seconds": 0.0, "output": str(output)}
        table |= {**FIELDS, "inputs": {"policy": str(tiny.sft), "comparisons": str(tiny.comparisons)}}
        (tmp_path / "stage.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *module,
                   "--config", str(tmp_path / "stage.yaml")]  # fmt: skip
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)

    done = launch(tmp_path / "two", "-m", "gptlife.stages.dpo")
    assert done.returncode == 0, done.stderr[-3000:]
    ones, twos = log_of(trained[0]), log_of(tmp_path / "two")
    for one, two in zip(ones, twos, strict=True):
        assert one.keys() == two.keys()
        for name in ("loss", "grad_norm", "accuracy", "margin", "tokens", "learning_rate"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)
    assert_close(weights(tmp_path / "two"), weights(trained[0]), rtol=0, atol=1e-5)
    (tmp_path / "cut.py").write_text(CUT, encoding="utf-8")
    assert launch(tmp_path / "parts", str(tmp_path / "cut.py")).returncode != 0
    assert (tmp_path / "parts.partial" / "checkpoints" / "checkpoint-2" / "state").is_file()
    again = launch(tmp_path / "parts", "-m", "gptlife.stages.dpo")
    assert again.returncode == 0, again.stderr[-3000:]
    assert digests(tmp_path / "parts") == digests(tmp_path / "two")
    assert log_of(tmp_path / "parts") == twos
