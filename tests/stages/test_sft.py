"""Stage `sft`: which tokens are targets, losses against TRL and transformers, packing, adapters, selection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.splits import split
from gptlife.data.tokens import encode_conversation, train_tokenizer
from gptlife.stages import sft
from gptlife.stages.modeling.forward import SelectedLogits
from gptlife.stages.training import lm

# The gradient of a key's bias is 0 but for rounding; a larger epsilon keeps Adam from blowing that up to full steps.
FIELDS = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 16, "residual_dropout": 0.0, "adam_eps": 1e-5}


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    return {**FIELDS, "data": str(tiny.conversations), **changes}


def messages_of(tiny: Any) -> list[list[dict[str, str]]]:
    rows = [json.loads(line) for line in tiny.conversations.read_text(encoding="utf-8").splitlines()]
    return [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]


@torch.no_grad()
def loss_of(output: Path, chats: list[list[dict[str, str]]]) -> float:
    """Nats an assistant token by transformers alone: ids and marks of the chat template, labels -100 elsewhere."""
    tokenizer, model = AutoTokenizer.from_pretrained(str(output)), AutoModelForCausalLM.from_pretrained(str(output))
    nats, count = 0.0, 0
    for chat in chats:
        found = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        ids, marks = found["input_ids"], found["assistant_masks"]
        labels = [token if mark else -100 for token, mark in zip(ids, marks, strict=True)]
        nats += float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss) * sum(marks)
        count += sum(marks)
    return nats / count


def test_only_what_the_assistant_says_is_a_target() -> None:
    tokenizer = train_tokenizer(["a"], 261, 1000)
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
    ]
    config = decode(sft.SFTConfig, {"data": "a.jsonl"}, "sft")
    rows = lm.TargetRows(sft._rows([{"messages": chat}], tokenizer, 64, config, "sft.data"))
    batch = rows.collate([0])
    # Ids: end 0, pad 1, system 2, user 3, assistant 4, then the printable ASCII from "!" (5) on.
    assert batch.inputs["input_ids"].tolist() == [[3, 44, 77, 4, 61, 83, 0, 3, 92, 4, 93]]
    assert batch.targets["tokens"][batch.select].tolist() == [61, 83, 0, 93, 0]
    assert batch.select.tolist() == [[False, False, False, True, True, True, False, False, False, True, True]]


@pytest.fixture(scope="module")
def tuned(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("sft") / "one"
    return output, run(sft.STAGE, fields(tiny), output, base=tiny.pretrain)


def test_losses_are_those_of_transformers(tiny: Any, tuned: tuple[Path, dict[str, Any]], log_of: Any) -> None:
    output, metrics = tuned
    # A tenth of 48 conversations, the last five, are held aside.
    held_out, train = messages_of(tiny)[-5:], messages_of(tiny)[:-5]
    assert (metrics["conversations"], metrics["validation_conversations"]) == (43, 5)
    assert metrics["validation_loss_before"] == pytest.approx(loss_of(tiny.pretrain, held_out), abs=1e-5)
    best = min(line["validation_loss"] for line in log_of(output) if "validation_loss" in line)
    assert best == pytest.approx(loss_of(output, held_out), abs=1e-5)
    assert loss_of(output, train) < loss_of(tiny.pretrain, train) - 0.5
    # Twin: the loss on every token is another one.
    assert best != pytest.approx(loss_of(output, train[:5]), abs=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_loss_is_that_of_trl(tiny: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(str(tiny.pretrain)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.pretrain))
    chats = messages_of(tiny)[:6]
    settings = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", assistant_only_loss=True, max_length=64,
        per_device_train_batch_size=6, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model,
        args=settings,
        train_dataset=Dataset.from_list([{"messages": chat} for chat in chats]),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(model, batch)
        rows = lm.TargetRows([encode_conversation(tokenizer, chat) for chat in chats])
        ours, _ = lm.lm_loss(SelectedLogits(model), rows.collate(range(6)))
        fewer, _ = lm.lm_loss(SelectedLogits(model), rows.collate(range(5)))
    assert_close(ours / sum(rows.weights), theirs, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):  # twin: one conversation fewer
        assert_close(fewer / sum(rows.weights[:5]), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"micro_batch_tokens": 32}, {"micro_batch_tokens": 100}])
def test_micro_batches_change_nothing(
    changes: dict[str, Any], tiny: Any, run: Any, tuned: tuple[Path, dict[str, Any]], tmp_path: Path, weights: Any
) -> None:
    run(sft.STAGE, fields(tiny, **changes), tmp_path / "micro", base=tiny.pretrain)
    assert_close(weights(tmp_path / "micro"), weights(tuned[0]), rtol=0, atol=1e-5)


def test_packing_gives_the_same_first_loss(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    # One batch of everything, so that packed and not packed have the same targets in it.
    for name, packing in (("packed", True), ("rows", False)):
        options = fields(tiny, packing=packing, batch_size=100, epochs=1, validate_every=1)
        run(sft.STAGE, options, tmp_path / name, base=tiny.pretrain)
    packed, rows = log_of(tmp_path / "packed"), log_of(tmp_path / "rows")
    assert len(packed) == len(rows) == 1
    for key in ("loss", "grad_norm", "tokens"):
        assert packed[0][key] == pytest.approx(rows[0][key], rel=1e-4)


def test_adapters_are_merged(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    output = tmp_path / "lora"
    options = fields(tiny, lora={"rank": 4, "alpha": 8}, learning_rate=1e-2, select=False)
    metrics = run(sft.STAGE, options, output, base=tiny.pretrain)
    before, after = weights(tiny.pretrain), weights(output)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("attn.c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    held_out = messages_of(tiny)[-5:]
    # The adapters' last validation is reached by the plain model that was saved.
    assert metrics["validation_loss"] == pytest.approx(loss_of(output, held_out), abs=1e-4)
    assert metrics["validation_loss"] < metrics["validation_loss_before"] - 0.1
    assert not list(output.glob("adapter*"))


def test_pretraining_mix(tiny: Any, run: Any, tmp_path: Path, log_of: Any, tuned: tuple[Path, dict[str, Any]]) -> None:
    options = fields(tiny, pretraining=str(tiny.text), pretraining_share=0.5, pretraining_length=16)
    run(sft.STAGE, options, tmp_path / "mix", base=tiny.pretrain)
    # 43 conversations and as many rows of text, 2 epochs in batches of 16: 172 / 16; without the text 86 / 16.
    assert len(log_of(tmp_path / "mix")) == 11
    assert len(log_of(tuned[0])) == 6
    plain, mixed = log_of(tuned[0])[-1]["tokens"], log_of(tmp_path / "mix")[-1]["tokens"]
    assert mixed == plain + 2 * 43 * 16


def test_too_little_pretraining_text(tiny: Any, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.pretrain))
    lines = tiny.text.read_text(encoding="utf-8").splitlines()
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(lines[:3]), encoding="utf-8")
    n_tokens = sum(len(tokenizer(json.loads(line)["text"])["input_ids"]) + 1 for line in lines[:3])
    options = fields(tiny, pretraining=str(few), pretraining_share=0.5, pretraining_length=16, epochs=0.1)
    run(sft.STAGE, options, tmp_path / "few", base=tiny.pretrain)
    # 43 conversations and as many rows of 16 targets, which takes one token more.
    expected = (
        f"sft.pretraining: the text has {n_tokens} tokens, pretraining_share 0.5 wants 689; all of it is used, "
        "once an epoch"
    )
    assert [record.message for record in caplog.records if record.name == sft.__name__] == [expected]
    caplog.clear()
    run(sft.STAGE, {**options, "pretraining": str(tiny.text)}, tmp_path / "enough", base=tiny.pretrain)
    assert not [record for record in caplog.records if record.name == sft.__name__]


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["whole", "lora"])
def test_gradient_checkpointing_changes_nothing(
    lora: dict[str, int] | None, tiny: Any, run: Any, tmp_path: Path, weights: Any
) -> None:
    for name, switch in (("plain", False), ("checkpointed", True)):
        options = fields(tiny, epochs=0.5, lora=lora, gradient_checkpointing=switch)
        run(sft.STAGE, options, tmp_path / name, base=tiny.pretrain)
    plain = weights(tmp_path / "plain")
    assert_close(weights(tmp_path / "checkpointed"), plain, rtol=0, atol=1e-6)
    with pytest.raises(AssertionError):  # twin: something was learnt
        assert_close(weights(tiny.pretrain), plain, rtol=0, atol=1e-6)


def test_best_validation_is_kept(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    held_out = messages_of(tiny)[-5:]
    options = fields(tiny, learning_rate=8e-2, epochs=8, validate_every=1, min_lr_ratio=1.0)
    for name, select in (("best", True), ("last", False)):
        metrics = run(sft.STAGE, {**options, "select": select}, tmp_path / name, base=tiny.pretrain)
        losses = [line["validation_loss"] for line in log_of(tmp_path / name)]
        best = losses.index(min(losses))
        assert best < len(losses) - 1  # or this test shows nothing
        wanted = losses[best] if select else losses[-1]
        assert loss_of(tmp_path / name, held_out) == pytest.approx(wanted, abs=1e-5)
        assert metrics.get("best_step") == (best + 1 if select else None)


def test_metrics_are_those_of_the_weights_that_were_kept(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, learning_rate=8e-2, epochs=8, validate_every=1, min_lr_ratio=1.0)
    metrics = run(sft.STAGE, options, tmp_path / "best", base=tiny.pretrain)
    assert metrics["validation_loss"] == pytest.approx(loss_of(tmp_path / "best", messages_of(tiny)[-5:]), abs=1e-5)
    best, last = log_of(tmp_path / "best")[metrics["best_step"] - 1], log_of(tmp_path / "best")[-1]
    for name in ("validation_loss", "validation_accuracy", "validation_perplexity"):
        assert metrics[name] == best[name]
    assert best["validation_loss"] != last["validation_loss"]  # or this test shows nothing
    assert {name: metrics[name] for name in ("loss", "learning_rate")} == {
        name: last[name] for name in ("loss", "learning_rate")
    }


def test_output_is_plain_transformers(tuned: tuple[Path, dict[str, Any]]) -> None:
    tokenizer, model = (kind.from_pretrained(str(tuned[0])) for kind in (AutoTokenizer, AutoModelForCausalLM))
    chat = [{"role": "user", "content": "What does Anna have?"}]
    batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    made = model.generate(**batch, max_new_tokens=5, do_sample=False)
    assert batch["input_ids"].shape[1] < made.shape[1] <= batch["input_ids"].shape[1] + 5
    assert model.config.use_cache is True


def test_too_long(tiny: Any, run: Any, tmp_path: Path) -> None:
    options = fields(tiny, max_length=12)
    with pytest.raises(UserError, match=r"^sft\.data: conversation \d+ has \d+ tokens, the limit is 12; shorten it"):
        run(sft.STAGE, options, tmp_path / "refuse", base=tiny.pretrain)
    with pytest.raises(UserError, match=r"^sft\.data: no conversation fits in 2 tokens"):
        run(sft.STAGE, {**options, "max_length": 2, "too_long": "skip"}, tmp_path / "skip", base=tiny.pretrain)


def test_split() -> None:
    assert split(list(range(10)), 0.2, "x") == ([0, 1, 2, 3, 4, 5, 6, 7], [8, 9])
    with pytest.raises(UserError, match=r"^x: a share of 0.01 of 10 rows leaves no row on one side"):
        split(list(range(10)), 0.01, "x")
