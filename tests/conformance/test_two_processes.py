"""Nothing depends on the number of processes: PPO-ptx in two of them, which meet over gloo, and in one.

Sums before means: a loss is divided by the count of the whole batch. TRL 1.12 whitens and averages in each process by
itself, so its update depends on how the episodes fall to the processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compare import agree
from processes import in_processes, script
from safetensors.torch import load_file

TWINS = """\
backward_over, whiten = loop.backward_over, advantage.whiten
def by_mean(accelerator, model, groups, loss, denominator, last=True):
    return backward_over(accelerator, model, groups, loss, denominator * accelerator.num_processes, last)
loop.backward_over = by_mean
go("broken")
loop.backward_over = backward_over
def each_its_own(x, mask, shift_mean=True):
    mine = torch.arange(len(x)).unsqueeze(1) % 2 == RANK
    return whiten(x, mask & mine, shift_mean) + whiten(x, mask & ~mine, shift_mean)
advantage.whiten = each_its_own
go("alone")
"""
SCRIPT = script("ppo", "PPO", TWINS)
ONE: dict[str, Any] = {
    "ptx_length": 8, "ptx_rows_per_episode": 0.5, "ptx_coef": 2.0, "steps": 2, "batch_size": 7, "minibatch_size": 7,
    "max_new_tokens": 6, "warmup_steps": 0, "kl_coef": 0.3, "ema": None, "learning_rate": 0.02,
    "value_learning_rate": 0.02, "max_grad_norm": 1e9, "device": "cpu", "track": [], "sample_every": 1,
    "micro_batch_tokens": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one/processes`, `two/processes`, and the twins `two/broken` and `two/alone`: each a run of two steps."""
    folder = tmp_path_factory.mktemp("two")
    fields = {**ONE, "prompts": str(world.prompts), "pretraining": str(world.text)}
    inputs = {"policy": str(world.policy), "reward": str(world.reward)}
    in_processes(1, SCRIPT, fields, inputs, folder / "one")
    in_processes(2, SCRIPT, fields, inputs, folder / "two", "twins")
    return folder


@pytest.mark.slow
def test_loss_does_not_depend_on_processes(outputs: Path) -> None:
    """Sums before means: the gradients (weights after plain descent) and metrics of one process and of two."""
    one = outputs / "one" / "processes"

    def check(other: Path) -> None:
        for part in ("", "value"):
            found, expected = (load_file(str(path / part / "model.safetensors")) for path in (other, one))
            for name in expected:
                # The weights go by the rate times the gradient: 2e-5 in the gradient.
                assert float((found[name] - expected[name]).abs().max()) <= 4e-7, name
        first, second = (
            [json.loads(line) for line in (path / "log.jsonl").read_text("utf-8").splitlines()] for path in (one, other)
        )
        for a, b in zip(first, second, strict=True):
            for name in ("score", "kl", "policy_loss", "value_loss", "approx_kl", "policy_grad_norm", "ptx_loss"):
                assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), name

    check(outputs / "two" / "processes")
    with pytest.raises(AssertionError):
        check(outputs / "two" / "broken")


@pytest.mark.slow
def test_moments_over_all_processes(outputs: Path) -> None:
    """TRL 1.12 whitens each process's own share; here every process has the whole batch's advantages."""

    def advantages(folder: Path, rank: int) -> Any:
        return json.loads((folder / f"advantages-{rank}.json").read_text(encoding="utf-8"))[0]

    expected = advantages(outputs / "one" / "processes", 0)
    assert len(expected) == 7

    def check(folder: Path) -> None:
        for rank in (0, 1):
            agree(advantages(folder, rank), expected, 1e-4)

    check(outputs / "two" / "processes")
    with pytest.raises(AssertionError):
        check(outputs / "two" / "alone")
