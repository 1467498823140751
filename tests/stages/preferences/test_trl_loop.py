"""Both stages through TRL's loop: exact resuming, whole checkpoints only, nothing said or sent, several processes."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.testing import assert_close
from transformers import Trainer

from gptlife.stages import dpo, kto
from gptlife.stages.runtime import files, signals
from gptlife.stages.runtime.execution import COST
from gptlife.stages.training.checkpoints import Checkpoints

COMMON = {"learning_rate": 1e-3, "batch_size": 6, "warmup_steps": 1, "validate_every": 2, "adam_eps": 1e-5}
FIELDS: dict[str, dict[str, Any]] = {
    "dpo": {**COMMON, "pairs": "best_worst"},
    "kto": {**COMMON, "batch_size": 12, "kl_batch_size": 4},
}
STAGES = {"dpo": dpo.STAGE, "kto": kto.STAGE}
LORA = {"rank": 4, "dropout": 0.1}
each = pytest.mark.parametrize("name", ["dpo", "kto"])


@pytest.fixture(scope="module")
def trained(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    outputs = {name: tmp_path_factory.mktemp(name) / "one" for name in STAGES}
    for name, output in outputs.items():
        run(STAGES[name], FIELDS[name], output, policy=tiny.sft, comparisons=tiny.comparisons)
    return outputs


def checkpoints_of(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize(("name", "lora"), [("dpo", None), ("dpo", LORA), ("kto", None), ("kto", LORA)])
def test_resumed_is_uninterrupted(
    name: str, lora: Any, tiny: Any, run: Any, tmp_path: Path, digests: Any, log_of: Any,
    cut_short: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage, fields = STAGES[name], {**FIELDS[name], "epochs": 2, "lora": lora}
    inputs = {"policy": tiny.sft, "comparisons": tiny.comparisons}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = run(stage, fields, whole, **inputs)
    # What is random in a step is a function of the step: no generator's state may matter.
    monkeypatch.setattr(Trainer, "_load_rng_state", lambda self, folder: (torch.manual_seed(9), random.seed(9)))
    for step in (3, 5):
        cut_short(step, lambda: run(stage, fields, parts, **inputs))
        assert [line["step"] for line in log_of(parts)] == list(range(1, step + 1))
        assert checkpoints_of(parts)[-1] == f"checkpoint-{step - 1}"
    # The newest was not finished: its optimizer is missing, without which the Trainer would go on without a word.
    (parts / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()
    again = run(stage, fields, parts, **inputs)
    assert not (parts / "checkpoints" / "checkpoint-4").exists()
    assert digests(parts) == digests(whole)
    assert log_of(parts) == log_of(whole)
    assert len(log_of(whole)) >= 6
    assert {k: v for k, v in again.items() if k not in COST} == {k: v for k, v in metrics.items() if k not in COST}


@each
def test_a_checkpoint_without_its_optimizer_ends_elsewhere(
    name: str, tiny: Any, run: Any, trained: dict[str, Path], tmp_path: Path, digests: Any,
    cut_short: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The twin: what the list of files guards against."""

    def believed(self: Checkpoints, path: Path) -> dict[str, Any]:
        state = files.read_piece(path / "state")
        return {key: value for key, value in state.items() if key not in ("files", "log", "owner")}

    inputs = {"policy": tiny.sft, "comparisons": tiny.comparisons}
    cut_short(3, lambda: run(STAGES[name], FIELDS[name], tmp_path / "parts", **inputs))
    (tmp_path / "parts" / "checkpoints" / "checkpoint-2" / "optimizer.pt").unlink()
    monkeypatch.setattr(Checkpoints, "_good", believed)
    run(STAGES[name], FIELDS[name], tmp_path / "parts", **inputs)
    assert digests(tmp_path / "parts") != digests(trained[name])


@each
def test_being_asked_to_stop_keeps_the_step(
    name: str, tiny: Any, run: Any, trained: dict[str, Path], tmp_path: Path, digests: Any, log_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As SIGINT and SIGTERM do: `signals` notes them, and the loop looks after every step, here after the second."""
    inputs, asked = {"policy": tiny.sft, "comparisons": tiny.comparisons}, iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(signals, "stop_requested", lambda: next(asked))
        with pytest.raises(KeyboardInterrupt):
            run(STAGES[name], FIELDS[name], tmp_path / "parts", **inputs)
    assert checkpoints_of(tmp_path / "parts") == ["checkpoint-2"]
    assert [line["step"] for line in log_of(tmp_path / "parts")] == [1, 2]
    run(STAGES[name], FIELDS[name], tmp_path / "parts", **inputs)
    assert digests(tmp_path / "parts") == digests(trained[name])
    assert log_of(tmp_path / "parts") == log_of(trained[name])


@each
def test_old_checkpoints_go_once_a_new_one_is_sealed(
    name: str, tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one kept, there is always a whole one: killed while sealing the third, the second is still there."""
    seal, sealed = Checkpoints.seal, []

    def killed(self: Checkpoints, folder: Path, step: int, state: dict[str, Any]) -> None:
        sealed.append(checkpoints_of(self.output))
        if step == 3:
            raise KeyboardInterrupt
        seal(self, folder, step, state)

    monkeypatch.setattr(Checkpoints, "seal", killed)
    fields = {**FIELDS[name], "epochs": 2, "checkpoint_seconds": 0.0, "checkpoints_kept": 1}
    with pytest.raises(KeyboardInterrupt):
        run(STAGES[name], fields, tmp_path / "one", policy=tiny.sft, comparisons=tiny.comparisons)
    steps = [[f"checkpoint-{step}" for step in steps] for steps in ((1,), (1, 2), (2, 3))]
    assert sealed == steps
    assert (tmp_path / "one" / "checkpoints" / "checkpoint-2" / "state").is_file()


@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
@pytest.mark.parametrize(("name", "lora"), [("dpo", None), ("dpo", {"rank": 2}), ("kto", None)])
def test_nothing_is_sent_said_or_left_elsewhere(
    name: str, lora: Any, tiny: Any, run: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tried: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *rest, **_: tried.append(rest))
    monkeypatch.chdir(tmp_path)
    options = {**FIELDS[name], "checkpoint_seconds": 0.0, "lora": lora, "gradient_checkpointing": lora is not None}
    run(STAGES[name], options, tmp_path / "one", policy=tiny.sft, comparisons=tiny.comparisons)
    assert tried == []
    said = capfd.readouterr()
    assert said.out == ""
    assert all(line.startswith(f"{name} ") for line in said.err.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert len(checkpoints_of(tmp_path / "one")) == 2
    if lora is None:  # peft writes one with its adapters
        assert not list((tmp_path / "one").rglob("README.md"))


def test_micro_batches_of_pairs_change_nothing(
    tiny: Any, run: Any, trained: dict[str, Path], tmp_path: Path, log_of: Any
) -> None:
    options = {**FIELDS["dpo"], "micro_batch_tokens": 1}
    run(dpo.STAGE, options, tmp_path / "two", policy=tiny.sft, comparisons=tiny.comparisons)
    alike(log_of(trained["dpo"]), log_of(tmp_path / "two"))


def alike(ones: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(ones) == len(others) >= 3
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in {"loss", "grad_norm", "accuracy", "kl", "margin", "tokens", "learning_rate"} & one.keys():
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)


@each
def test_what_is_saved_is_the_policys_but_its_weights(
    name: str, tiny: Any, trained: dict[str, Path], weights: Any
) -> None:
    def settings(path: Path, file: str) -> dict[str, Any]:
        content = dict(json.loads((path / file).read_text("utf-8")))
        return {key: value for key, value in content.items() if key != "resid_pdrop"}  # 0 after training

    output = trained[name]
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert settings(output, file) == settings(tiny.sft, file)
    for file in ("chat_template.jinja", "tokenizer.json"):
        assert (output / file).read_bytes() == (tiny.sft / file).read_bytes()
    assert weights(output).keys() == weights(tiny.sft).keys()
    with pytest.raises(AssertionError):
        assert_close(weights(output), weights(tiny.sft), rtol=0, atol=1e-5)


CUT = """\
from gptlife.stages.preferences.trl_loop import TrainerCheckpoints
mark = TrainerCheckpoints.mark
def marked(self, step, state):
    mark(self, step, state)
    if step == 2:
        raise SystemExit(7)
TrainerCheckpoints.mark = marked
from gptlife.stages.{name} import STAGE
STAGE.main()
"""


@pytest.mark.slow
@each
def test_two_processes_and_their_checkpoints(
    name: str, tiny: Any, trained: dict[str, Path], tmp_path: Path, log_of: Any, weights: Any, digests: Any
) -> None:
    def launch(output: Path, *module: str) -> subprocess.CompletedProcess[str]:
        table = {"device": "cpu", "track": [], "processes": 2, "checkpoint_seconds": 0.0, "output": str(output)}
        table |= {**FIELDS[name], "inputs": {"policy": str(tiny.sft), "comparisons": str(tiny.comparisons)}}
        (tmp_path / "stage.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *module,
                   "--config", str(tmp_path / "stage.yaml")]  # fmt: skip
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)

    done = launch(tmp_path / "two", "-m", f"gptlife.stages.{name}")
    assert done.returncode == 0, done.stderr[-3000:]
    alike(log_of(trained[name]), log_of(tmp_path / "two"))
    assert_close(weights(tmp_path / "two"), weights(trained[name]), rtol=0, atol=1e-5)
    (tmp_path / "cut.py").write_text(CUT.format(name=name), encoding="utf-8")
    assert launch(tmp_path / "parts", str(tmp_path / "cut.py")).returncode != 0
    assert (tmp_path / "parts.partial" / "checkpoints" / "checkpoint-2" / "state").is_file()
    again = launch(tmp_path / "parts", "-m", f"gptlife.stages.{name}")
    assert again.returncode == 0, again.stderr[-3000:]
    assert digests(tmp_path / "parts") == digests(tmp_path / "two")
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "two")
