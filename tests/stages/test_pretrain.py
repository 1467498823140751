"""Stage `pretrain`: its schedule by hand, its losses against transformers, and that micro-batches change nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.sources import Source
from gptlife.stages import pretrain
from gptlife.stages.training.token_stream import token_stream

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
FIELDS = {
    "architecture": {"model_type": "gpt2", "fields": SIZES},
    "sequence_length": 32,
    "tokens": 2048,
    "batch_tokens": 512,
    "ramp_from_tokens": 128,
    "ramp_tokens": 1024,
    "warmup_tokens": 256,
    "decay_tokens": 2048,
    "learning_rate": 1e-3,
    "validate_every": 2,
    # The gradient of a key's bias is 0 but for rounding; a larger epsilon keeps Adam from making a full step of that.
    "adam_eps": 1e-5,
}


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    return {**FIELDS, "data": str(tiny.text), "validation": str(tiny.held_out), **changes}


def config(**changes: Any) -> Any:
    raw = {"data": "a.jsonl", "validation": "b.jsonl", "learning_rate": 1.0, **changes}
    return decode(pretrain.PretrainConfig, raw, "pretrain")


def test_schedule_in_tokens() -> None:
    plan = pretrain.schedule(
        config(
            sequence_length=10, tokens=200, batch_tokens=40, ramp_from_tokens=10, ramp_tokens=80, warmup_tokens=40,
            decay_tokens=140,
        ),
        1000,
    )  # fmt: skip
    # Batch in tokens: 10 + 30 min(1, seen / 80), seen = 0, 10, 20, 30, 50, 70, 100, 140, 180; floored to rows of 10.
    assert plan.sizes == [1, 1, 1, 2, 2, 3, 4, 4, 4]
    # Tokens after each step: 10, 20, 30 | 50, 70, 100 | 140, 180, 220. Warm-up to 40, then x = 0.1, 0.3, 0.6, 1 of the
    # cosine: 0.1 + 0.45 (1 + cos(pi x)) with cos 18, 54 and 108 degrees = .9510565, .5877853, -.3090170.
    expected = [0.25, 0.5, 0.75, 0.9779754, 0.8145034, 0.4109424, 0.1, 0.1, 0.1]
    assert plan.rates == pytest.approx(expected, abs=1e-6)
    linear = [0.25, 0.5, 0.75, 0.91, 0.73, 0.46, 0.1, 0.1, 0.1]
    assert plan.rates != pytest.approx(linear, abs=1e-2)  # twin: a straight line down


def test_schedule_without_ramp() -> None:
    plan = pretrain.schedule(config(sequence_length=10, tokens=100, batch_tokens=45, ramp_tokens=0), 1000)
    assert plan.sizes == [4, 4, 4]


def test_paper_schedule_begins_and_ends_as_printed() -> None:
    # GPT-3 App. B: 375 M tokens of warm-up, ramp from 32 k, here over one billion tokens only, for speed.
    plan = pretrain.schedule(config(tokens=1_000_000_000, learning_rate=6e-4, ramp_tokens=400_000_000), 10**6)
    assert plan.sizes[0] * 2048 == 32_768
    assert max(plan.sizes) * 2048 == 524_288
    assert plan.rates[0] == pytest.approx(6e-4 * 32_768 / 375e6)
    assert max(plan.rates) == pytest.approx(6e-4, rel=1e-4)


def test_batch_smaller_than_a_row() -> None:
    with pytest.raises(UserError, match=r"pretrain\.batch_tokens: 100 is less than one row of 2048; raise it"):
        pretrain.schedule(config(batch_tokens=100), 10)


def test_stream_is_every_document_and_its_end(tiny: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.tokenizer))
    stream, n_bytes = token_stream([Source(path=str(tiny.held_out))], "x", tokenizer, tmp_path, Accelerator(cpu=True))
    texts = [json.loads(line)["text"] for line in tiny.held_out.read_text(encoding="utf-8").splitlines()]
    expected = [ids for text in texts for ids in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert stream.tolist() == expected
    assert n_bytes == sum(len(text.encode()) for text in texts)


def test_a_damaged_stream_is_named_and_made_again(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, path = AutoTokenizer.from_pretrained(str(tiny.tokenizer)), tmp_path / "checkpoints" / "x.tokens"

    def made() -> tuple[list[int], int, str]:
        source = [Source(path=str(tiny.held_out))]
        stream, n_bytes = token_stream(source, "x", tokenizer, tmp_path, Accelerator(cpu=True))
        return stream.tolist(), n_bytes, capsys.readouterr().err

    first = made()
    assert first[2] == ""
    whole = path.read_bytes()
    assert made() == first
    for damaged in (whole[:-4], bytes([whole[0] ^ 1]) + whole[1:], b""):
        path.write_bytes(damaged)
        assert made() == (*first[:2], f"{path}: damaged; made again\n")
    path.with_suffix(".json").unlink()  # as a kill leaves one that was not finished
    path.write_bytes(whole[:-4])
    assert made() == first


@pytest.fixture(scope="module")
def trained(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("pretrain") / "one"
    return output, run(pretrain.STAGE, fields(tiny), output, tokenizer=tiny.tokenizer)


def held_out_rows(tiny: Any, width: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.tokenizer))
    texts = [json.loads(line)["text"] for line in tiny.held_out.read_text(encoding="utf-8").splitlines()]
    stream = np.concatenate([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]).tolist()
    return [stream[start : start + width + 1] for start in range(0, len(stream) - 1, width)]


@torch.no_grad()
def test_validation_loss_and_bits_per_byte(tiny: Any, trained: tuple[Path, dict[str, Any]]) -> None:
    output, metrics = trained
    model = AutoModelForCausalLM.from_pretrained(str(output))
    nats, count = 0.0, 0
    for row in held_out_rows(tiny, 32):
        ids = torch.tensor([row])
        nats += float(model(input_ids=ids, labels=ids).loss) * (len(row) - 1)
        count += len(row) - 1
    assert metrics["validation_loss"] == pytest.approx(nats / count, abs=1e-5)
    size = sum(len(json.loads(line)["text"].encode()) for line in tiny.held_out.read_text("utf-8").splitlines())
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, abs=1e-5)
    # Twin: bits a token are another number.
    assert metrics["bits_per_byte"] != pytest.approx(nats / math.log(2) / count, abs=1e-2)


def test_log_and_metrics(trained: tuple[Path, dict[str, Any]], log_of: Any) -> None:
    output, metrics = trained
    log = log_of(output)
    assert [line["step"] for line in log] == list(range(1, len(log) + 1))
    # 128 + 384 min(1, seen / 1024), in rows of 32: the tokens read are those of full rows (one row may be shorter).
    assert log[0]["tokens"] <= 128
    assert log[-1]["tokens"] + 64 >= 2048
    assert log[-1]["loss"] < log[0]["loss"]
    assert metrics["parameters"] == 319 * 32 + 64 * 32 + 2 * (12 * 32**2 + 13 * 32) + 64


def test_output_is_plain_transformers(trained: tuple[Path, dict[str, Any]]) -> None:
    output, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(str(output))
    model = AutoModelForCausalLM.from_pretrained(str(output))
    batch = tokenizer("Anna has a", return_tensors="pt")
    made = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert made.shape[1] <= batch["input_ids"].shape[1] + 4
    assert tokenizer.model_max_length == 64
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 1


def test_micro_batches_change_nothing(
    tiny: Any, run: Any, trained: tuple[Path, dict[str, Any]], tmp_path: Path, weights: Any
) -> None:
    run(pretrain.STAGE, fields(tiny, micro_batch_tokens=64), tmp_path / "micro", tokenizer=tiny.tokenizer)
    assert_close(weights(tmp_path / "micro"), weights(trained[0]), rtol=0, atol=1e-5)


def test_another_seed_changes_the_weights(
    tiny: Any, run: Any, trained: tuple[Path, dict[str, Any]], tmp_path: Path, weights: Any
) -> None:
    run(pretrain.STAGE, fields(tiny, seed=1), tmp_path / "seed", tokenizer=tiny.tokenizer)
    with pytest.raises(AssertionError):
        assert_close(weights(tmp_path / "seed"), weights(trained[0]), rtol=0, atol=1e-5)


def test_gradient_checkpointing_and_llama(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64,
    }  # fmt: skip
    changes = {"architecture": {"model_type": "llama", "fields": sizes}, "tokens": 512, "ramp_tokens": 0}
    for name, switch in (("plain", False), ("checkpointed", True)):
        run(
            pretrain.STAGE,
            fields(tiny, **changes, gradient_checkpointing=switch),
            tmp_path / name,
            tokenizer=tiny.tokenizer,
        )
    assert_close(weights(tmp_path / "plain"), weights(tmp_path / "checkpointed"), rtol=0, atol=1e-6)


def test_rows_longer_than_the_context(tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain\.sequence_length: 65 is longer than the model's context of 64"):
        run(pretrain.STAGE, fields(tiny, sequence_length=65), tmp_path / "long", tokenizer=tiny.tokenizer)
