"""What the results pages share: lives of several seeds read from a store, statistics over seeds and prompts, Markdown.

A cell covers all seeds on the same prompts: a prompt's value is its mean over seeds, and the 95 % interval is a
bootstrap over prompts of these means. The spread of the seeds is beside it.

A finished life can be kept without its weights, as `seed-<n>.tar.xz` beside a page: every step's small files under its
address. So a page can be made from lives that ran on different days or machines. They must be of the present recipe: a
kept life whose addresses differ from the plan's is run again.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
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
from gptlife.reward.statistics.winrate import bootstrap_mean, preferences_of
from gptlife.stages.runtime.artifact import MANIFEST

Life = dict[str, Record]
"""What lies on disk of every step, by its name."""
Lives = dict[int, Life]


_KEPT = ("metrics.json", "log.jsonl")
_LEFT_OUT = ("host", "platform", "inputs", "sum")
"""Of a manifest: what only says on which machine it was made, and its own sum, which is then another."""


def lives(recipe: str, store: Path, seeds: Sequence[int], jobs: int = 1, kept: Path | None = None) -> Lives:
    """The seeds' lives: those kept in the folder `kept`, and of the others what the store holds.

    What it doesn't hold is made first; lives that were made are kept as well.
    """
    found = {} if kept is None else {seed: _kept_life(recipe, seed, kept) for seed in seeds}
    wanted = [seed for seed in seeds if not found.get(seed)]
    if any(step.state != "done" for seed in wanted for step in planned(recipe, seed, store)):
        command, seeds_wanted = "sweep" if len(wanted) > 1 else "run", ",".join(map(str, wanted))
        words = [command, recipe, f"seed={seeds_wanted}", "--store", str(store), "--jobs", str(jobs)]
        subprocess.run([sys.executable, "-m", "gptlife.pipelines.cli", *words], check=True)
    for seed in wanted:
        steps = planned(recipe, seed, store)
        if kept is not None:
            _keep(steps, kept / f"seed-{seed}.tar.xz")
        found[seed] = {step.name: read(step) for step in steps}
    return {seed: found[seed] for seed in seeds}


def notes(page: Path) -> str:
    """What people concluded from a page; it is in `<page>.notes.md`, so that making the page again does not lose it."""
    path = page.with_name(f"{page.stem}.notes.md")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def planned(recipe: str, seed: int, store: Path) -> list[Planned]:
    """The steps of a seed's life, and where they lie in the store."""
    return plan(load(recipe, [f"seed={seed}"], LIFECYCLE), Store(store))


def _keep(steps: Sequence[Planned], archive: Path) -> None:
    """Write the small files of every step, and its manifest without `_LEFT_OUT`."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w:xz") as file:
        for path, stage in sorted({(step.path, step.stage.name) for step in steps}):
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            text = json.dumps({key: value for key, value in manifest.items() if key not in _LEFT_OUT}).encode()
            entry = tarfile.TarInfo(f"{path.name}/{MANIFEST}")
            entry.size = len(text)
            file.addfile(entry, io.BytesIO(text))
            for name in (*_KEPT, *(["answers.jsonl"] if stage == "evaluation" else [])):
                if (path / name).is_file():
                    file.add(path / name, f"{path.name}/{name}", filter=anonymous)


def _kept_life(recipe: str, seed: int, kept: Path) -> Life:
    """The life of a seed out of its archive; empty where there is none, or it is not wholly today's recipe."""
    archive = kept / f"seed-{seed}.tar.xz"
    if not archive.is_file():
        return {}
    # Where it lies until this process ends: `answers` reads it when it is asked for.
    folder = Path(_UNPACKED.name, f"{recipe}-{seed}")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    steps = planned(recipe, seed, folder)
    return {step.name: read(step) for step in steps} if all(step.state == "done" for step in steps) else {}


_UNPACKED = tempfile.TemporaryDirectory()


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
