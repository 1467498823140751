"""A stage that was interrupted and run again ends with the very weights and log of one that was not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_model

from gptlife.stages import cispo, grpo, ppo, pretrain, reward_model, rloo, sft
from gptlife.stages.runtime.execution import COST

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


def case(name: str, tiny: Any) -> tuple[Any, dict[str, Any], dict[str, Path]]:
    """(stage, fields, inputs)."""
    text, talks = str(tiny.text), str(tiny.conversations)
    ranked = {"base": tiny.sft, "comparisons": tiny.comparisons}
    players = {"policy": tiny.sft, "reward": tiny.reward_model}
    steps = {"steps": 4, "batch_size": 8, "minibatch_size": 4, "max_new_tokens": 8, "learning_rate": 1e-3,
             "prompts": str(tiny.prompts), "pretraining": text, "ptx_rows_per_episode": 0.5, "ptx_length": 16
             }  # fmt: skip
    groups = {"answers_per_prompt": 4, "ema": 0.9, "adaptive_kl": {"target": 0.01, "horizon": 20}}
    return {
        "pretrain": (
            pretrain.STAGE,
            {"data": text, "validation": str(tiny.held_out), "sequence_length": 32, "tokens": 1536, "batch_tokens": 256,
             "ramp_from_tokens": 64, "ramp_tokens": 512, "warmup_tokens": 256, "decay_tokens": 1536,
             "validate_every": 2, "dropout": 0.1, "architecture": {"model_type": "gpt2", "fields": SIZES}},
            {"tokenizer": tiny.tokenizer},
        ),
        "sft": (
            sft.STAGE,
            {"data": talks, "epochs": 2, "batch_size": 16, "learning_rate": 3e-1, "residual_dropout": 0.2,
             "validate_every": 1, "pretraining": text, "pretraining_length": 16, "min_lr_ratio": 1.0},
            {"base": tiny.pretrain},
        ),
        "sft_lora": (
            sft.STAGE,
            {"data": talks, "epochs": 2, "batch_size": 16, "learning_rate": 5e-3, "lora": {"rank": 4, "dropout": 0.1}},
            {"base": tiny.pretrain},
        ),
        "reward_model": (
            reward_model.STAGE,
            {"learning_rate": 1e-3, "batch_size": 4, "validate_every": 2, "demonstrations": talks},
            ranked,
        ),
        "ppo": (ppo.STAGE, {**steps, "ema": 0.9, "adaptive_kl": {"target": 0.01, "horizon": 20}}, players),
        "ppo_lora": (ppo.STAGE, {**steps, "ema": 0.9, "lora": {"rank": 4}}, players),
        "rloo": (rloo.STAGE, {**steps, "ema": 0.9, "adaptive_kl": {"target": 0.01, "horizon": 20}}, players),
        "rloo_lora": (rloo.STAGE, {**steps, "ema": 0.9, "lora": {"rank": 4}, "inner_epochs": 2}, players),
        "grpo": (grpo.STAGE, {**steps, **groups, "mask_truncated": True, "inner_epochs": 2}, players),
        "cispo": (cispo.STAGE, {**steps, **groups, "clip_range_high": 0.5, "inner_epochs": 2}, players),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["pretrain", "sft", "sft_lora", "reward_model", "ppo", "ppo_lora", "rloo", "rloo_lora", "grpo", "cispo"]
)
def test_resumed_is_uninterrupted(
    name: str,
    tiny: Any,
    run: Any,
    tmp_path: Path,
    digests: Any,
    log_of: Any,
    cut_short: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, fields, inputs = case(name, tiny)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = run(stage, fields, whole, **inputs)
    cuts = (2, 5) if name == "sft" else (2, 3)
    if name == "sft":
        assert metrics["best_step"] == 3  # the best weights are older than the last checkpoint
    load_state = Accelerator.load_state

    def forgetful(self: Accelerator, folder: str) -> None:
        load_state(self, folder)
        # What is random in a step is a function of the step: no generator's state may matter.
        torch.manual_seed(12345)
        random.seed(12345)

    monkeypatch.setattr(Accelerator, "load_state", forgetful)
    for step in cuts:
        cut_short(step, lambda: run(stage, fields, parts, **inputs))
        assert [line["step"] for line in log_of(parts)] == list(range(1, step + 1))
        assert (parts / "checkpoints" / f"step-{step - 1:08d}").is_dir()
    assert not list(parts.glob("*.safetensors"))
    again = run(stage, fields, parts, **inputs)
    assert digests(parts) == digests(whole)
    assert log_of(parts) == log_of(whole)
    assert len(log_of(whole)) > 3
    assert {k: v for k, v in again.items() if k not in COST} == {k: v for k, v in metrics.items() if k not in COST}


def test_without_its_optimizer_a_run_ends_elsewhere(
    tiny: Any, run: Any, tmp_path: Path, digests: Any, cut_short: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: what resumes from weights and step alone is not the same."""
    stage, fields, inputs = case("sft_lora", tiny)
    fields = {key: value for key, value in fields.items() if key != "lora"}
    run(stage, fields, tmp_path / "whole", **inputs)
    cut_short(3, lambda: run(stage, fields, tmp_path / "parts", **inputs))

    def weights_only(self: Accelerator, folder: str) -> None:
        model: torch.nn.Module = self._models[0]
        load_model(model, str(Path(folder) / "model.safetensors"), strict=False)

    monkeypatch.setattr(Accelerator, "load_state", weights_only)
    run(stage, fields, tmp_path / "parts", **inputs)
    assert digests(tmp_path / "parts") != digests(tmp_path / "whole")


def test_a_torn_checkpoint_is_passed_over(
    tiny: Any, run: Any, tmp_path: Path, digests: Any, log_of: Any, cut_short: Callable[..., Any]
) -> None:
    stage, fields, inputs = case("reward_model", tiny)
    run(stage, fields, tmp_path / "whole", **inputs)
    parts = tmp_path / "parts"
    cut_short(4, lambda: run(stage, fields, parts, **inputs))
    kept = sorted(path.name for path in (parts / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000003"]
    # As a kill leaves them: the newest without its mark of completeness, and one that was never renamed.
    (parts / "checkpoints" / "step-00000003" / "state").unlink()
    shutil.copytree(parts / "checkpoints" / "step-00000002", parts / "checkpoints" / "step-00000009.partial")
    with (parts / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss"')
    run(stage, fields, parts, **inputs)
    assert digests(parts) == digests(tmp_path / "whole")
    assert log_of(parts) == log_of(tmp_path / "whole")
