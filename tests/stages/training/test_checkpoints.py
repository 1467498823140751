"""Checkpoints: whole or absent, the newest good one taken, damage named, stopping kept."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from gptlife.data.errors import UserError
from gptlife.stages.runtime import artifact, signals
from gptlife.stages.runtime.files import keep_piece, read_piece
from gptlife.stages.training.checkpoints import Checkpoints


class Run:
    """A model, an optimizer and their checkpoints in a folder."""

    def __init__(self, output: Path, every: float | None = 60.0, keep: int = 2, **more: Any) -> None:
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(2, 1)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        self.checkpoints = Checkpoints(output, self.accelerator, every, keep, **more)

    def step(self) -> None:
        """One optimizer step."""
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()


def folders(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def three(output: Path) -> None:
    """Checkpoints of steps 1, 2 and 3, and a log with a line for each."""
    run = Run(output, keep=3)
    for step in (1, 2, 3):
        with (output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step}) + "\n")
        run.checkpoints.save(step, {"tokens": 10 * step})


def test_weights_optimizer_and_state_come_back(tmp_path: Path) -> None:
    one = Run(tmp_path)
    assert one.checkpoints.restore() is None
    one.step()
    one.checkpoints.save(7, {"tokens": 5})
    other = Run(tmp_path)
    assert other.checkpoints.restore() == {"step": 7, "tokens": 5}
    assert torch.equal(other.model.weight, one.model.weight)
    moments = [run.optimizer.state_dict()["state"][0]["exp_avg"] for run in (one, other)]
    assert torch.equal(*moments)
    assert float(moments[0].abs().sum()) > 0


def test_further_tensors_and_files_come_back_as_they_were(tmp_path: Path) -> None:
    best, average = tmp_path / "best.bin", torch.tensor([1.0, 2.0])
    best.write_bytes(b"best of step 1")
    Run(tmp_path, further={"average": average}, files=[best]).checkpoints.save(1, {})
    best.unlink()
    best.write_bytes(b"best of step 2, which is not kept")
    other = torch.zeros(2)
    assert Run(tmp_path, further={"average": other}, files=[best]).checkpoints.restore() == {"step": 1}
    assert (other.tolist(), best.read_bytes()) == ([1.0, 2.0], b"best of step 1")


def test_what_they_cost_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = Run(tmp_path, further={"average": torch.ones(100_000)}), iter(range(0, 1000, 3))
    monkeypatch.setattr("gptlife.stages.training.checkpoints.time.monotonic", lambda: float(next(clock)))
    assert run.checkpoints.cost() == {"checkpoints": 0, "checkpoint_seconds": 0.0, "checkpoint_mb": 0.0}
    for step in (1, 2):
        run.checkpoints.save(step, {})
    size = sum(path.stat().st_size for path in run.checkpoints.path(2).rglob("*") if path.is_file())
    assert run.checkpoints.bytes == size > 400_000
    assert run.checkpoints.cost() == {
        "checkpoints": 2,
        "checkpoint_seconds": 6.0,
        "checkpoint_mb": round(size / 1e6, 2),
    }


def test_the_newest_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 10):
        run.checkpoints.save(step, {})
    assert folders(tmp_path) == ["step-00000002", "step-00000010"]


def flip(path: Path) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_state(path: Path, **changes: Any) -> None:
    keep_piece(path / "state", {**read_piece(path / "state"), **changes})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped weights": (
        lambda path: flip(path / "model.safetensors"),
        "model.safetensors is damaged (its sha256",
    ),
    "flipped optimizer": (lambda path: flip(path / "optimizer.bin"), "optimizer.bin is damaged (its sha256 differs)"),
    "short": (lambda path: os.truncate(path / "model.safetensors", 50), "model.safetensors has 50 bytes in place of"),
    "no optimizer": (lambda path: (path / "optimizer.bin").unlink(), "optimizer.bin is missing"),
    "no rng": (lambda path: (path / "random_states_0.pkl").unlink(), "random_states_0.pkl is missing"),
    "no state": (lambda path: (path / "state").unlink(), "never finished, or its state is damaged"),
    "half a state": (lambda path: os.truncate(path / "state", 90), "never finished, or its state is damaged"),
    "flipped state": (lambda path: flip(path / "state"), "never finished, or its state is damaged"),
    "another's": (lambda path: edit_state(path, owner="0123456789ab"), "belongs to another config, or to other inputs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_stepped_over(damage: str, tmp_path: Path, capsys: Any) -> None:
    three(tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000003"
    hurt, words = DAMAGES[damage]
    hurt(newest)
    run = Run(tmp_path, keep=3)
    assert run.checkpoints.restore() == {"step": 2, "tokens": 20}
    said = capsys.readouterr().err
    assert said.startswith(f"{newest}: {words}")
    assert said.endswith("; trying an older one\n")
    # Out of the way of what follows, and still there to be looked at.
    assert folders(tmp_path) == ["step-00000001", "step-00000002", "step-00000003.damaged"]
    assert Run(tmp_path).checkpoints.restore() == {"step": 2, "tokens": 20}
    assert capsys.readouterr().err == ""


def test_an_undamaged_one_is_taken(tmp_path: Path, capsys: Any) -> None:
    """The twin."""
    three(tmp_path)
    assert Run(tmp_path).checkpoints.restore() == {"step": 3, "tokens": 30}
    assert capsys.readouterr().err == ""


def test_when_none_is_good_it_says_so(tmp_path: Path, capsys: Any) -> None:
    three(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "optimizer.bin").unlink()
    assert Run(tmp_path).checkpoints.restore() is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[-1] == f"{tmp_path / 'checkpoints'}: no good checkpoint is left; starting at the first step"


def test_a_log_that_lost_its_lines_takes_the_checkpoint_with_it(tmp_path: Path, capsys: Any) -> None:
    three(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step"', encoding="utf-8")
    assert Run(tmp_path).checkpoints.restore() == {"step": 2, "tokens": 20}
    assert f"step-00000003: the log up to it is damaged ({log}); trying an older one" in capsys.readouterr().err
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "and": "more"}\n', encoding="utf-8")
    assert Run(tmp_path).checkpoints.restore() == {"step": 2, "tokens": 20}


def test_it_belongs_to_what_the_output_is_to_become(tmp_path: Path, capsys: Any) -> None:
    mine, yours = ({"identity": {"config": {"size": size}}, "input_addresses": {"base": "b-1"}} for size in (1, 2))
    partial = artifact.begin(tmp_path / "mine", mine)
    three(partial)
    # Where the work is spread is no part of it; another config's folder, copied checkpoints and all, is.
    artifact.begin(tmp_path / "mine", {**mine, "workers": 9})
    assert Run(partial).checkpoints.restore() == {"step": 3, "tokens": 30}
    other = artifact.begin(tmp_path / "yours", yours)
    shutil.copytree(partial / "checkpoints", other / "checkpoints")
    shutil.copy(partial / "log.jsonl", other)
    assert Run(other).checkpoints.restore() is None
    assert capsys.readouterr().err.count("belongs to another config, or to other inputs") == 3


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:664]\nmore")],
)
def test_one_that_cannot_be_written_leaves_the_last_good_one(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(tmp_path)
    run = Run(tmp_path)
    save_state = Accelerator.save_state

    def full(self: Accelerator, folder: str) -> None:
        save_state(self, folder)
        raise error

    monkeypatch.setattr(Accelerator, "save_state", full)
    reason = re.escape(str(getattr(error, "strerror", None) or str(error).split("\n")[0]))
    with pytest.raises(UserError, match=rf"the checkpoint of step 4 can't be written \({reason}\); the last good one"):
        run.checkpoints.save(4, {})
    assert folders(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    assert Run(tmp_path).checkpoints.restore() == {"step": 3, "tokens": 30}


def test_a_full_disk_is_called_so_whatever_torch_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Accelerator, folder: str) -> None:
        raise RuntimeError("unexpected pos 531456 vs 531348")

    three(tmp_path)
    monkeypatch.setattr(Accelerator, "save_state", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=r"can't be written \(No space left on device\); the last good one stays"):
        Run(tmp_path).checkpoints.save(4, {})


def test_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints = Run(tmp_path, every=30.0).checkpoints
    found = []
    for moment in (120.0, 129.9, 130.0):
        now[0] = moment
        found.append(checkpoints.due())
    assert found == [False, False, True]
    checkpoints.save(1, {})
    now[0] = 159.0
    assert not checkpoints.due()


def test_by_default_they_take_a_fiftieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, save_state = [100.0], Accelerator.save_state
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def slow(self: Accelerator, folder: str) -> None:
        save_state(self, folder)
        now[0] += 3.0

    monkeypatch.setattr(Accelerator, "save_state", slow)
    checkpoints = Run(tmp_path, every=None).checkpoints
    found = []
    for wait in (59.0, 1.0):
        now[0] += wait
        found.append(checkpoints.due())
    assert found == [False, True]  # a minute, as long as it isn't known what one takes
    checkpoints.save(1, {})
    found = []
    for wait in (60.0, 89.0, 1.0):
        now[0] += wait
        found.append(checkpoints.due())
    assert found == [False, False, True]  # 50 x 3 s


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    checkpoints = Run(tmp_path, every=3600.0).checkpoints
    monkeypatch.setattr("time.time", lambda: 1e10)
    assert not checkpoints.due()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_keeps_the_step(number: int, tmp_path: Path, capsys: Any) -> None:
    run, taken = Run(tmp_path, every=3600.0), []

    def work() -> None:
        with signals.handle_signals("toy"), signals.stop_after_step():
            for step in (1, 2, 3):
                if step == 2:
                    os.kill(os.getpid(), number)
                taken.append(step)
                run.checkpoints.keep_up(step, {})

    with pytest.raises(KeyboardInterrupt):
        work()
    assert taken == [1, 2]
    assert capsys.readouterr().err == "\ntoy: stops after this step, and keeps it; Ctrl-C stops it at once\n"
    assert Run(tmp_path).checkpoints.restore() == {"step": 2}


def test_a_second_interrupt_stops_at_once() -> None:
    taken: list[str] = []

    def work() -> None:
        with signals.handle_signals("toy"), signals.stop_after_step():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher's, after the Ctrl-C that all heard: no second request
            taken.append("on")
            os.kill(os.getpid(), signal.SIGINT)
            taken.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert taken == ["on"]


def test_elsewhere_a_request_stops_at_once() -> None:
    before, went_on = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with signals.handle_signals("toy"):
            os.kill(os.getpid(), signal.SIGTERM)
            went_on.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not went_on
    assert signal.getsignal(signal.SIGTERM) is before
