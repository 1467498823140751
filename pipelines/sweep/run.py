"""Run a planned sweep: show what is shared, make every step once, then write the table and its plot."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.errors import UserError, suggest
from gptlife.pipelines import launch, schedule
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.store import Store
from gptlife.pipelines.sweep import page
from gptlife.pipelines.sweep import table as sweep_table
from gptlife.pipelines.sweep.grid import Combination, Sweep
from gptlife.stages.runtime import artifact, files

if TYPE_CHECKING:
    from rich.console import Console


def run(sweep: Sweep, store: Store, console: Console, *, metrics: Sequence[str], output: Path | None, jobs: int) -> int:
    """Print what will run, run it, and write table and plot into `output`.

    Returns:
        The exit code: 0 done; 1 some combination failed; 128 + n stopped by signal n.

    Raises:
        UserError: for a problem that is found before a stage starts.
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
            raise UserError(f"--metric {metric}: expected step.metric, as in evaluation.win_rates[ppo,sft].rate")
        if parts[0] not in names:
            raise UserError(f"--metric {metric}: no step of that name runs{suggest(str(parts[0]), names)}")


def _announce(sweep: Sweep, steps: Sequence[Planned], console: Console) -> None:
    """Print a row per step of the recipe: how many outputs serve how many combinations, and what is left to do."""
    from rich.table import Table

    shown = Table("step", "outputs", "for combinations", "done", "begun", "to do", box=None, pad_edge=False)
    for name in dict.fromkeys(step.name for combination in sweep.combinations for step in combination.plan):
        states = [step.state for step in steps if step.name == name]
        wanted = sum(step.name == name for combination in sweep.combinations for step in combination.plan)
        counts = [len(states), wanted, *(states.count(state) for state in ("done", "partial", "to do"))]
        shown.add_row(name, *(str(count) for count in counts))
    console.print(shown)
    merged = sum(len(combination.equals) for combination in sweep.combinations)
    asked = sum(len(combination.plan) for combination in sweep.combinations)
    equal = f" (and {merged} with the plan of one of them)" if merged else ""
    shared = f"outputs: {len(steps)} ({asked} if nothing were shared)"
    launch.say("sweep", f"combinations: {len(sweep.combinations)}{equal}, {shared}")


def _notes(sweep: Sweep) -> dict[str, str]:
    """Address -> the values that all combinations with this output share, unless it serves every combination."""
    users: dict[str, list[Combination]] = {}
    for combination in sweep.combinations:
        for address in dict.fromkeys(step.address for step in combination.plan):
            users.setdefault(address, []).append(combination)
    return {
        address: " ".join(
            f"{name}={value}"
            for name, value in served[0].values.items()
            if all(combination.values[name] == value for combination in served)
        )
        for address, served in users.items()
        if len(served) < len(sweep.combinations) or len(served) == 1
    }


def _state(combination: Combination, outcome: schedule.Outcome) -> str:
    for step in combination.plan:
        if step.address in outcome.failed:
            return f"{step.name}: {outcome.failed[step.address]}"
    return "done" if all(step.state == "done" for step in combination.plan) else "not finished"


def _complain(sweep: Sweep, outcome: schedule.Outcome) -> int:
    """Print every reason on stderr with the combinations that it concerns; returns how many these are."""
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

    metrics_of = [_metrics_of(combination) for combination in sweep.combinations]
    chosen = metrics or _usual(sweep, metrics_of)
    results = []
    for combination, of in zip(sweep.combinations, metrics_of, strict=True):
        values = {path: sweep_table.measured(of, path) for path in chosen}
        results.append(sweep_table.Result(combination.values, _state(combination, outcome), values))
    table = sweep_table.table(results, list(sweep.axes), chosen)
    shown = Table(box=None, pad_edge=False)
    for index, name in enumerate(sweep_table.header(table)):
        shown.add_column(Text(name), justify="left" if index < len(table.axes) else "right")
    for row in sweep_table.lines(table):
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
    console.print(Text(sweep_table.caption(table), style="dim"))
    _mention_absent(table, metrics_of)
    launch.say("sweep", str(page.write(sweep, table, folder)))


def _metrics_of(combination: Combination) -> dict[str, Any]:
    """Step name -> the metrics of every finished step; damaged ones are reported on stderr and left out."""
    read, metrics = files.read_json, {}
    for step in combination.plan:
        if (step.path / artifact.METRICS).is_file() and artifact.is_complete(step.path):
            try:
                artifact.verify(step.path, (artifact.METRICS,))
                numbers, manifest = read(step.path / artifact.METRICS), read(step.path / artifact.MANIFEST)
            except UserError as error:
                print(f"sweep: {error}", file=sys.stderr)
            else:
                metrics[step.name] = artifact.measured(numbers, manifest)
    return metrics


def _usual(sweep: Sweep, metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The usual metrics of the last step that has some in any combination."""
    steps = {step.name: step for combination in sweep.combinations for step in combination.plan}
    for name, step in reversed(steps.items()):
        inputs = {key: upstream.stage.family for key, upstream in step.inputs.items()}
        paths = [path for of in metrics for path in sweep_table.usual(step.stage.family, of.get(name, {}), inputs)]
        if paths:
            return [f"{name}.{path}" for path in dict.fromkeys(paths)]
    return []


def _mention_absent(table: sweep_table.Table, metrics: Sequence[dict[str, Any]]) -> None:
    measured = list(dict.fromkeys(path for of in metrics for path in sweep_table.paths(of)))
    for metric in table.metrics:
        if measured and all(result.measured[metric] is None for result in table.results):
            near = [path for path in measured if path.partition(".")[0] == metric.partition(".")[0]]
            hint = suggest(metric, near[:12]) if near else ""
            print(f"sweep: --metric {metric}: no finished step has this number{hint}", file=sys.stderr)
