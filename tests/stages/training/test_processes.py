"""Two processes against one: the same losses, rollouts and weights, with the stages' own command lines.

`processes: 2` lets the stage itself say that there are two. The launcher runs the module as a cluster's would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.testing import assert_close

from gptlife.stages import cispo, comparisons, grpo, ppo, pretrain, reward_model, rloo, sft

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`launch("sft", fields, output, inputs)`: the stage in two processes; `launcher` and `before` may be given."""

    def start(
        name: str,
        fields: dict[str, Any],
        output: Path,
        inputs: dict[str, Path],
        launcher: tuple[str, ...] = TORCHRUN,
        before: str = "",
    ) -> subprocess.CompletedProcess[str]:
        table = {"device": "cpu", "track": [], "processes": 2, **fields, "output": str(output)}
        table["inputs"] = {key: str(path) for key, path in inputs.items()}
        path = tmp_path / "stage.yaml"
        path.write_text(yaml.safe_dump(table), encoding="utf-8")
        module = ["-m", f"gptlife.stages.{name}"]
        if before:
            script = tmp_path / "before.py"
            script.write_text(f"{before}\nfrom gptlife.stages.{name} import STAGE\nSTAGE.main()\n", encoding="utf-8")
            module = [str(script)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, *module, "--config", str(path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)

    return start


def close(one: list[dict[str, Any]], two: list[dict[str, Any]], names: tuple[str, ...], tolerance: float) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() & set(names):
            assert second[name] == pytest.approx(first[name], rel=tolerance, abs=tolerance)
    assert set(names) <= {name for line in one for name in line}


def tuning(tiny: Any) -> dict[str, Any]:
    return {
        "data": str(tiny.conversations), "epochs": 1, "batch_size": 15, "learning_rate": 1e-3, "adam_eps": 1e-5,
        "residual_dropout": 0.0, "validate_every": 2, "micro_batch_tokens": 128,
    }  # fmt: skip


def test_sft(tiny: Any, run: Any, tmp_path: Path, log_of: Any, weights: Any, launch: Callable[..., Any]) -> None:
    run(sft.STAGE, tuning(tiny), tmp_path / "one", base=tiny.pretrain)
    done = launch("sft", tuning(tiny), tmp_path / "two", {"base": tiny.pretrain})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "manifest.json").read_text("utf-8"))["processes"] == 2
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == 3  # 43 conversations: a last batch of 13, which two processes can't halve
    close(one, two, ("loss", "accuracy", "grad_norm", "tokens", "learning_rate", "validation_loss"), 1e-5)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(weights(tmp_path / "two"), weights(tiny.pretrain), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_sft_by_accelerate(tiny: Any, run: Any, tmp_path: Path, log_of: Any, launch: Callable[..., Any]) -> None:
    run(sft.STAGE, tuning(tiny), tmp_path / "one", base=tiny.pretrain)
    done = launch("sft", tuning(tiny), tmp_path / "two", {"base": tiny.pretrain}, launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr[-3000:]
    close(log_of(tmp_path / "one"), log_of(tmp_path / "two"), ("loss", "grad_norm", "validation_loss"), 1e-5)


@pytest.mark.slow
def test_another_number_of_processes(tiny: Any, tmp_path: Path, launch: Callable[..., Any]) -> None:
    done = launch("sft", {**tuning(tiny), "processes": 3}, tmp_path / "two", {"base": tiny.pretrain})
    assert done.returncode != 0
    assert done.stderr.count("processes is 3, but 2 started; check the launcher") == 1
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_pretrain(tiny: Any, run: Any, tmp_path: Path, log_of: Any, weights: Any, launch: Callable[..., Any]) -> None:
    fields = {
        "data": str(tiny.text), "validation": str(tiny.held_out), "sequence_length": 32, "tokens": 1024,
        "batch_tokens": 160, "ramp_tokens": 320, "ramp_from_tokens": 32, "warmup_tokens": 256, "decay_tokens": 1024,
        "architecture": {"model_type": "gpt2", "fields": SIZES}, "validate_every": 3, "learning_rate": 1e-3,
        "adam_eps": 1e-5,
    }  # fmt: skip
    run(pretrain.STAGE, fields, tmp_path / "one", tokenizer=tiny.tokenizer)
    done = launch("pretrain", fields, tmp_path / "two", {"tokenizer": tiny.tokenizer})
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert one[0]["tokens"] == 32  # one row: the second process has none
    close(one, two, ("loss", "accuracy", "grad_norm", "tokens", "validation_loss", "bits_per_byte"), 1e-5)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_reward_model(
    tiny: Any, run: Any, tmp_path: Path, log_of: Any, weights: Any, launch: Callable[..., Any]
) -> None:
    fields = {"learning_rate": 1e-3, "batch_size": 5, "adam_eps": 1e-5, "demonstrations": str(tiny.conversations)}
    inputs = {"base": tiny.sft, "comparisons": tiny.comparisons}
    run(reward_model.STAGE, fields, tmp_path / "one", **inputs)
    done = launch("reward_model", fields, tmp_path / "two", inputs)
    assert done.returncode == 0, done.stderr[-3000:]
    close(log_of(tmp_path / "one"), log_of(tmp_path / "two"), ("loss", "accuracy", "grad_norm"), 1e-5)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_comparisons(tiny: Any, run: Any, tmp_path: Path, launch: Callable[..., Any]) -> None:
    fields = {
        "prompts": str(tiny.prompts), "validation": 0.25, "labelers": {"function": f"{tiny.functions}:rank"},
        "max_new_tokens": 8, "chunk": 7,
    }  # fmt: skip
    run(comparisons.STAGE, fields, tmp_path / "one", policy=tiny.sft)
    done = launch("comparisons", fields, tmp_path / "two", {"policy": tiny.sft})
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


CUT = """\
from gptlife.stages.training.checkpoints import Checkpoints
Checkpoints.due = lambda self: True
save = Checkpoints.save
def saved(self, step, state):
    save(self, step, state)
    if step == 2:
        raise SystemExit(7)
Checkpoints.save = saved
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "own"),
    [
        (ppo.STAGE, {"value_learning_rate": 1e-4}),
        (ppo.STAGE, {"value_learning_rate": 1e-4, "lora": {"rank": 4}}),
        (rloo.STAGE, {"answers_per_prompt": 5}),
        (grpo.STAGE, {"answers_per_prompt": 5, "kl_coef": 0.04}),
        (cispo.STAGE, {"answers_per_prompt": 5}),
    ],
    ids=["ppo", "ppo-lora", "rloo", "grpo", "cispo"],
)
def test_online_stages_and_their_checkpoints(
    stage: Any, own: dict[str, Any], tiny: Any, run: Any, tmp_path: Path, log_of: Any, weights: Any,
    digests: Any, launch: Callable[..., Any],
) -> None:  # fmt: skip
    fields = {
        "prompts": str(tiny.prompts), "pretraining": str(tiny.text), "ptx_rows_per_episode": 0.5, "ptx_length": 16,
        "steps": 3, "batch_size": 10, "minibatch_size": 5, "max_new_tokens": 8, "learning_rate": 1e-4,
        "warmup_steps": 0, "ema": 0.9, "sample_every": 1, "micro_batch_tokens": 100, "keep_every": 2, **own,
    }  # fmt: skip
    inputs = {"policy": tiny.sft, "reward": tiny.reward_model}
    run(stage, fields, tmp_path / "one", **inputs)
    done = launch(stage.name, fields, tmp_path / "two", inputs)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line["samples"][0]["answer"] for line in one] == [line["samples"][0]["answer"] for line in two]
    exact = {"kl": 0.0, "first_ratio": 1.0, "first_approx_kl": 0.0, "first_clipfrac": 0.0}
    assert {name: two[0][name] for name in exact} == exact
    names = ["score", "kl", "length", "eos_rate", "rlhf_reward", "policy_loss", "approx_kl", "ptx_loss", "score_se",
             "policy_grad_norm", "entropy"]  # fmt: skip
    if stage is ppo.STAGE:
        names += ["value_loss", "value_grad_norm"]
    close(one, two, tuple(names), 1e-4)
    for part in ("", "ema", "steps/2", *(["value"] if stage is ppo.STAGE else [])):
        assert_close(weights(tmp_path / "two" / part), weights(tmp_path / "one" / part), rtol=0, atol=1e-5)

    cut = launch(stage.name, fields, tmp_path / "parts", inputs, before=CUT)
    assert cut.returncode != 0
    kept = sorted(path.name for path in (tmp_path / "parts.partial" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000001", "step-00000002"]
    again = launch(stage.name, fields, tmp_path / "parts", inputs)
    assert again.returncode == 0, again.stderr[-3000:]
    assert digests(tmp_path / "parts") == digests(tmp_path / "two")
    assert log_of(tmp_path / "parts") == two
