"""Checkpoints that are whole or absent: written beside, marked complete, renamed; the newest complete one is taken.

Everything random in a training stage is a function of (seed, step, rank), never of a generator's history, so a
checkpoint needs the weights, the optimizer, the step and what the stage counts (`state`): resuming is exact by
construction. Weights, optimizer and anything registered go through `accelerate`, so sharded training saves too.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gptlife.stages.artifact import CHECKPOINTS, sync_directory, write_json

STATE = "state.json"


class Checkpoints:
    """The checkpoints of one stage's partial output; saved every `every` seconds, the newest `keep` kept."""

    def __init__(self, output: Path, accelerator: Accelerator, every: float, keep: int = 2) -> None:
        self.folder = output / CHECKPOINTS
        self.accelerator, self.every, self.keep = accelerator, every, keep
        self.saved_at = time.monotonic()
        self.seconds = 0.0

    def restore(self) -> dict[str, Any] | None:
        """Load the newest complete checkpoint into what was prepared; its state, or None where there is none."""
        found = self._complete()
        if not found:
            return None
        self.accelerator.load_state(str(found[-1]))
        return dict(json.loads((found[-1] / STATE).read_text(encoding="utf-8")))

    def due(self) -> bool:
        """Whether `every` seconds have passed since the last one; the first process decides for all."""
        late = time.monotonic() - self.saved_at >= self.every
        if self.accelerator.num_processes > 1:
            flag = torch.tensor([float(late)], device=self.accelerator.device)
            torch.distributed.broadcast(flag, src=0)
            late = bool(flag.item())
        return late

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after `step` finished steps."""
        begun = time.monotonic()
        beside, final = self.folder / f"step-{step:08d}.partial", self.folder / f"step-{step:08d}"
        if self.accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(beside))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(beside / STATE, {"step": step, **state})
            shutil.rmtree(final, ignore_errors=True)
            beside.rename(final)
            sync_directory(self.folder)
            for old in self._complete()[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()
        self.seconds += self.saved_at - begun

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-????????") if (path / STATE).is_file())
