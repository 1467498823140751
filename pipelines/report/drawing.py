"""Drawing for the report: panels of curves, and figures as SVG that can be put into a page.

Lines of more than `_POINTS` points are drawn as means over equal blocks, with a band from each block's least to its
greatest value, so that a page stays small and spikes stay visible. Text in a figure is text (not outlines), in the
reader's own fonts. Ids are prefixed with the figure's name, because all ids of a page share one namespace.

Left out: interaction; the numbers are in the tables and in log.jsonl.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from gptlife.data.values import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Log = Sequence[Mapping[str, Any]]
Line = tuple[str, list[float], list[float]]
"""(name, x, y)"""
Draw = Callable[["Axes"], None]

_POINTS = 300
BLUE, ORANGE, GREEN, GREY = "#0b62a4", "#d1570b", "#12805c", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, "#7a4fa3", "#b3261e", "#8a6d1f", "#2a8f9d", "#5b6470")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gptlife",
    "text.parse_math": False,
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "xtick.color": "#4a4f57",
    "ytick.color": "#4a4f57",
}
WIDTH = 10.0  # inches of a figure as wide as the page


def line(log: Log, key: str, name: str = "", x: str = "step") -> Line:
    """The finite values of `key` over `x`, from the rows that have both."""
    points = [(row[x], row[key]) for row in log if is_number(row.get(x)) and is_number(row.get(key))]
    return name or key, [float(point[0]) for point in points], [float(point[1]) for point in points]


def curves(
    title: str,
    lines: Sequence[Line],
    *,
    x: str = "step",
    guide: float | None = None,
    mark: float | None = None,
    why: str = "not logged",
    least: float = -1e9,
    legend: bool = True,
) -> Draw:
    """A panel of lines.

    Args:
        title: above the panel.
        lines: name, x and y of each.
        x: label of the x axis; `tokens` are written with units.
        guide: y of a dotted line.
        mark: x of a dashed line.
        why: what an empty panel says.
        least: values below it are drawn at it.
        legend: whether several lines get one.
    """

    def draw(axes: Axes) -> None:
        axes.set_title(title)
        drawn = [name for name, xs, _ in lines if xs]
        if not drawn:
            axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            return
        if guide is not None:
            axes.axhline(guide, color=GREY, linewidth=0.9, linestyle=":")
        if mark is not None:
            axes.axvline(mark, color=GREY, linewidth=0.9, linestyle="--")
        for (name, xs, ys), colour in zip(lines, COLOURS, strict=False):
            if not xs:
                continue
            if min(ys) < least:
                axes.set_title(f"{title}, at least {least:g}".replace("-", "\N{MINUS SIGN}"))
            _plot(axes, name, xs, [max(y, least) for y in ys], colour)
        _number_axes(axes, x)
        if legend and len(drawn) > 1:
            axes.legend(loc="best")

    return draw


def _plot(axes: Axes, name: str, xs: list[float], ys: list[float], colour: str) -> None:
    few = len(xs) <= 25
    if len(xs) > _POINTS:
        blocks = _blocks(len(xs))
        xs, ys, low, high = (
            [sum(xs[a:b]) / (b - a) for a, b in blocks],
            [sum(ys[a:b]) / (b - a) for a, b in blocks],
            [min(ys[a:b]) for a, b in blocks],
            [max(ys[a:b]) for a, b in blocks],
        )
        axes.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(xs, ys, color=colour, label=name, marker="o" if few else None, markersize=3)


def _blocks(n: int) -> list[tuple[int, int]]:
    size = math.ceil(n / _POINTS)
    return [(start, min(n, start + size)) for start in range(0, n, size)]


def _number_axes(axes: Axes, x: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
    if x == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel(x)


def figure(
    name: str,
    label: str,
    draws: Sequence[Draw],
    *,
    columns: int = 3,
    height: float = 2.1,
    left: float = 0.62,
    right: float = 0.15,
) -> str:
    """Panels in rows of `columns`, as an `<svg>` element with the text alternative `label`.

    `height` of a row, and `left` and `right` margins of a panel, are in inches; a layout engine takes twice the time
    for the same result.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = math.ceil(len(draws) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height * rows))
        width = WIDTH / columns
        for index, draw in enumerate(draws):
            row, column = divmod(index, columns)
            inches = (column * width + left, (rows - 1 - row) * height + 0.45, width - left - right, height - 0.8)
            share = [inch / whole for inch, whole in zip(inches, (WIDTH, height * rows) * 2, strict=True)]
            draw(figure.add_axes((share[0], share[1], share[2], share[3])))
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return embedded(text.getvalue(), name, label)


def embedded(svg: str, name: str, label: str) -> str:
    """The `<svg>` element alone: it scales with the page, its ids are unique there, `label` is its text alternative."""
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f'{opening} role="img" aria-label="{html.escape(label)}"{svg[svg.index(">") :]}'
