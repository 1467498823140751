"""The report's figures, as SVG to stand inside a page: what all share, loss curves, and the reward model's.

The others stand in `figures_*.py`, by subject.
Each public function takes what a stage wrote (its log rows or a part of its metrics) and gives one `<svg>` element.
Lines of more than `_POINTS` points are drawn as means over equal blocks inside the band from the blocks' least to
greatest value, so that a page stays small and a spike stays visible. Text in a figure is text (not outlines), drawn
in the reader's own fonts. Ids are prefixed by the figure's name, because a page is one namespace.

Left out: interaction; the numbers are in the tables and in log.jsonl.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

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
    points = [(row[x], row[key]) for row in log if _is_number(row.get(x)) and _is_number(row.get(key))]
    return name or key, [float(point[0]) for point in points], [float(point[1]) for point in points]


def pretrain(log: Log) -> str:
    """Losses, bits per byte and gradient norm over the tokens seen."""
    x = "tokens" if any("tokens" in row for row in log) else "step"
    losses = [line(log, "loss", "train", x), line(log, "validation_loss", "validation", x)]
    panels = [
        curves("loss, nats a token", losses, x=x),
        curves("bits per byte, validation", [line(log, "bits_per_byte", x=x)], x=x),
        curves("gradient norm", [line(log, "grad_norm", x=x)], x=x),
    ]
    return figure("pretrain", "Pretraining loss, bits per byte and gradient norm", panels)


def sft(log: Log, metrics: Mapping[str, Any]) -> str:
    """Losses, accuracy and gradient norm over steps; a dashed line where the kept weights are from."""
    validation = line(log, "validation_loss", "validation")
    if _is_number(metrics.get("validation_loss_before")):
        validation[1].insert(0, 0.0)
        validation[2].insert(0, float(metrics["validation_loss_before"]))
    accuracy = [line(log, "accuracy", "train"), line(log, "validation_accuracy", "validation")]
    best = metrics.get("best_step")
    panels = [
        curves("loss, nats an assistant token", [line(log, "loss", "train"), validation], mark=best),
        curves("next-token accuracy", accuracy, mark=best),
        curves("gradient norm", [line(log, "grad_norm")]),
    ]
    return figure("sft", "Fine-tuning loss, accuracy and gradient norm", panels)


def reward_model(log: Log, calibration: Mapping[str, Any]) -> str:
    """Ranking loss and pair accuracy over steps, and the reliability diagram."""
    accuracy = [line(log, "accuracy", "train"), line(log, "validation_accuracy", "validation")]
    panels = [
        curves("ranking loss, nats a pair", [line(log, "loss")], guide=math.log(2)),
        curves("accuracy on pairs", accuracy, guide=0.5),
        lambda axes: _reliability(axes, calibration),
    ]
    return figure("reward_model", "Reward model: loss, accuracy and calibration", panels, height=2.7)


def learning_curve(lines: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> str:
    """Accuracy on held-out pairs over the rankings learnt from, between the levels that it can lie."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import NullFormatter, NullLocator

        for (name, level), style in zip(levels.items(), ("--", ":"), strict=False):
            axes.axhline(100 * level, color=GREY, linewidth=1.1, linestyle=style, label=name)
        for line, colour in zip(lines, itertools.cycle(COLOURS), strict=False):
            xs, ys = [point[0] for point in line["points"]], [100 * point[1] for point in line["points"]]
            hollow = {"markersize": 7.0, "markerfacecolor": "none"} if len(xs) == 1 else {"markersize": 4.0}
            axes.plot(xs, ys, color=colour, marker="o", label=fill(line["name"], 42), **hollow)
        axes.set_xscale("log")
        places = sorted({point[0] for line in lines for point in line["points"]})
        apart = [place for i, place in enumerate(places) if i == len(places) - 1 or places[i + 1] > 1.3 * place]
        axes.set_xticks(apart, [f"{place:,}" for place in apart])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="rankings (logarithmic)", ylabel="right, % of held-out pairs")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return figure("learning_curve", "Reward models' accuracy over rankings", [draw], columns=1, height=2.9, right=3.6)


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
    """A panel of lines; `guide` is a dotted level, `mark` a dashed place on x, values below `least` are drawn there."""

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


def _reliability(axes: Axes, calibration: Mapping[str, Any]) -> None:
    """How often the favourite was right over how sure the model was; a point's area is its share of the pairs."""
    found = [
        (confidence, accuracy, count)
        for confidence, accuracy, count in zip(
            *(calibration.get(key, ()) for key in ("confidence", "accuracy", "counts")), strict=True
        )
        if count
    ]
    axes.set_title("calibration")
    if not found:
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    most = max(count for *_, count in found)
    confidence, accuracy = [point[0] for point in found], [point[1] for point in found]
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=0.9, linestyle=":")
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
    axes.scatter(confidence, accuracy, s=[6 + 60 * count / most for *_, count in found], color=BLUE, zorder=3)
    axes.set(xlim=(0.48, 1.02), ylim=(min(0.38, *accuracy) - 0.02, 1.02), xlabel="confidence", ylabel="right")


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
    """Panels in rows of `columns`, as an `<svg>` that says what it is.

    `height` is of one row, `left` and `right` the room beside a panel, in inches; a layout engine would take twice the
    time for the same.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = math.ceil(len(draws) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height * rows))
        width = WIDTH / columns
        for place, draw in enumerate(draws):
            row, column = divmod(place, columns)
            inches = (column * width + left, (rows - 1 - row) * height + 0.45, width - left - right, height - 0.8)
            share = [inch / whole for inch, whole in zip(inches, (WIDTH, height * rows) * 2, strict=True)]
            draw(figure.add_axes((share[0], share[1], share[2], share[3])))
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return embedded(text.getvalue(), name, label)


def embedded(svg: str, name: str, label: str) -> str:
    """The `<svg>` element alone, scaling with the page, with ids of its own and a text for those who can't see it."""
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f'{opening} role="img" aria-label="{html.escape(label)}"{svg[svg.index(">") :]}'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
