"""Checkpoints that are whole or absent; resuming takes the newest good one.

    saving     write beside, sync every file and list it with size and sha256 in `state` (written last, with a sha256 of
               itself), rename, sync the directory
    resuming   from the newest one whose every file matches its list, that belongs to this output's config and inputs,
               and whose log is undamaged; skipped checkpoints are reported and moved aside

Everything random in a training stage is a function of (seed, step, rank), never of a generator's history, so a
checkpoint needs the weights, the optimizer, the step and what the stage counts (`state`): resuming is exact by
construction. Weights and optimizer go through `accelerate`, so that sharded training saves too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import read_yaml
from gptlife.stages.runtime import signals
from gptlife.stages.runtime.artifact import CHECKPOINTS, LOG, STAGE_FILE
from gptlife.stages.runtime.files import keep_piece, read_piece, sums, sync_directory, sync_file
from gptlife.stages.runtime.notices import notice

STATE = "state"
FURTHER = "further.safetensors"
DAMAGED = ".damaged"
_EVERY = 60.0
_TIMES = 50.0
"""By default the time between checkpoints is 50 times what the last one took: 2 % of the run, at any size."""


class Checkpoints:
    """The checkpoints of one stage's partial output.

    Args:
        every: seconds between them; None: a minute, or longer, so that they take at most 2 % of the time.
        keep: how many of the newest are kept.
        further: tensors that are saved, and restored in place, besides what accelerate prepared.
        files: files of the output that are saved with every checkpoint (as links) and restored.
    """

    def __init__(
        self,
        output: Path,
        accelerator: Accelerator,
        every: float | None,
        keep: int = 2,
        further: Mapping[str, Tensor] | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self.output, self.folder = output, output / CHECKPOINTS
        self.accelerator, self.every, self.keep = accelerator, every, keep
        self.further, self.files = dict(further or {}), files
        self.saved_at = time.monotonic()
        self.took, self.seconds, self.saved, self.bytes = 0.0, 0.0, 0, 0
        self.stopping = False
        """Whether any process was asked to stop, as of the last `due`; the same on all processes."""

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def restore(self) -> dict[str, Any] | None:
        """Load the newest good checkpoint into what was prepared; its state, or None where none is good."""
        path, state = self.newest()
        if path is None:
            return None
        self.accelerator.load_state(str(path))
        with torch.no_grad():
            for name, tensor in load_file(path / FURTHER).items() if self.further else ():
                self.further[name].copy_(tensor)
        for file in self.files if self.accelerator.is_main_process else ():
            file.unlink(missing_ok=True)
            if (path / file.name).is_file():
                _link(path / file.name, file)
        self.accelerator.wait_for_everyone()
        return state

    def newest(self) -> tuple[Path | None, dict[str, Any]]:
        """The newest good checkpoint and its state, for all processes; the first one reports the damaged ones."""
        newest: list[Any] = [self._newest() if self.accelerator.is_main_process else None]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(newest)
        path, state = newest[0]
        return path, state

    def _newest(self) -> tuple[Path | None, dict[str, Any]]:
        kept = self._kept()
        for path in reversed(kept):
            try:
                state = self._good(path)
            except UserError as error:
                notice(f"{error}; trying an older one")
                _move_away(path)
                continue
            return path, state
        if kept:
            notice(f"{self.folder}: no good checkpoint is left; starting at the first step")
        return None, {}

    def _good(self, path: Path) -> dict[str, Any]:
        """The state of a checkpoint.

        Raises:
            UserError: naming what is damaged.
        """
        try:
            state: dict[str, Any] = read_piece(path / STATE)
        except (OSError, ValueError):
            raise UserError(f"{path}: never finished, or its {STATE} is damaged") from None
        files, log, owner = state.pop("files"), state.pop("log"), state.pop("owner")
        actual = sums(path, files)
        for name, (size, digest) in files.items():
            if name not in actual:
                raise UserError(f"{path}: {name} is missing")
            if actual[name][0] != size:
                raise UserError(f"{path}: {name} has {actual[name][0]} bytes in place of {size}")
            if actual[name][1] != digest:
                raise UserError(f"{path}: {name} is damaged (its sha256 differs)")
        if owner != self._owner():
            raise UserError(f"{path}: belongs to another config, or to other inputs")
        if _beginning(self.output / LOG, log[0]) != log:
            raise UserError(f"{path}: the log up to it is damaged ({self.output / LOG})")
        return state

    def keep_up(self, step: int, state: dict[str, Any]) -> None:
        """After a step: save a checkpoint if one is due, and end the stage if it was asked to stop.

        Raises:
            KeyboardInterrupt: when it was asked to stop; the checkpoint is saved.
            UserError: when a checkpoint can't be written; the last good one stays.
        """
        if self.due():
            self.save(step, state)
        if self.stopping:
            raise KeyboardInterrupt

    def due(self) -> bool:
        """Whether a checkpoint is due, by the first process's clock, or because any process was asked to stop."""
        every = max(_EVERY, _TIMES * self.took) if self.every is None else self.every
        late, self.stopping = time.monotonic() - self.saved_at >= every, signals.stop_requested()
        if self.accelerator.num_processes > 1:
            mine = [late and self.accelerator.is_main_process, self.stopping]
            flags = self.accelerator.reduce(torch.tensor(mine, dtype=torch.float32, device=self.accelerator.device))
            late, self.stopping = (flags > 0).tolist()
        return late or self.stopping

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after `step` finished steps.

        Raises:
            UserError: when it can't be written; the last good one stays.
        """
        begun, final = time.monotonic(), self.path(step)
        beside = final.with_name(f"{final.name}.partial")
        try:
            if self.accelerator.is_main_process:
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(beside))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                if self.further:
                    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.further.items()}
                    save_file(tensors, beside / FURTHER)
                for file in self.files:
                    if file.is_file():
                        _link(file, beside / file.name)
                self.seal(beside, step, state)
                shutil.rmtree(final, ignore_errors=True)
                beside.rename(final)
                sync_directory(self.folder)
                self.forget_old()
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # OSError is not all they raise
            full = not isinstance(error, OSError) and shutil.disk_usage(self.output).free < max(self.bytes, 2**20)
            reason = os.strerror(errno.ENOSPC) if full else _first_line(error)
            shutil.rmtree(beside, ignore_errors=True)
            raise UserError(
                f"{beside}: the checkpoint of step {step} can't be written ({reason}); the last good one "
                "stays; make room, or choose another place, and run again to resume"
            ) from error
        self.accelerator.wait_for_everyone()
        self.account(begun)

    def account(self, begun: float) -> None:
        """Count the time of a finished checkpoint that was begun at `begun` (of `time.monotonic`)."""
        self.saved_at = time.monotonic()
        self.took = self.saved_at - begun
        self.seconds += self.took

    def seal(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        """Sync every file of a checkpoint and list them, with the log up to it, in its `state`."""
        log = self.output / LOG
        if log.is_file():
            sync_file(log)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STATE)
        for file in files:
            sync_file(file)
        keep_piece(
            folder / STATE,
            {
                "step": step,
                **state,
                "owner": self._owner(),
                "log": _beginning(log, None),
                "files": sums(folder, [str(path.relative_to(folder)) for path in files]),
            },
        )
        sync_directory(folder)
        self.saved, self.bytes = self.saved + 1, sum(path.stat().st_size for path in [*files, folder / STATE])

    def cost(self) -> dict[str, float]:
        """Cost since the last start of the stage: number of checkpoints, seconds, megabytes of the last one."""
        took = {"checkpoints": self.saved, "checkpoint_seconds": round(self.seconds, 2)}
        return {**took, "checkpoint_mb": round(self.bytes / 1e6, 2)}

    def forget_old(self) -> None:
        """Remove all but the newest `keep`."""
        for old in self._kept()[: -self.keep]:
            shutil.rmtree(old)

    def _kept(self) -> list[Path]:
        """Every checkpoint that was renamed, in the order of steps."""
        pattern = self.path(0).name.rpartition("-")[0] + "-*"
        paths = (path for path in self.folder.glob(pattern) if path.name.rpartition("-")[2].isdecimal())
        return sorted(paths, key=lambda path: int(path.name.rpartition("-")[2]))

    def _owner(self) -> str:
        """A hash of the output's identity and inputs, as its `stage.yaml` has them."""
        for folder in (self.output, *self.output.parents[:2]):  # a member of an ensemble is inside its output
            if (folder / STAGE_FILE).is_file():
                record = read_yaml(folder / STAGE_FILE)
                text = json.dumps([record.get("identity"), record.get("input_addresses")], sort_keys=True)
                return hashlib.sha256(text.encode()).hexdigest()[:12]
        return ""


def _move_away(path: Path) -> None:
    """Rename a damaged checkpoint; it is removed when the stage is complete."""
    damaged = path.with_name(path.name + DAMAGED)
    shutil.rmtree(damaged, ignore_errors=True)
    os.rename(path, damaged)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no links. No file is ever written into."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _beginning(path: Path, size: int | None) -> list[Any]:
    """[bytes, sha256] of the first `size` bytes of a file (None: all); a missing file counts as empty."""
    content = path.read_bytes()[:size] if path.is_file() else b""
    return [len(content), hashlib.sha256(content).hexdigest()]


def _first_line(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
