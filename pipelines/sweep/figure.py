"""A sweep's plot: a small panel per metric, the swept number along x, a line for each value of the other axes.

The first axis whose values are all numbers is x; it is logarithmic where they span more than a factor of 20, and a zero
is then drawn at the left edge, beyond a dotted line. Without such an axis the first one's values are side by side, as
are the runs of a sweep over seeds alone. A point is a run and the line their mean; without seeds a bar is the interval
that the stage gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from textwrap import fill
from typing import TYPE_CHECKING

from gptlife.data.values import is_number
from gptlife.data.yaml_tables import parse_yaml
from gptlife.pipelines.report.drawing import BLUE, GREEN, GREY, ORANGE, STYLE, WIDTH
from gptlife.pipelines.sweep.table import Group, Table, header

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, ORANGE, GREEN, "#7a4fa3", "#b3261e", "#8a6d1f", "#2a8f9d", "#5b6470")
_MARKERS = "osD^vP"
_COLUMNS, _HEIGHT, _LEGEND_ROW = 3, 2.4, 0.2
_LOG_FROM = 20
_MOST_TICKS = 8
_LETTERS = 48
"""Letters that fit below a panel."""


@dataclass(frozen=True)
class Scale:
    """Positions of the values on the x axis; `zero` is that of a 0 beside a logarithmic axis."""

    name: str
    places: dict[str, float]
    numeric: bool = False
    logarithmic: bool = False
    zero: float | None = None


@dataclass(frozen=True)
class Line:
    """The groups with the same values of all axes but x, from left to right, each with its position."""

    name: str
    groups: list[tuple[float, Group]]


def scale(table: Table) -> Scale:
    """Choose the x axis and place its values."""
    for axis in table.axes:
        texts = list(dict.fromkeys(group.values[axis] for group in table.groups))
        numbers = {text: float(value) for text in texts if is_number(value := parse_yaml(text, axis))}
        if len(numbers) == len(texts) > 1:
            return _numeric(axis, numbers)
    name = (*table.axes, *table.seeds)[0]
    values = list(dict.fromkeys(result.values[name] for result in table.results))
    return Scale(name, {text: float(index) for index, text in enumerate(values)})


def _numeric(axis: str, numbers: dict[str, float]) -> Scale:
    above = [number for number in numbers.values() if number > 0]
    if min(numbers.values()) < 0 or not above or max(above) <= _LOG_FROM * min(above):
        return Scale(axis, numbers, numeric=True)
    logs = {text: math.log10(number) for text, number in numbers.items() if number > 0}
    zero = min(logs.values()) - max(0.4, 0.2 * (max(logs.values()) - min(logs.values())))
    places = {text: logs.get(text, zero) for text in numbers}
    return Scale(axis, places, numeric=True, logarithmic=True, zero=zero if len(logs) < len(numbers) else None)


def lines(table: Table, x: Scale) -> list[Line]:
    """A line for each combination of the axes but x."""
    others = [axis for axis in table.axes if axis != x.name]
    ends = [axis.rpartition(".")[2] for axis in others]
    names = [end if ends.count(end) == 1 else axis for end, axis in zip(ends, others, strict=True)]
    drawn: dict[str, Line] = {}
    groups = table.groups if table.axes else _each(table)
    for group in groups:
        values = [f"{name}={group.values[axis]}" for name, axis in zip(names, others, strict=True)]
        name = ", ".join(values)
        drawn.setdefault(name, Line(name, [])).groups.append((x.places[group.values[x.name]], group))
    for line in drawn.values():
        line.groups.sort(key=lambda entry: entry[0])
    return list(drawn.values())


def _each(table: Table) -> list[Group]:
    """Every run by itself, of a sweep over seeds alone."""
    return [Group(result.values, (result,)) for result in table.results]


def draw(table: Table) -> Figure | None:
    """The plot, or None where nothing was measured."""
    import matplotlib
    from matplotlib.figure import Figure

    metrics = [metric for metric in table.metrics if any(group.points(metric) for group in table.groups)]
    if not metrics:
        return None
    x = scale(table)
    drawn = lines(table, x)
    columns = min(_COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    legend = _LEGEND_ROW * math.ceil(len(drawn) / 3) if len(drawn) > 1 else 0.0
    width, height = WIDTH / _COLUMNS * columns, _HEIGHT * rows + legend
    titles = dict(zip(table.metrics, header(table)[-len(table.metrics) :], strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        for index, metric in enumerate(metrics):
            row, column = divmod(index, columns)
            left, bottom = column * width / columns + 0.62, (rows - 1 - row) * _HEIGHT + 0.62
            box = (left / width, bottom / height, (width / columns - 0.8) / width, (_HEIGHT - 0.95) / height)
            axes = figure.add_axes(box)
            axes.set_title(titles[metric])
            _panel(axes, table, metric, x, drawn)
        if len(drawn) > 1:
            handles = figure.axes[0].get_legend_handles_labels()
            figure.legend(*handles, loc="upper left", ncols=3, bbox_to_anchor=(0.02, 1), borderaxespad=0.3)
    return figure


def _panel(axes: Axes, table: Table, metric: str, x: Scale, drawn: Sequence[Line]) -> None:
    _x_axis(axes, x)
    spread = 0.14 if not x.numeric else 0.012 * (max(x.places.values()) - min(x.places.values()))
    for index, line in enumerate(drawn):
        # Side by side, so that no point hides another.
        shift = spread * (index - (len(drawn) - 1) / 2) if len(drawn) <= 5 else 0.0
        colour = _COLOURS[index % len(_COLOURS)]
        marker = _MARKERS[index // len(_COLOURS) % len(_MARKERS)]
        means = [(at + shift, summary.mean) for at, group in line.groups if (summary := group.summary(metric))]
        joined = [point for point in means if x.zero is None or point[0] > x.zero + spread * len(drawn)]
        axes.plot(*_columns(means), marker, color=colour, markersize=5, label=line.name, zorder=3)
        if x.numeric:
            axes.plot(*_columns(joined), "-", color=colour, zorder=2)
            if joined != means:
                axes.plot(*_columns(means[: 1 + len(means) - len(joined)]), ":", color=colour, linewidth=1, zorder=2)
        for at, group in line.groups:
            _spread(axes, at + shift, group, metric, colour, seeds=bool(table.seeds))
    if not table.axes and (summary := table.groups[0].summary(metric)):
        axes.axhline(summary.mean, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "\N{MINUS SIGN}"))


def _spread(axes: Axes, at: float, group: Group, metric: str, colour: str, *, seeds: bool) -> None:
    """The runs of a group as points, or one run's interval as a bar."""
    points = group.points(metric)
    if seeds and len(points) > 1:
        values = [point.value for point in points]
        axes.plot([at] * len(values), values, "o", color=colour, markersize=2.8, markerfacecolor="white", zorder=4)
    for point in points if len(points) == 1 else ():
        if point.low is not None and point.high is not None:
            axes.plot([at, at], [point.low, point.high], "-", color=colour, linewidth=0.9, alpha=0.6, zorder=2)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _x_axis(axes: Axes, x: Scale) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter

    places = sorted(x.places.items(), key=lambda entry: entry[1])
    every = math.ceil(len(places) / _MOST_TICKS) if x.numeric else 1
    shown = places[::every]
    axes.xaxis.set_major_locator(FixedLocator([at for _, at in shown]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    room = max(3, _LETTERS // len(shown) - 1)
    texts = [fill(text, room, max_lines=2, placeholder="…", tabsize=1) for text, _ in shown]
    axes.set_xticklabels(texts)
    axes.set_xlabel(f"{x.name}, logarithmic" if x.logarithmic else x.name)
    low, high = places[0][1], places[-1][1]
    margin = 0.5 if not x.numeric else 0.06 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    if x.zero is not None:
        beyond = places[1][1]
        axes.axvline(x.zero + 0.5 * (beyond - x.zero), color=GREY, linewidth=0.9, linestyle=":")
        axes.axvspan(low - margin, x.zero + 0.5 * (beyond - x.zero), color="#f2f3f5", zorder=0, linewidth=0)


def svg(figure: Figure) -> str:
    """The plot as an SVG file."""
    return _saved(figure, "svg").decode("utf-8")


def png(figure: Figure) -> bytes:
    """The plot as a PNG file."""
    return _saved(figure, "png")


def _saved(figure: Figure, kind: str) -> bytes:
    import matplotlib

    content = BytesIO()
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(content, format=kind, dpi=160, facecolor="white", metadata=metadata)
    return content.getvalue()
