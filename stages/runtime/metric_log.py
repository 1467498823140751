"""What a stage tells while it works: log.jsonl (a line a step), trackers, and one progress line.

The log is part of the output and is what the report draws. On resume it is cut back to the checkpoint's step, so no
step stands in it twice and none is missing.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gptlife.stages.runtime.artifact import LOG, write_text

SHOWN = 8
"""Metrics of the last step that are told when the next one fails."""


class Journal:
    """A stage's log, trackers and progress line; silent on every process but the first."""

    def __init__(
        self,
        output: Path,
        name: str,
        total: int,
        *,
        start: int = 0,
        track: Sequence[str] | None = None,
        main: bool = True,
    ) -> None:
        self.main, self.name, self.total, self.done = main, name, total, start
        self.started = time.monotonic()
        if not main:
            return
        self.last: tuple[int, dict[str, Any]] | None = None
        self.path = output / LOG
        write_text(self.path, "".join(_lines_up_to(self.path, start)))
        self.file = self.path.open("a", encoding="utf-8")
        self.trackers = [_tracker(kind, output, name) for kind in track or [] if importlib.util.find_spec(kind)]
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn(f"[bold]{name:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not sys.stderr.isatty(),
        )
        self.task = self.progress.add_task(name, total=total, completed=start, status="")
        self.progress.start()
        self.spoken = -math.inf

    def log(self, step: int, metrics: dict[str, Any], status: str = "") -> None:
        """One step's metrics; `None` and numbers that aren't finite are left out. `status` is shown behind the bar."""
        if not self.main:
            return
        metrics = {key: value for key, value in metrics.items() if _sayable(value)}
        self.last = step, metrics
        self.file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
        self.file.flush()
        for tracker in self.trackers:
            tracker.log(step, {key: value for key, value in metrics.items() if isinstance(value, (int, float))})
        self.progress.update(self.task, completed=step, status=status)
        if self.progress.disable and (time.monotonic() - self.spoken > 10 or step == self.total):
            self.spoken = time.monotonic()
            seconds = self.spoken - self.started
            print(f"{self.name} {step}/{self.total} [{seconds:.0f} s] {status}", file=sys.stderr, flush=True)

    def step(self, count: int, metrics: dict[str, Any], status: str = "") -> None:
        """`log`, `count` steps after the last one."""
        self.done += count
        self.log(self.done, metrics, status)

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.main:
            self.console.print(f"{self.name}: {text}", highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """End the progress line and flush the trackers."""
        if self.main:
            self.progress.stop()
            self.file.close()
            for tracker in self.trackers:
                tracker.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, Exception) and self.main and self.last is not None:
            step, metrics = self.last
            shown = [f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, int | float)]
            self.say(f"step {step} was the last one done: {', '.join(shown[:SHOWN])}; all of it: {self.path}")


def _sayable(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def read_log(output: Path) -> list[dict[str, Any]]:
    """Every line of an output's log.jsonl; a last line cut short by a kill is left out."""
    return [json.loads(line) for line in _lines_up_to(output / LOG, None)]


def _lines_up_to(path: Path, step: int | None) -> list[str]:
    """The log's lines up to `step`; none from the first one on that was never written whole."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.is_file() else ():
        try:
            at = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            break
        if step is None or at <= step:
            kept.append(line + "\n")
    return kept


class _TensorBoard:
    def __init__(self, output: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(output / "tensorboard"))

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for key, value in scalars.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, output: Path, name: str) -> None:
        import wandb

        self.run = wandb.init(project="gptlife", name=output.name.removesuffix(".partial"), dir=str(output))

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self.run.log(scalars, step=step)

    def close(self) -> None:
        self.run.finish()


def _tracker(kind: str, output: Path, name: str) -> _TensorBoard | _WandB:
    return _WandB(output, name) if kind == "wandb" else _TensorBoard(output, name)
