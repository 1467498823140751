"""What the results pages share: lives of several seeds read from a store, statistics over seeds and prompts, Markdown.

A cell is over the seeds' lives on the same prompts: a prompt's value is its mean over seeds, and the 95 % interval is a
bootstrap over prompts of these means. How far the seeds lie apart is told beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.planner import Planned, plan
from gptlife.pipelines.recipe import load
from gptlife.pipelines.report.record import Record, read
from gptlife.pipelines.store import Store
from gptlife.reward.winrate import bootstrap_mean, preferences_of

Life = dict[str, Record]
"""What lies on disk of every step, by its name."""
Lives = dict[int, Life]


def lives(recipe: str, store: Path, seeds: Sequence[int], jobs: int = 1) -> Lives:
    """The seeds' lives, made first where the store doesn't hold them (`gptlife sweep`)."""

    def planned(seed: int) -> list[Planned]:
        return plan(load(recipe, [f"seed={seed}"], LIFECYCLE), Store(store))

    if any(step.state != "done" for seed in seeds for step in planned(seed)):
        words = ["sweep", recipe, f"seed={','.join(map(str, seeds))}", "--store", str(store), "--jobs", str(jobs)]
        subprocess.run([sys.executable, "-m", "gptlife.pipelines.cli", *words], check=True)
    return {seed: {step.name: read(step) for step in planned(seed)} for seed in seeds}


@dataclass(frozen=True)
class Cell:
    """A number over seeds and prompts."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    def percent(self) -> str:
        """`56.1 [53.9, 58.4]`, in percent."""
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self, digits: int = 3) -> str:
        """`0.561 [0.539, 0.584]`."""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def over_prompts(values_SN: Sequence[Sequence[float]]) -> Cell:
    """The cell of S seeds' values on the same N prompts."""
    table = np.asarray(values_SN, dtype=np.float64)
    estimate = bootstrap_mean(table.mean(0))
    return Cell(estimate.mean, estimate.low, estimate.high, tuple(table.mean(1).tolist()))


def preference(found: Lives, step: str, a: str, b: str) -> Cell:
    """How often A is preferred to B by the gold scores of an evaluation's answers, ties half."""

    def of_life(life: Life) -> list[float]:
        rows = [row["answers"] for row in answers(life[step].step.path)]
        preferences: list[float] = preferences_of(
            [row[a]["score"] for row in rows], [row[b]["score"] for row in rows]
        ).tolist()
        return preferences

    return over_prompts([of_life(life) for life in found.values()])


@cache
def answers(path: Path) -> list[dict[str, Any]]:
    """answers.jsonl of an evaluation."""
    text = (path / "answers.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def spread(values: Sequence[float], digits: int = 3, scale: float = 1.0) -> str:
    """Mean over seeds, and the lowest and highest: `0.561 (0.552–0.570)`."""
    low, high, mean = (scale * value for value in (min(values), max(values), sum(values) / len(values)))
    return f"{mean:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})" if len(values) > 1 else f"{mean:.{digits}f}"


def of_seeds(found: Lives, read: Callable[[Life], float], digits: int = 3, scale: float = 1.0) -> str:
    """`spread` of a number read from every life."""
    return spread([read(life) for life in found.values()], digits, scale)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
