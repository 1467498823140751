"""The stages on real, published files: a few steps each, to see that nothing in them trips."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gptlife.stages import evaluation, pretrain, reward_model, sft, tokenizer


@pytest.fixture(scope="module")
def base(shared_data: Path, run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    text = {"path": str(shared_data / "pretrain" / "small_val.jsonl.gz"), "limit": 40}
    run(tokenizer.STAGE, {"data": text, "vocabulary": 1000}, folder / "tokenizer")
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256}
    fields = {
        "data": text, "validation": str(shared_data / "pretrain" / "medium_imdb_val.jsonl.gz"), "sequence_length": 128,
        "tokens": 65_536, "batch_tokens": 4096, "ramp_tokens": 0, "warmup_tokens": 8192, "decay_tokens": 65_536,
        "learning_rate": 1e-2, "architecture": {"model_type": "gpt2", "fields": sizes}, "validate_every": 1000,
    }  # fmt: skip
    fields["validation"] = {"path": fields["validation"], "limit": 10}
    metrics = run(pretrain.STAGE, fields, folder / "base", tokenizer=folder / "tokenizer")
    # Better than every token alike, on other text.
    assert metrics["validation_loss"] < math.log(1000) - 0.3
    return folder / "base"


def test_grade_school_mathematics(shared_data: Path, base: Path, run: Any, tmp_path: Path) -> None:
    data = {"path": str(shared_data / "instruct" / "gsm8k_test.jsonl.gz"), "limit": 40}
    fields = {"data": data, "too_long": "skip", "epochs": 1, "batch_size": 8, "learning_rate": 1e-2}
    metrics = run(sft.STAGE, fields, tmp_path / "sft", base=base)
    assert metrics["validation_loss"] < metrics["validation_loss_before"]


def test_helpful_and_harmless_pairs(shared_data: Path, base: Path, run: Any, tmp_path: Path) -> None:
    data = {"path": str(shared_data / "preference" / "hh_harmless_base_part_test.jsonl.gz"), "limit": 60}
    fields = {"data": data, "batch_size": 16, "learning_rate": 1e-3}
    metrics = run(reward_model.STAGE, fields, tmp_path / "reward", base=base)
    assert 10 < metrics["rankings"] <= 54
    assert math.isfinite(metrics["loss"])


def test_vicuna_questions(shared_data: Path, base: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def judge(prompts, answers):\n    return [len(a) for a in answers]\n", "utf-8")
    prompts = {"path": str(shared_data / "eval" / "vicuna_test_set.jsonl"), "limit": 6, "fields": {"prompt": "text"}}
    fields = {"prompts": prompts, "judge": {"function": f"{tmp_path / 'judge.py'}:judge"}, "max_new_tokens": 8}
    run(evaluation.STAGE, fields, tmp_path / "evaluation", base=base, sft=base)
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "answers.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 6
    assert all(row["answers"]["sft"]["text"] for row in rows)
