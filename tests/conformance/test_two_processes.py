"""The loss doesn't depend on the number of processes: one PPO-ptx step in two, which meet over gloo, and in one.

Sums before means: a loss is divided by the count of the whole batch. TRL 1.12 whitens and averages in each process by
itself, so its update depends on how the episodes fall to the processes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SCRIPT = """\
import json, pathlib, sys, torch
from gptlife.data.config import decode
from gptlife.stages import loop, online_step, ppo

fields, inputs, folder = json.loads(sys.argv[1])
torch.optim.AdamW = lambda groups, lr, **_: torch.optim.SGD([p for g in groups for p in g["params"]], lr=lr)

def go(name, **changes):
    config = decode(ppo.PPOConfig, {**fields, **changes}, "ppo")
    output = pathlib.Path(folder) / name
    output.mkdir(parents=True, exist_ok=True)
    return ppo.run(config, output, **{key: pathlib.Path(path) for key, path in inputs.items()})

go("two")
def by_mean(accelerator, model, groups, loss, denominator, last=True):
    return loop.backward_over(accelerator, model, groups, loss, denominator * accelerator.num_processes, last)
online_step.backward_over = by_mean
go("broken")
"""


def in_two_processes(fields: dict[str, Any], inputs: dict[str, str], folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, json.dumps([fields, inputs, str(folder)])]
    running = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]  # fmt: skip
    for process in running:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error[-3000:]


@pytest.mark.slow
def test_loss_does_not_depend_on_processes(world: Any, run: Callable[..., Any], tmp_path: Path) -> None:
    """Sums before means: the gradients (weights after plain descent) and metrics of one process and of two."""
    import torch

    from gptlife.stages import ppo

    fields: dict[str, Any] = {
        "prompts": str(world.prompts), "pretraining": str(world.text), "ptx_length": 8, "ptx_rows_per_episode": 0.5,
        "ptx_coef": 2.0, "steps": 2, "batch_size": 7, "minibatch_size": 7, "max_new_tokens": 6, "warmup_steps": 0,
        "kl_coef": 0.3, "ema": None, "learning_rate": 0.02, "value_learning_rate": 0.02, "max_grad_norm": 1e9,
        "device": "cpu", "track": [], "sample_every": 1, "micro_batch_tokens": 40,
    }  # fmt: skip
    inputs = {"policy": str(world.policy), "reward": str(world.reward)}

    def descent(groups: Any, lr: float, **_: Any) -> torch.optim.SGD:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", descent)
        run(ppo.STAGE, fields, tmp_path / "one", policy=world.policy, reward=world.reward)
    in_two_processes(fields, inputs, tmp_path)

    def check(other: Path) -> None:
        for part in ("", "value"):
            found, expected = (load_file(str(path / part / "model.safetensors")) for path in (other, tmp_path / "one"))
            for name in expected:
                # The weights go by the rate times the gradient: 2e-5 in the gradient.
                assert float((found[name] - expected[name]).abs().max()) <= 4e-7, name
        one, two = (
            [json.loads(line) for line in (path / "log.jsonl").read_text("utf-8").splitlines()]
            for path in (tmp_path / "one", other)
        )
        for first, second in zip(one, two, strict=True):
            for name in ("score", "kl", "policy_loss", "value_loss", "approx_kl", "policy_grad_norm", "ptx_loss"):
                assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-5), name

    check(tmp_path / "two")
    with pytest.raises(AssertionError):
        check(tmp_path / "broken")
