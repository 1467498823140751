"""What the machine does to a stage, in real processes: a full disk, a read-only one, a killed rank, a second run.

Slow. Those that mount a file system need root, and skip with a word elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

AT_ONCE = 30.0
"""Seconds within which the others end when one process of a job is killed."""


def words_of(folder: Path, name: str, table: dict[str, Any], inputs: dict[str, Path], output: Path) -> list[str]:
    """The command of a stage; its config is written into `folder`."""
    content = {"device": "cpu", "track": [], **table, "output": str(output)}
    content["inputs"] = {key: str(path) for key, path in inputs.items()}
    path = folder / f"{output.name}.stage.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return ["-m", f"gptlife.stages.{name}", "--config", str(path)]


def ran(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


def pretraining(tiny: Any) -> tuple[dict[str, Any], dict[str, Path]]:
    """Twelve steps of a model whose checkpoints have about two megabytes."""
    sizes = {"n_embd": 96, "n_layer": 1, "n_head": 2, "n_positions": 64}
    fields = {"data": str(tiny.text), "validation": str(tiny.held_out), "sequence_length": 32, "tokens": 3072,
              "batch_tokens": 256, "ramp_tokens": 0, "warmup_tokens": 256, "decay_tokens": 3072,
              "architecture": {"model_type": "gpt2", "fields": sizes}, "checkpoint_seconds": 0.0}  # fmt: skip
    return fields, {"tokenizer": tiny.tokenizer}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk("size=4m")`: a file system in memory of such options; called again, it changes them."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        again = "remount," if place.is_dir() else ""
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no `mount` here")
        if done.returncode:
            pytest.skip(f"a file system can't be mounted here ({done.stderr.strip()})")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def test_a_full_disk(tiny: Any, tmp_path: Path, disk: Callable[[str], Path], digests: Any, log_of: Any) -> None:
    fields, inputs = pretraining(tiny)
    whole = ran(words_of(tmp_path, "pretrain", fields, inputs, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    output = disk("size=4m") / "out"
    words = words_of(tmp_path, "pretrain", fields, inputs, output)
    full = ran(words)
    assert full.returncode == 2, full.stderr
    last = full.stderr.splitlines()[-1]
    assert "can't be written (No space left on device)" in last
    assert "the last good one stays; make room, or choose another place, and run again to resume" in last
    assert "Traceback" not in full.stderr
    kept = sorted(path.name for path in (output.with_name("out.partial") / "checkpoints").glob("step-*"))
    assert kept
    assert not any(name.endswith(".partial") for name in kept)
    disk("size=64m")
    again = ran(words)
    assert again.returncode == 0, again.stderr
    assert "damaged" not in again.stderr
    assert digests(output) == digests(tmp_path / "whole")
    assert log_of(output) == log_of(tmp_path / "whole")


def test_a_read_only_disk(tiny: Any, tmp_path: Path, disk: Callable[[str], Path]) -> None:
    fields, inputs = pretraining(tiny)
    output = disk("size=64m") / "out"
    disk("ro")
    refused = ran(words_of(tmp_path, "pretrain", fields, inputs, output))
    assert refused.returncode == 2
    said = f"{output.parent}: can't be written (Read-only file system); choose another place"
    assert refused.stderr == f"pretrain: {said}\n"


def rank_of(pid: int) -> str | None:
    """RANK in a process's environment."""
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((value[5:].decode() for value in found if value.startswith(b"RANK=")), None)


def test_a_killed_rank_ends_the_job_and_it_goes_on(tiny: Any, tmp_path: Path, digests: Any, log_of: Any) -> None:
    fields = {"data": str(tiny.conversations), "epochs": 40, "batch_size": 16, "learning_rate": 1e-3, "processes": 2,
              "residual_dropout": 0.1, "checkpoint_seconds": 0.0}  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def start(output: Path) -> subprocess.Popen[str]:
        words = words_of(tmp_path, "sft", fields, {"base": tiny.pretrain}, output)
        command = [sys.executable, *launcher, *words]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    assert whole.communicate(timeout=240)[1] is not None
    assert whole.returncode == 0
    job, log = start(tmp_path / "hurt"), tmp_path / "hurt.partial" / "log.jsonl"
    end = time.monotonic() + 120
    while not (log.is_file() and log.read_text("utf-8").count("\n") >= 5):
        assert time.monotonic() < end
        assert job.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text("utf-8").split()
    victim = next(int(pid) for pid in children if rank_of(int(pid)) == "1")  # of this job, and of no other here
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    said = job.communicate(timeout=AT_ONCE)[1]
    assert time.monotonic() - killed < AT_ONCE
    assert job.returncode != 0
    assert "(local_rank: 1)" in said or "rank      : 1" in said
    assert "SIGKILL" in said
    assert not (tmp_path / "hurt").exists()
    again = start(tmp_path / "hurt")
    assert again.communicate(timeout=240)[1] is not None
    assert again.returncode == 0
    assert digests(tmp_path / "hurt") == digests(tmp_path / "whole")
    assert log_of(tmp_path / "hurt") == log_of(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_ends_with_130_and_a_checkpoint(number: int, tiny: Any, tmp_path: Path, digests: Any) -> None:
    fields, inputs = pretraining(tiny)
    fields |= {"tokens": 64 * 1024, "checkpoint_seconds": 3600.0}
    words = words_of(tmp_path, "pretrain", fields, inputs, tmp_path / "out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stage = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)
    log, end = tmp_path / "out.partial" / "log.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text("utf-8").count("\n") >= 3):
        assert time.monotonic() < end
        assert stage.poll() is None
        time.sleep(0.01)
    stage.send_signal(number)
    said = stage.communicate(timeout=60)[1]
    assert stage.returncode == 130
    assert said.splitlines()[-1] == "pretrain: interrupted; run the same command again to resume"
    steps = [json.loads(line)["step"] for line in log.read_text("utf-8").splitlines()]
    (kept,) = (tmp_path / "out.partial" / "checkpoints").glob("step-*")
    assert kept.name == f"step-{steps[-1]:08d}"  # nothing that was done is lost
    assert ran(words).returncode == 0
    assert ran(words_of(tmp_path, "pretrain", fields, inputs, tmp_path / "whole")).returncode == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_two_orchestrators_on_one_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gptlife.pipelines.cli", "run", "smoke", "--until", "tokenizer", "--store"]
    runs = [
        subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [(run.communicate(timeout=240)[1], run.returncode) for run in runs]
    assert 0 in [code for _, code in ends]
    for said, code in ends:
        assert code == 0 or (code == 2 and ") is working on it; wait for it, or stop it" in said)
    assert subprocess.run([*command, str(tmp_path)], capture_output=True, check=False).returncode == 0
    assert len(list(tmp_path.glob("tokenizer-*/manifest.json"))) == 1
