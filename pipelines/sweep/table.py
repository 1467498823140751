"""A sweep's numbers: metrics by dotted path, one row per combination; runs that differ only in the seed share a row.

A metric's path is `step.name.name...` into that step's metrics.json. In a list `[2]` is the third item (from 0) and
`[ppo,sft]` the row whose first texts are `ppo` and `sft` (of `win_rates`: a and b). A path may end at an estimate,
a table with `mean` or `rate`: `evaluation.win_rates[ppo,sft]` is the same as `evaluation.win_rates[ppo,sft].rate`,
and its `low` and `high` come along.

Left out: arithmetic between metrics, and intervals over seeds; three seeds support only their range.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptlife.data.values import is_number
from gptlife.stages.evals.prompt_sets import PROMPTED
from gptlife.stages.runtime.stage import Family

Metrics = Mapping[str, Any]
_PART = re.compile(r"(?:^|(?<=.)\.)([^.\[\]]+)|\[([^\[\]]+)\]")
_ESTIMATES = ("mean", "rate")
_USUAL: Mapping[str, tuple[str, ...]] = {
    "online": ("score", "gold", "kl"),
    "reward": ("validation_accuracy", "validation_accuracy_heldout"),
    "rankings": ("agreement_training", "agreement_heldout"),
    "tokenizer": ("bytes_per_token",),
}
"""The main results of a family's stages."""
_ANYWHERE = ("score", "gold", "kl", "validation_loss", "validation_accuracy", "loss")


@dataclass(frozen=True)
class Measured:
    """One number, with its 95 % interval where the stage gave one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Result:
    """One combination: its values as written, axis by axis, and what was measured (None: absent)."""

    values: Mapping[str, str]
    state: str
    """`done`, or the reason why not."""
    measured: Mapping[str, Measured | None]


@dataclass(frozen=True)
class Summary:
    """A metric over the runs of a group; `sd` is the sample's (n - 1), None of a single run."""

    n: int
    mean: float
    least: float
    greatest: float
    sd: float | None


@dataclass(frozen=True)
class Group:
    """The combinations that differ only in the seed."""

    values: Mapping[str, str]
    results: tuple[Result, ...]

    @property
    def finished(self) -> int:
        """How many of its runs are done."""
        return sum(result.state == "done" for result in self.results)

    def points(self, metric: str) -> list[Measured]:
        """What its runs measured."""
        return [value for result in self.results if (value := result.measured[metric]) is not None]

    def summary(self, metric: str) -> Summary | None:
        """Mean and spread of a metric; None where no run has it."""
        values = [point.value for point in self.points(metric)]
        if not values:
            return None
        sd = statistics.stdev(values) if len(values) > 1 else None
        return Summary(len(values), statistics.fmean(values), min(values), max(values), sd)


@dataclass(frozen=True)
class Table:
    """A sweep's results. `axes` are the swept fields but the seeds, `seeds` those that are seeds."""

    axes: tuple[str, ...]
    seeds: tuple[str, ...]
    metrics: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def results(self) -> list[Result]:
        """Every combination."""
        return [result for group in self.groups for result in group.results]


def table(results: Sequence[Result], axes: Sequence[str], metrics: Sequence[str]) -> Table:
    """Group the results; means are taken over an axis called `seed` or `step.seed`."""
    seeds = tuple(axis for axis in axes if axis.rpartition(".")[2] == "seed")
    others = tuple(axis for axis in axes if axis not in seeds)
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.values[axis] for axis in others), []).append(result)
    made = [Group(dict(zip(others, key, strict=True)), tuple(members)) for key, members in groups.items()]
    return Table(others, seeds, tuple(metrics), tuple(made))


def parts_of(path: str) -> list[str | tuple[str, ...]] | None:
    """A path's names, bracketed ones as a tuple; None where it is not a path."""
    parts, end = [], 0
    for match in _PART.finditer(path):
        if match.start() != end:
            return None
        name, inside = match.groups()
        parts.append(name if name is not None else tuple(part.strip() for part in inside.split(",")))
        end = match.end()
    return parts if end == len(path) and parts else None


def measured(metrics: Metrics, path: str) -> Measured | None:
    """The number at `path` inside tables and lists; None where there is none."""
    around: Any = None
    value: Any = metrics
    last: str | tuple[str, ...] = ""
    for last in parts_of(path) or [""]:
        around, value = value, _below(value, last)
    if isinstance(value, dict):
        last = next((name for name in _ESTIMATES if name in value), "")
        around, value = value, value.get(last)
    if not is_number(value):
        return None
    bounds = [around.get(name) if last in _ESTIMATES else None for name in ("low", "high")]
    low, high = (float(bound) if is_number(bound) else None for bound in bounds)
    return Measured(float(value), low, high)


def _below(value: Any, part: str | tuple[str, ...]) -> Any:
    if isinstance(value, dict) and isinstance(part, str):
        return value.get(part)
    if not (isinstance(value, list) and isinstance(part, tuple)):
        return None
    if len(part) == 1 and part[0].isdigit():
        return value[int(part[0])] if int(part[0]) < len(value) else None
    return next((row for row in value if isinstance(row, dict) and _texts(row)[: len(part)] == part), None)


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(item for item in row.values() if isinstance(item, str))


def paths(metrics: Any, path: str = "") -> Iterator[str]:
    """Every path of a number, an estimate as a whole; of lists only tables that begin with texts."""
    if isinstance(metrics, dict):
        if any(is_number(metrics.get(name)) for name in _ESTIMATES):
            yield path
        for key, item in metrics.items():
            if key not in (*_ESTIMATES, "low", "high"):
                yield from paths(item, f"{path}.{key}" if path else str(key))
    elif isinstance(metrics, list):
        for row in metrics:
            if isinstance(row, dict) and _texts(row):
                yield from paths(row, f"{path}[{','.join(_texts(row)[:2])}]")
    elif is_number(metrics):
        yield path


def usual(family: Family, metrics: Metrics, inputs: Mapping[str, Family] | None = None) -> list[str]:
    """The paths that tell most of a result, those that its metrics have.

    `inputs` are the families of an evaluation's inputs by name: what concerns its first aligned model comes first.
    """
    wanted = _of_evaluation(metrics, inputs or {}) if family == "evaluation" else _USUAL.get(family, _ANYWHERE)
    return [path for path in wanted if measured(metrics, path)]


def _of_evaluation(metrics: Metrics, inputs: Mapping[str, Family]) -> list[str]:
    families = {name: inputs.get(name.removesuffix(PROMPTED)) for name in metrics.get("models") or {}}
    models = [name for name in families if families[name] != "base"]

    def first(*wanted: Family) -> str:
        led = (name for family in wanted for name in models if families[name] == family)
        return next(led, models[-1] if models else "")

    aligned = first("online", "preference")
    scores = [f"models.{name}.score" for name in models]
    return [f"win_rates[{aligned},{first('chat')}]", *scores, f"tax.{aligned}.validation_loss"]


def header(table: Table) -> list[str]:
    """The columns of `lines`, without the step's name where all metrics have the same."""
    steps = {metric.partition(".")[0] for metric in table.metrics}
    names = [metric.partition(".")[2] if len(steps) == 1 else metric for metric in table.metrics]
    return [*table.axes, *(["runs"] if table.seeds else []), *names]


def lines(table: Table) -> list[list[str]]:
    """One row per group: values, runs, and each metric with its range over the seeds, or its own interval."""
    rows = []
    for group in table.groups:
        whole = len(group.results)
        runs = str(whole) if group.finished == whole else f"{group.finished} of {whole}"
        cells = [_cell(table, group, metric) for metric in table.metrics]
        rows.append([*group.values.values(), *([runs] if table.seeds else []), *cells])
    return rows


def _cell(table: Table, group: Group, metric: str) -> str:
    summary, points = group.summary(metric), group.points(metric)
    if summary is None:
        return "–"
    low, high = (summary.least, summary.greatest) if table.seeds else (points[0].low, points[0].high)
    if low is None or high is None or (table.seeds and summary.n == 1):
        return short(summary.mean)
    return f"{short(summary.mean)} [{short(low)}, {short(high)}]"


def caption(table: Table) -> str:
    """What the numbers in `lines` are."""
    steps = {metric.partition(".")[0] for metric in table.metrics}
    of = f"Metrics of {steps.pop()}. " if len(steps) == 1 else ""
    if table.seeds:
        return f"{of}Mean over the runs that differ only in {' and '.join(table.seeds)} [least, greatest]."
    return f"{of}In brackets the 95 % interval, of a metric that has one."


def short(value: float) -> str:
    """Three decimals as in the report; three digits of what is small or great; a real minus sign."""
    if abs(value) >= 1e9:
        text = f"{value:.3g}"
    elif value == round(value):
        text = f"{round(value):,}"
    elif abs(value) >= 10_000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def as_csv(table: Table) -> str:
    """One row per group: with seeds mean, sd, min, max and n of each metric, without them its value, low and high."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    suffixes = ("", " sd", " min", " max", " n") if table.seeds else ("", " low", " high")
    runs = ["runs", "finished"] if table.seeds else []
    writer.writerow([*table.axes, *runs, *(metric + suffix for metric in table.metrics for suffix in suffixes)])
    for group in table.groups:
        row: list[Any] = [*group.values.values(), *([len(group.results), group.finished] if table.seeds else [])]
        for metric in table.metrics:
            summary, points = group.summary(metric), group.points(metric)
            if summary is None:
                row += [""] * len(suffixes)
            elif table.seeds:
                row += [summary.mean, summary.sd, summary.least, summary.greatest, summary.n]
            else:
                row += [points[0].value, points[0].low, points[0].high]
        writer.writerow(row)
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """The table of `lines`, with its caption below."""
    rows = [header(table), *lines(table)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    ruled = [escaped[0], [*("---" for _ in table.axes), *("---:" for _ in rows[0][len(table.axes) :])], *escaped[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in ruled) + f"\n{caption(table)}\n"
