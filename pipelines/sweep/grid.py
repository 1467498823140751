"""A sweep: one recipe over a grid of values; outputs that combinations share have one address, so they are made once.

    gptlife sweep quickstart ppo.kl_coef=0,0.02,0.1 seed=0,1,2

The values of an argument are read as the items of a YAML list, so a comma inside brackets or quotes separates nothing;
where that list can't be read (a glob, say), the whole argument is one value. Every combination is planned before
anything runs; combinations with the same plan are one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from gptlife.data.errors import UserError
from gptlife.pipelines import planner, recipe, runner
from gptlife.pipelines.lifecycle import Step
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.store import Store


@dataclass(frozen=True)
class Combination:
    """One point of the grid: its values as they were written, the overrides that give it, and its plan."""

    values: dict[str, str]
    overrides: list[str]
    plan: list[Planned]
    equals: list[dict[str, str]] = field(default_factory=list)
    """Other points with the same plan."""

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
        """The command that runs it again."""
        words = ["gptlife", "sweep", self.source, *self.arguments, *(["--until", self.until] if self.until else [])]
        return shlex.join(words)

    @property
    def key(self) -> str:
        """Eight hex digits of the arguments' hash."""
        return hashlib.sha256(json.dumps([self.arguments, self.until]).encode()).hexdigest()[:8]


def values_of(argument: str) -> tuple[str, list[str]]:
    """`field=1,[2,3]` as the field and its values, each as it was written: `["1", "[2,3]"]`.

    Raises:
        UserError: without a `=`, or with a comma at the end.
    """
    name, equals, text = argument.partition("=")
    if not equals or not name.strip():
        raise UserError(f"{argument}: expected field=value,value, as in ppo.kl_coef=0,0.02,0.1")
    if text.rstrip().endswith(","):
        raise UserError(f"{argument}: ends with a comma; give the value after it, or remove it")
    try:
        node = yaml.compose(f"[{text}]", yaml.SafeLoader)
    except yaml.YAMLError:
        return name.strip(), [text]
    if not (isinstance(node, yaml.SequenceNode) and len(node.value) > 1 and node.end_mark.index == len(text) + 2):
        return name.strip(), [text]
    return name.strip(), [text[item.start_mark.index - 1 : item.end_mark.index - 1].strip() for item in node.value]


def plan(source: str, arguments: Sequence[str], store: Store, steps: Sequence[Step], until: str | None = None) -> Sweep:
    """Plan every combination of the arguments' values; the last argument changes fastest.

    Raises:
        UserError: for the first problem in any of them.
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
    combinations: dict[tuple[tuple[str, str], ...], Combination] = {}
    for point in itertools.product(*grid.values()):
        overrides = [f"{name}={value}" for name, value in zip(grid, point, strict=True)]
        values_here = {name: value for name, value in zip(grid, point, strict=True) if name in axes}
        planned = _planned(source, overrides, store, steps, until)
        combination = Combination(values_here, overrides, planned)
        first = combinations.setdefault(tuple((step.name, step.address) for step in planned), combination)
        if first is not combination:
            first.equals.append(values_here)
    return Sweep(Path(source).stem, source, tuple(arguments), until, axes, list(combinations.values()))


def _planned(
    source: str, overrides: list[str], store: Store, steps: Sequence[Step], until: str | None
) -> list[Planned]:
    try:
        return runner.up_to(planner.plan(recipe.load(source, overrides, steps), store), until)
    except UserError as error:
        raise UserError(f"{error} (in the combination {' '.join(overrides)})") from None
