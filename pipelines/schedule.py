"""Run many distinct steps, at most N at once; a failure stops only what is downstream of it.

The steps of several plans get one order in which an output that more plans need comes first. Inputs stay before what
reads them, because every plan that has a step also has its inputs. A stage is started as `gptlife run` starts it, and
holds its own lock; when several run at once, they share the cores, and the output of each goes to
`<store>/.work/<address>.out`.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gptlife.data.errors import UserError
from gptlife.pipelines import launch, processes
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.store import Store

_PAUSE = 0.05
"""Seconds between two polls of the children."""


@dataclass
class Outcome:
    """Why steps failed, by address, and the signal that stopped the work, if one did."""

    failed: dict[str, str] = field(default_factory=dict)
    stopped_by: int | None = None


class _Job(NamedTuple):
    step: Planned
    child: subprocess.Popen[bytes]
    started: float
    output: Path | None
    """The file of the stage's stdout and stderr; None: the terminal."""


def order(plans: Sequence[Sequence[Planned]]) -> list[Planned]:
    """The distinct steps of all plans (by address); those that more plans share come first."""
    shared = Counter(address for plan in plans for address in {step.address for step in plan})
    distinct: dict[str, Planned] = {}
    for plan in plans:
        for step in plan:
            distinct.setdefault(step.address, step)
    return sorted(distinct.values(), key=lambda step: -shared[step.address])


def run(steps: Sequence[Planned], store: Store, jobs: int = 1, notes: Mapping[str, str] | None = None) -> Outcome:
    """Run every step (inputs first) that is not done and whose inputs can be made.

    `notes` says by address what a step is for; it is printed when the step starts.

    Raises:
        UserError: for a problem that is found before a stage starts and concerns all.
    """
    launch.look_for_launchers(steps)
    if jobs > 1:
        launch.say("output", f"of the stages: {store.root}/.work/<address>.out")
    outcome = Outcome()
    made: set[str] = set()
    waiting: list[Planned] = []
    for step in steps:
        if step.state != "done" and step.adopted is None:
            waiting.append(step)
        elif _is_there(step, store, outcome):
            made.add(step.address)
    running: list[_Job] = []
    with processes.caught_signals() as caught:
        while True:
            while len(running) < jobs and caught.number is None and (ready := _next(waiting, made)):
                if job := _start(ready, store, caught, outcome, (notes or {}).get(ready.address, ""), jobs):
                    running.append(job)
                elif ready.address not in outcome.failed:
                    made.add(ready.address)  # finished by another process in the meantime
            if not running:
                outcome.stopped_by = caught.number
                return outcome
            time.sleep(_PAUSE)
            for job in [job for job in running if job.child.poll() is not None]:
                running.remove(job)
                caught.ended(job.child)
                if _succeeded(job, outcome, stopping=caught.number is not None):
                    made.add(job.step.address)


def _is_there(step: Planned, store: Store, outcome: Outcome) -> bool:
    """Check a finished step or fetch an adopted one, outside of the caught signals: a download may be interrupted."""
    try:
        if step.adopted is not None:
            launch.begin(step, store)
        else:
            store.check(step.path, step.name)
    except UserError as error:
        outcome.failed[step.address] = str(error)
        return False
    return True


def _next(waiting: list[Planned], made: set[str]) -> Planned | None:
    """Take out of `waiting` the first step whose inputs are all made."""
    for index, step in enumerate(waiting):
        if all(upstream.address in made for upstream in step.inputs.values()):
            return waiting.pop(index)
    return None


def _start(
    step: Planned, store: Store, caught: processes.Caught, outcome: Outcome, note: str, jobs: int
) -> _Job | None:
    try:
        words = launch.begin(step, store, f"  {note}" if note else "")
    except UserError as error:
        outcome.failed[step.address] = str(error)
        return None
    if words is None:
        return None
    if jobs == 1:
        return _Job(step, caught.start(words), time.monotonic(), None)
    path = store.root / ".work" / f"{step.address}.out"
    with path.open("wb") as file:
        return _Job(step, caught.start(words, file, processes.sharing_cores(jobs)), time.monotonic(), path)


def _succeeded(job: _Job, outcome: Outcome, *, stopping: bool) -> bool:
    step, code = job.step, job.child.returncode
    seconds = f"{time.monotonic() - job.started:.1f} s"
    if code == 0 and step.state == "done":
        if job.output:
            launch.say(step.name, f"finished  {step.address}  {seconds}")
        return True
    launch.say(step.name, f"{'stopped ' if stopping else 'failed  '}  {step.address}  {seconds}")
    if not stopping:
        outcome.failed[step.address] = _why(job)
    return False


def _why(job: _Job) -> str:
    """One sentence: the stage's own message where it refused (exit code 2) and its output can be read."""
    if job.child.returncode != 2:
        return launch.complaint(job.step, job.child.returncode, f"in {job.output}" if job.output else "above")
    if job.output is None:
        return "refused (its message is above)"
    lines = job.output.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix(f"{job.step.name}: ") if said else "refused without a message"
