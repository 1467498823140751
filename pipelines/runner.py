"""Run a plan: every step that is not done, in turn or several at once, then the report.

A step is started by the command that a person would type (launch.py). The runner waits for it, passes signals on and
writes the report.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from gptlife.data.errors import UserError, suggest
from gptlife.pipelines import launch, processes, schedule
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.recipe import Recipe
from gptlife.pipelines.store import Store


def run(
    recipe: Recipe,
    planned: list[Planned],
    store: Store,
    *,
    until: str | None = None,
    fresh: Sequence[str] = (),
    report: Path | None = None,
    jobs: int = 1,
) -> int:
    """Run every step of `planned` that is not done, or `until` and what it depends on; then write the report.

    `fresh` names steps whose outputs are removed first (`all`: every one); what is downstream of them stays. With one
    job the run ends at the first step that fails; with more, steps that don't depend on it are run all the same.

    Returns:
        The exit code: 0 done; 1 a stage failed; 2 a stage refused (1 where more jobs run);
        128 + n stopped by signal n.

    Raises:
        UserError: for a problem that is found before a stage starts.
    """
    wanted = up_to(planned, until)
    _remove_fresh(wanted, store, fresh)
    launch.look_for_launchers(wanted)
    steps = {step.name: {"address": step.address, "path": str(step.path)} for step in planned}
    last_run = {"recipe": recipe.source, "overrides": list(recipe.overrides), "steps": steps}
    same = store.record_run(recipe.name, last_run)
    page = report or store.root / "reports" / f"{recipe.name}.html"
    missing = any(step.state != "done" for step in wanted)
    try:
        return _in_turn(wanted, store) if jobs == 1 else _together(wanted, store, jobs)
    finally:
        if missing or not same or not page.is_file():
            _write_report(planned, page, recipe.name)
        if page.is_file():
            launch.say("report", str(page))


def _in_turn(wanted: list[Planned], store: Store) -> int:
    for step in wanted:
        if words := launch.begin(step, store):
            code, stopped_by = processes.wait(words)
            if verdict := _verdict(step, code, stopped_by):
                return verdict
    return 0


def _together(wanted: list[Planned], store: Store, jobs: int) -> int:
    launch.say("run", f"done: {sum(step.state == 'done' for step in wanted)} of {len(wanted)} steps")
    outcome = schedule.run(schedule.order([wanted]), store, jobs)
    for step in wanted:
        if step.address in outcome.failed:
            _complain(step, f"{outcome.failed[step.address]}; run the same command again to resume")
    if outcome.stopped_by is not None:
        print("gptlife: stopped; run the same command again to resume", file=sys.stderr, flush=True)
        return 128 + outcome.stopped_by
    return 1 if outcome.failed else 0


def _verdict(step: Planned, code: int, stopped_by: int | None) -> int:
    """Exit code of the run after a stage ended with `code`; prints why, unless the stage did so itself."""
    if stopped_by is not None:
        if code != 130:
            _complain(step, f"stopped by {signal.Signals(stopped_by).name}; run the same command again to resume")
        return 128 + stopped_by
    if code in (2, 130):
        return code
    if code == 0 and step.state == "done":
        return 0
    _complain(step, f"{launch.complaint(step, code)}; run the same command again to resume")
    return 1


def up_to(planned: list[Planned], until: str | None) -> list[Planned]:
    """The step `until` and all that it depends on, in order; all steps where it is None.

    Raises:
        UserError: when there is no such step.
    """
    by_name = {step.name: step for step in planned}
    if until is None:
        return planned
    if until not in by_name:
        raise UserError(f"until {until}: the recipe has no such step{suggest(until, list(by_name))}")
    needed: set[str] = set()
    waiting = [by_name[until]]
    while waiting:
        step = waiting.pop()
        needed.add(step.name)
        waiting += step.inputs.values()
    return [step for step in planned if step.name in needed]


def _remove_fresh(wanted: list[Planned], store: Store, fresh: Sequence[str]) -> None:
    by_name = {step.name: step for step in wanted}
    for name in fresh:
        if name != "all" and name not in by_name:
            raise UserError(f"fresh {name}: no such step in this run{suggest(name, [*by_name, 'all'])}")
        if name != "all" and by_name[name].external:
            raise UserError(f"fresh {name}: adopted from {by_name[name].path}, which gptlife does not remove")
    for step in wanted:
        if not step.external and ("all" in fresh or step.name in fresh):
            store.remove(step.path)


def _write_report(planned: list[Planned], page: Path, name: str) -> None:
    """Write the page; a run does not fail because of it."""
    try:
        from gptlife.pipelines.report import page as report

        page.parent.mkdir(parents=True, exist_ok=True)
        report.write(planned, page, name)
    except Exception as error:
        print(f"gptlife: no report ({type(error).__name__}: {error}); try again: gptlife report", file=sys.stderr)


def _complain(step: Planned, text: str) -> None:
    print(f"{step.name}: {text}", file=sys.stderr, flush=True)
