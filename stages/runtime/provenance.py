"""The machines that an output's work is done on: going on as it was begun, or saying what differs.

Sums of floats are rounded in the order in which they are added, and that order hangs on the processes and threads, the
device, the processor's vector instructions, the packages' versions and the size of a micro-batch. Work that is stopped
and goes on with others of them ends with other bits. On a CPU the threads can be made the same, since fewer than there
are can always be taken (`run --jobs` gives each step a share of the cores); all else is said, and told in the manifest.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.artifact import CHECKPOINTS, kept_by_all
from gptlife.stages.runtime.device import described
from gptlife.stages.runtime.stage import StageConfig

_FILE = "machines.json"
_PACKAGES = ("gptlife", "torch", "transformers", "accelerate")
_SETTINGS = (
    "precision",
    "micro_batch_tokens",
    "generation_batch_size",
    "gradient_checkpointing",
    "share_prompts",
    "deterministic",
)
"""Settings of memory and time that round otherwise."""
_WAS = {"generation_batch_size": "rows"}


def go_on_as_begun(config: StageConfig, output: Path) -> None:
    """Take as many threads as the work kept in `output` was begun with; say what else is another now.

    To be called by every process before it computes anything, once accelerate knows them all.
    """
    state = PartialState()
    known: list[dict[str, Any]] = kept_by_all(state, output / CHECKPOINTS / _FILE) or []
    if known and state.device.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(min(threads, known[0].get("threads", threads)))
    if not state.is_main_process:
        return
    here = _here(config, state)
    if known and (changed := [name for name in here if here[name] != _told(known[0], name)]):
        then, now = (
            ", ".join(f"{name} {machine[name]}" for name in changed if name in machine) for machine in (known[0], here)
        )
        print(
            f"{output}: begun with {then}; goes on with {now}: the same rows and answers, but sums are rounded "
            "otherwise (and with other processes dropout is drawn anew), so it may end with the bits of neither",
            file=sys.stderr,
            flush=True,
        )
    if here not in known:
        artifact.keep_piece(output / CHECKPOINTS / _FILE, [*known, here])


def _told(machine: dict[str, Any], name: str) -> Any:
    """What a machine's record says, also one that was written before a setting got its name."""
    return machine.get(name, machine.get(_WAS.get(name, "")))


def worked_on(output: Path) -> list[dict[str, Any]]:
    """The machines that an unfinished output was worked on by, the first one first."""
    return artifact.kept_piece(output / CHECKPOINTS / _FILE) or []


def _here(config: StageConfig, state: PartialState) -> dict[str, Any]:
    device, versions = described(state.device, config.deterministic), artifact.versions()
    told = ("device", "threads", "instructions") if state.device.type == "cpu" else ("device",)
    return {
        "processes": state.num_processes,
        **{name: device[name] for name in told},
        **{name: versions.get(name) for name in _PACKAGES},
        **{name: getattr(config, name) for name in _SETTINGS if hasattr(config, name)},
    }
