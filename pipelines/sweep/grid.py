"""A sweep: one recipe over a grid of values; what combinations share is made once, because its address is the same.

    gptlife sweep quickstart ppo.kl_coef=0,0.02,0.1 seed=0,1,2

An argument's values are the items of `[...]` around it, as YAML reads them, so that a comma inside brackets or quotes
separates nothing; where that is no YAML list (a glob, say), the argument is one value. Every combination is planned
before anything runs, and those with the same plan are one. After the work, the table and the plot of it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gptlife.data.errors import UserError, suggest
from gptlife.pipelines import launch, planner, recipe, runner, schedule
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.store import Store
from gptlife.pipelines.sweep import table as sweep_table
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.files import read_json

if TYPE_CHECKING:
    from rich.console import Console

    from gptlife.pipelines.lifecycle import Step


@dataclass(frozen=True)
class Combination:
    """One point of the grid: its values as they were written, the overrides that give it, and its plan."""

    values: dict[str, str]
    overrides: list[str]
    plan: list[Planned]
    equals: list[dict[str, str]] = field(default_factory=list)
    """Points whose plan is the same."""

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items())


@dataclass(frozen=True)
class Sweep:
    """A planned sweep."""

    name: str
    source: str
    arguments: tuple[str, ...]
    until: str | None
    axes: dict[str, list[str]]
    combinations: list[Combination]

    @property
    def command(self) -> str:
        """What makes it again."""
        words = ["gptlife", "sweep", self.source, *self.arguments, *(["--until", self.until] if self.until else [])]
        return shlex.join(words)

    @property
    def key(self) -> str:
        """Eight hex digits of what was asked for."""
        return hashlib.sha256(json.dumps([self.arguments, self.until]).encode()).hexdigest()[:8]


def values_of(argument: str) -> tuple[str, list[str]]:
    """`field=1,[2,3]` as the field and its values, each as the text that was written: `["1", "[2,3]"]`.

    Raises:
        UserError: without a `=`, or with a comma behind which nothing comes.
    """
    name, equals, text = argument.partition("=")
    if not equals or not name.strip():
        raise UserError(f"{argument}: expected field=value,value, as in ppo.kl_coef=0,0.02,0.1")
    if text.rstrip().endswith(","):
        raise UserError(f"{argument}: ends with a comma; give the value behind it, or remove it")
    try:
        node = yaml.compose(f"[{text}]", yaml.SafeLoader)
    except yaml.YAMLError:
        return name.strip(), [text]
    if not (isinstance(node, yaml.SequenceNode) and len(node.value) > 1 and node.end_mark.index == len(text) + 2):
        return name.strip(), [text]
    return name.strip(), [text[item.start_mark.index - 1 : item.end_mark.index - 1].strip() for item in node.value]


def plan(source: str, arguments: Sequence[str], store: Store, steps: Sequence[Step], until: str | None = None) -> Sweep:
    """Plan every combination of the arguments' values, the last argument's changing fastest.

    Raises:
        UserError: for what is wrong in any of them.
    """
    grid: dict[str, list[str]] = {}
    for argument in arguments:
        name, values = values_of(argument)
        if name in grid:
            raise UserError(f"{argument}: {name} is given twice; give all its values at once")
        grid[name] = values
    axes = {name: values for name, values in grid.items() if len(values) > 1}
    if not axes:
        raise UserError("sweep: no argument has several values, as in seed=0,1,2 (for one: gptlife run)")
    found: dict[tuple[tuple[str, str], ...], Combination] = {}
    for point in itertools.product(*grid.values()):
        overrides = [f"{name}={value}" for name, value in zip(grid, point, strict=True)]
        values_here = {name: value for name, value in zip(grid, point, strict=True) if name in axes}
        planned = _planned(source, overrides, store, steps, until)
        combination = Combination(values_here, overrides, planned)
        first = found.setdefault(tuple((step.name, step.address) for step in planned), combination)
        if first is not combination:
            first.equals.append(values_here)
    return Sweep(Path(source).stem, source, tuple(arguments), until, axes, list(found.values()))


def _planned(
    source: str, overrides: list[str], store: Store, steps: Sequence[Step], until: str | None
) -> list[Planned]:
    try:
        return runner.up_to(planner.plan(recipe.load(source, overrides, steps), store), until)
    except UserError as error:
        raise UserError(f"{error} (in the combination {' '.join(overrides)})") from None


def run(sweep: Sweep, store: Store, console: Console, *, metrics: Sequence[str], output: Path | None, jobs: int) -> int:
    """Show what will run, run it, and write table and plot into `output`.

    Returns:
        The exit code: 0 done; 1 some combination failed; 128 + n stopped by signal n.

    Raises:
        UserError: for what is found before a stage starts.
    """
    _refuse_unknown_steps(sweep, metrics)
    folder = output or store.root / "sweeps" / f"{sweep.name}-{sweep.key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't be made ({error.strerror}); choose another place: --output DIR") from None
    steps = schedule.order([combination.plan for combination in sweep.combinations])
    _announce(sweep, steps, console)
    outcome = schedule.run(steps, store, jobs, _notes(sweep))
    if outcome.stopped_by is not None:
        finished = sum(_state(combination, outcome) == "done" for combination in sweep.combinations)
        said = f"stopped with {finished} of {len(sweep.combinations)} combinations finished"
        print(f"sweep: {said}; run the same command again to resume", file=sys.stderr, flush=True)
        return 128 + outcome.stopped_by
    try:
        _conclude(sweep, outcome, console, list(metrics), folder)
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error.strerror}); run the same command again") from None
    return 1 if _complain(sweep, outcome) else 0


def _refuse_unknown_steps(sweep: Sweep, metrics: Sequence[str]) -> None:
    names = list(dict.fromkeys(step.name for combination in sweep.combinations for step in combination.plan))
    for metric in metrics:
        parts = sweep_table.parts_of(metric)
        if parts is None or len(parts) < 2:
            raise UserError(f"--metric {metric}: expected step.name, as in evaluation.win_rates[ppo,sft].rate")
        if parts[0] not in names:
            raise UserError(f"--metric {metric}: no such step is run{suggest(str(parts[0]), names)}")


def _announce(sweep: Sweep, steps: Sequence[Planned], console: Console) -> None:
    """A row a step of the recipe: how many outputs serve how many combinations, and what is left to do."""
    from rich.table import Table

    shown = Table("step", "outputs", "for combinations", "done", "begun", "to do", box=None, pad_edge=False)
    for name in dict.fromkeys(step.name for combination in sweep.combinations for step in combination.plan):
        mine = [step.state for step in steps if step.name == name]
        wanted = sum(step.name == name for combination in sweep.combinations for step in combination.plan)
        counts = [len(mine), wanted, *(mine.count(state) for state in ("done", "partial", "to do"))]
        shown.add_row(name, *(str(count) for count in counts))
    console.print(shown)
    merged = sum(len(combination.equals) for combination in sweep.combinations)
    asked = sum(len(combination.plan) for combination in sweep.combinations)
    equal = f" (and {merged} with the plan of one of them)" if merged else ""
    shared = f"outputs: {len(steps)} ({asked} if nothing were shared)"
    launch.say("sweep", f"combinations: {len(sweep.combinations)}{equal}, {shared}")


def _notes(sweep: Sweep) -> dict[str, str]:
    """Address -> the values that all combinations with this output have in common, unless it serves all there are."""
    users: dict[str, list[Combination]] = {}
    for combination in sweep.combinations:
        for address in dict.fromkeys(step.address for step in combination.plan):
            users.setdefault(address, []).append(combination)
    return {
        address: " ".join(
            f"{name}={value}"
            for name, value in found[0].values.items()
            if all(combination.values[name] == value for combination in found)
        )
        for address, found in users.items()
        if len(found) < len(sweep.combinations) or len(found) == 1
    }


def _state(combination: Combination, outcome: schedule.Outcome) -> str:
    for step in combination.plan:
        if step.address in outcome.failed:
            return f"{step.name}: {outcome.failed[step.address]}"
    return "done" if all(step.state == "done" for step in combination.plan) else "not finished"


def _complain(sweep: Sweep, outcome: schedule.Outcome) -> int:
    """A line on stderr for every reason, with the combinations that it concerns; how many they are."""
    reasons: dict[str, list[Combination]] = {}
    for combination in sweep.combinations:
        if (state := _state(combination, outcome)) != "done":
            reasons.setdefault(state, []).append(combination)
    for reason, concerned in reasons.items():
        named = ", ".join(str(combination) for combination in concerned[:3]) + (", ..." if len(concerned) > 3 else "")
        text = f"{reason}; combinations without it: {len(concerned)} of {len(sweep.combinations)} ({named})"
        print(f"sweep: {text}; run the same command again to resume", file=sys.stderr, flush=True)
    return sum(len(concerned) for concerned in reasons.values())


def _conclude(sweep: Sweep, outcome: schedule.Outcome, console: Console, metrics: list[str], folder: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from gptlife.pipelines.sweep import page as sweep_page

    known = [_metrics_of(combination) for combination in sweep.combinations]
    chosen = metrics or _usual(sweep, known)
    results = []
    for combination, of in zip(sweep.combinations, known, strict=True):
        found = {path: sweep_table.measured(of, path) for path in chosen}
        results.append(sweep_table.Result(combination.values, _state(combination, outcome), found))
    table = sweep_table.table(results, list(sweep.axes), chosen)
    shown = Table(box=None, pad_edge=False)
    for index, name in enumerate(sweep_table.header(table)):
        shown.add_column(Text(name), justify="left" if index < len(table.axes) else "right")
    for row in sweep_table.lines(table):
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
    console.print(Text(sweep_table.caption(table), style="dim"))
    _mention_absent(table, known)
    launch.say("sweep", str(sweep_page.write(sweep, table, folder)))


def _metrics_of(combination: Combination) -> dict[str, Any]:
    """Step name -> the numbers of every step that is finished and has some; damaged ones are said, and left out."""
    read, found = read_json, {}
    for step in combination.plan:
        if (step.path / artifact.METRICS).is_file() and artifact.is_complete(step.path):
            try:
                artifact.verify(step.path, (artifact.METRICS,))
                numbers, manifest = read(step.path / artifact.METRICS), read(step.path / artifact.MANIFEST)
            except UserError as error:
                print(f"sweep: {error}", file=sys.stderr)
            else:
                found[step.name] = artifact.measured(numbers, manifest)
    return found


def _usual(sweep: Sweep, known: Sequence[dict[str, Any]]) -> list[str]:
    """The usual metrics of the last step that has some in any combination."""
    stages = {step.name: step.stage.name for combination in sweep.combinations for step in combination.plan}
    for name in reversed(stages):
        found = [f"{name}.{path}" for of in known for path in sweep_table.usual(stages[name], of.get(name, {}))]
        if found:
            return list(dict.fromkeys(found))
    return []


def _mention_absent(table: sweep_table.Table, known: Sequence[dict[str, Any]]) -> None:
    there = list(dict.fromkeys(path for of in known for path in sweep_table.paths(of)))
    for metric in table.metrics:
        if there and all(result.measured[metric] is None for result in table.results):
            near = [path for path in there if path.partition(".")[0] == metric.partition(".")[0]]
            hint = suggest(metric, near[:12]) if near else ""
            print(f"sweep: --metric {metric}: no finished step has this number{hint}", file=sys.stderr)
