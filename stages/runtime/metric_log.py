"""A stage's metrics while it runs: log.jsonl (one line per step), trackers, and one progress line.

The log is part of the output, and the report draws its curves from it. On resume it is cut back to the checkpoint's
step, so each step is in it exactly once.
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
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gptlife.stages.runtime.artifact import LOG
from gptlife.stages.runtime.files import write_text
from gptlife.stages.runtime.notices import notice

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

SHOWN = 8
"""Metrics of the last step that are shown when the next one fails."""


class MetricLog:
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
        self.trackers = [_tracker(kind, output) for kind in track or [] if importlib.util.find_spec(kind)]
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
        self.told_at = -math.inf

    def log(self, step: int, metrics: dict[str, Any], status: str = "") -> None:
        """One step's metrics, without None and non-finite numbers; `status` is shown beside the progress bar."""
        if not self.main:
            return
        metrics = {key: value for key, value in metrics.items() if _is_loggable(value)}
        self.last = step, metrics
        self.file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
        self.file.flush()
        for tracker in self.trackers:
            tracker.log({key: value for key, value in metrics.items() if isinstance(value, (int, float))}, step)
        self.progress.update(self.task, completed=step, status=status)
        if self.progress.disable and (time.monotonic() - self.told_at > 10 or step == self.total):
            self.told_at = time.monotonic()
            seconds = self.told_at - self.started
            notice(f"{self.name} {step}/{self.total} [{seconds:.0f} s] {status}")

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
                tracker.finish()

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, Exception) and self.main and self.last is not None:
            step, metrics = self.last
            shown = [f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, int | float)]
            self.say(f"step {step} was the last one done: {', '.join(shown[:SHOWN])}; all metrics: {self.path}")


def _is_loggable(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The log's lines up to `step`, and up to the first line that was not written whole."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.is_file() else ():
        try:
            at = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            break
        if at <= step:
            kept.append(line + "\n")
    return kept


def _tracker(kind: str, output: Path) -> GeneralTracker:
    """A started tracker of accelerate's."""
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if kind == "wandb":
        tracker: GeneralTracker = WandBTracker("gptlife", name=output.name.removesuffix(".partial"), dir=str(output))
    else:
        tracker = TensorBoardTracker("tensorboard", output)
    tracker.start()
    return tracker
