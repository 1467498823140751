"""Where an output comes from: versions, commit, and the machines that worked on it.

Sums of floats are rounded in the order in which they are added. That order depends on the number of processes and
threads, the device, the processor's vector instructions, the packages' versions and the size of a micro-batch: when
work is interrupted and resumed with others of them, the result differs bitwise. On a CPU the number of threads can be
kept (`run --jobs` gives each step a share of the cores); every other change is reported, and recorded in the manifest.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.stages.runtime.artifact import CHECKPOINTS
from gptlife.stages.runtime.files import keep_piece, kept_by_all, kept_piece
from gptlife.stages.runtime.notices import notice

if TYPE_CHECKING:
    from accelerate import PartialState

_FILE = "machines.json"
_VERSIONED = ("gptlife", "torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "trl", "numpy")
_PACKAGES = ("gptlife", "torch", "transformers", "accelerate")
"""Packages whose version changes how sums are rounded."""
_SETTINGS = (
    "precision",
    "micro_batch_tokens",
    "generation_batch_size",
    "gradient_checkpointing",
    "share_prompts",
    "deterministic",
)
"""Fields of memory and time that change how sums are rounded."""
_OLD_NAMES = {"generation_batch_size": "rows"}


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    installed = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def code_commit() -> str | None:
    """The commit of the source tree this runs from, with `+` where it has uncommitted changes; None elsewhere."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        commit_id = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit_id.returncode != 0:
            return None
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit_id.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def resume_as_begun(output: Path, fields: Mapping[str, Any]) -> None:
    """Take as many threads as the work kept in `output` was begun with, and report every other difference.

    Every process calls this before it computes anything, once accelerate knows them all.

    Args:
        output: the partial directory.
        fields: the config's fields by name; those that change how sums are rounded are recorded.
    """
    import torch
    from accelerate import PartialState

    state = PartialState()
    records: list[dict[str, Any]] = kept_by_all(state, output / CHECKPOINTS / _FILE) or []
    if records and state.device.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(min(threads, records[0].get("threads", threads)))
    if not state.is_main_process:
        return
    now = _record(state, fields)
    if records and (changed := [name for name in now if now[name] != _recorded(records[0], name)]):
        before, after = (
            ", ".join(f"{name} {record[name]}" for name in changed if name in record) for record in (records[0], now)
        )
        notice(
            f"{output}: begun with {before}; resumed with {after}: the same rows and answers, but sums are rounded "
            "differently (and other processes draw other dropout), so the result may differ bitwise from either"
        )
    if now not in records:
        keep_piece(output / CHECKPOINTS / _FILE, [*records, now])


def machines_of(output: Path) -> list[dict[str, Any]]:
    """A record of each machine that worked on an unfinished output, the first one first."""
    return kept_piece(output / CHECKPOINTS / _FILE) or []


def device_record(output: Path, device: str | None, deterministic: bool) -> dict[str, Any]:
    """The device for the manifest of `output`, and all `machines` that worked on it where they are several."""
    from gptlife.stages.runtime.device import best_device, described

    machines = machines_of(output)
    several = {"machines": machines} if len(machines) > 1 else {}
    return {**described(best_device(device), deterministic), **several}


def _recorded(record: dict[str, Any], name: str) -> Any:
    """A value of a record, also of one written under the setting's old name."""
    return record.get(name, record.get(_OLD_NAMES.get(name, "")))


def _record(state: PartialState, fields: Mapping[str, Any]) -> dict[str, Any]:
    from gptlife.stages.runtime.device import described

    device, installed = described(state.device, fields["deterministic"]), versions()
    names = ("device", "threads", "instructions") if state.device.type == "cpu" else ("device",)
    return {
        "processes": state.num_processes,
        **{name: device[name] for name in names},
        **{name: installed.get(name) for name in _PACKAGES},
        **{name: fields[name] for name in _SETTINGS if name in fields},
    }
