"""How a stage is run: under its output's lock, on verified inputs, to a manifest, a model card and one rename."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlife.data.errors import UserError
from gptlife.stages.runtime import artifact, trust
from gptlife.stages.runtime.card import About, write_card
from gptlife.stages.runtime.config import StageConfig
from gptlife.stages.runtime.files import write_json
from gptlife.stages.runtime.provenance import code_commit, device_record, versions
from gptlife.stages.runtime.world import rank, world_size

Metrics = dict[str, Any]
COST = (
    "seconds",
    "seconds_sampling",
    "seconds_scoring",
    "seconds_updating",
    "tokens_per_second",
    "checkpoints",
    "checkpoint_seconds",
    "checkpoint_mb",
    "mfu",
    "peak_gpu_memory_mb",
)
"""Metrics of the machine and the day: they go to the manifest, so that equal runs have equal `metrics.json`."""


@dataclass(frozen=True)
class Job:
    """One run of a stage."""

    about: About
    version: int
    config: StageConfig
    inputs: Mapping[str, Path]
    output: Path
    run: Callable[[Path], Metrics]
    """Does the work in a directory and returns the metrics."""
    identity: Callable[[], dict[str, Any]]
    """What enters the address besides the inputs' addresses; reads the data files again at each call."""

    def input_addresses(self) -> dict[str, str]:
        """The address of each input."""
        return {name: artifact.address_of(path) for name, path in self.inputs.items()}

    def stage_file(self) -> dict[str, Any]:
        """The content of `stage.yaml`, which makes this output again."""
        return {
            "stage": self.about.stage,
            "version": self.version,
            "identity": self.identity(),
            "inputs": {name: str(path) for name, path in self.inputs.items()},
            "input_addresses": self.input_addresses(),
            "output": str(self.output),
            **self.config.model_dump(mode="json"),
        }


def execute(job: Job) -> None:
    """Run the job, on every process of it; where its output is complete already, only say so.

    Raises:
        UserError: for what the user can fix: an output of another config or of other inputs, a held lock, a damaged
            input, data that changed during the run.
    """
    if artifact.is_complete(job.output):
        _confirm(job)
    elif rank() > 0:
        _run(job, artifact.partial_of(job.output))
    else:
        with artifact.locked(job.output):
            if not artifact.is_complete(job.output):
                for path in job.inputs.values():
                    if artifact.is_complete(path):
                        artifact.verify(path)
                _work(job)
            elif world_size() == 1:
                _confirm(job)
            else:  # the other processes may be at work already: only a failure makes the launcher end them
                raise UserError(f"{job.output}: finished meanwhile by another run; run again")


def _confirm(job: Job) -> None:
    """Say that the output is complete, if it is this config's."""
    if rank() == 0:
        artifact.refuse_another(job.output, job.stage_file(), "made with")
        artifact.forget_checkpoints(job.output)
        print(f"{job.about.stage}: {job.output} is complete already")


def _work(job: Job) -> None:
    """On the first process: run the job in its partial directory, and complete the output."""
    partial = artifact.begin(job.output, job.stage_file())
    started, begun, identity = time.time(), time.monotonic(), job.identity()
    metrics = _run(job, partial)
    metrics.setdefault("seconds", round(time.monotonic() - begun, 2))
    # The run may have taken days: an address tells what an output was made from.
    if changed := artifact.changes(identity, job.identity()):
        raise UserError(
            f"{job.output}: the input data changed during the run (differs in: {artifact.few(changed)}), so this "
            f"output was discarded; remove {partial}, and run again"
        )
    manifest = _manifest(job, metrics, started)
    result = {name: value for name, value in metrics.items() if name not in COST}
    write_json(partial / artifact.METRICS, result)
    write_card(partial, job.about, manifest, result)
    artifact.commit(partial, job.output, manifest)


def _run(job: Job, partial: Path) -> Metrics:
    with ExitStack() as settings:
        settings.enter_context(trust.trusting(job.config.trust_remote_code))
        if job.config.deterministic:
            from gptlife.stages.runtime.device import same_bits

            settings.enter_context(same_bits())
        return job.run(partial)


def _manifest(job: Job, metrics: Metrics, started: float) -> dict[str, Any]:
    """The manifest without the list of files; `started` is the clock's time."""
    return {
        "stage": job.about.stage,
        "family": job.about.family,
        "version": job.version,
        "address": job.output.name,
        "inputs": job.input_addresses(),
        "identity": job.identity(),
        "versions": versions(),
        "commit": code_commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": metrics["seconds"],
        "cost": {name: metrics[name] for name in COST if name in metrics},
        "tokens": metrics.get("tokens"),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "processes": world_size(),
        **_device(job),
    }


def _device(job: Job) -> dict[str, Any]:
    """The device that the stage used last; a stage that never imported torch ran on the CPU."""
    if "torch" not in sys.modules:
        return {"device": "cpu", "same_bits": True}
    return device_record(artifact.partial_of(job.output), job.config.device, job.config.deterministic)
