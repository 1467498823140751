"""What every toy stage does: count its attempts, and misbehave when a file says so."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from gptlife.data.config import Execution
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.stages.runtime.stage import Metrics, StageConfig


class ToyConfig(StageConfig):
    """A little of everything that a stage's config has."""

    data: Data | None = None
    """Read by content."""
    learning_rate: float = 0.1
    """Enters the address."""
    micro_batch: Execution[int] = 8
    """Does not."""
    act: Execution[str | None] = None
    """A file that says what to do: crash, kill, refuse or sleep."""


def work(config: ToyConfig, output: Path) -> Metrics:
    """One attempt; the count survives in the partial directory, as a checkpoint would."""
    attempts = output / "attempts.txt"
    with open(attempts, "a", encoding="utf-8") as file:
        file.write("attempt\n")
    act = Path(config.act) if config.act else None
    if act and act.is_file():
        _misbehave(act.read_text(encoding="utf-8"), act)
    (output / "model.bin").write_text("weights", encoding="utf-8")
    score = config.seed + 10 * config.learning_rate
    return {
        "attempts": len(attempts.read_text(encoding="utf-8").splitlines()),
        "nested": {"loss": 1.5},
        "score": {"mean": score, "low": score - 1, "high": score + 2},
    }


def _misbehave(how: str, act: Path) -> None:
    if how == "crash":
        sys.exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "refuse":
        raise UserError("toy.data: refused, found nothing; mend it")
    if how == "sleep":
        act.with_suffix(".started").touch()
        time.sleep(60)
