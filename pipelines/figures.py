"""The report's figures, as SVG to stand inside a page: loss curves, PPO's small multiples, win rates, calibration.

Each public function takes what a stage wrote (its log rows or a part of its metrics) and gives one `<svg>` element.
Lines of more than `_POINTS` points are drawn as means over equal blocks inside the band from the blocks' least to
greatest value, so that a page stays small and a spike stays visible. Text in a figure is text (not outlines), drawn
in the reader's own fonts. Ids are prefixed by the figure's name, because a page is one namespace.

Left out: interaction; the numbers are in the tables and in log.jsonl.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Log = Sequence[Mapping[str, Any]]
Line = tuple[str, list[float], list[float]]
"""(name, x, y)"""
Draw = Callable[["Axes"], None]

_POINTS = 300
_BLUE, _ORANGE, _GREEN, _GREY = "#0b62a4", "#d1570b", "#12805c", "#8a8f98"
_COLOURS = (_BLUE, _ORANGE, _GREEN)
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gptlife",
    "text.parse_math": False,
    "font.size": 8.5,
    "font.family": "sans-serif",
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _GREY,
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
_WIDTH = 10.0  # inches of a figure as wide as the page


def line(log: Log, key: str, name: str = "", x: str = "step") -> Line:
    """The finite values of `key` over `x`, from the rows that have both."""
    points = [(row[x], row[key]) for row in log if _is_number(row.get(x)) and _is_number(row.get(key))]
    return name or key, [float(point[0]) for point in points], [float(point[1]) for point in points]


def pretrain(log: Log) -> str:
    """Losses, bits per byte and gradient norm over the tokens seen."""
    x = "tokens" if any("tokens" in row for row in log) else "step"
    losses = [line(log, "loss", "train", x), line(log, "validation_loss", "validation", x)]
    panels = [
        _curves("loss, nats a token", losses, x=x),
        _curves("bits per byte, validation", [line(log, "bits_per_byte", x=x)], x=x),
        _curves("gradient norm", [line(log, "grad_norm", x=x)], x=x),
    ]
    return _figure("pretrain", "Pretraining loss, bits per byte and gradient norm", panels)


def sft(log: Log, metrics: Mapping[str, Any]) -> str:
    """Losses, accuracy and gradient norm over steps; a dashed line where the kept weights are from."""
    validation = line(log, "validation_loss", "validation")
    if _is_number(metrics.get("validation_loss_before")):
        validation[1].insert(0, 0.0)
        validation[2].insert(0, float(metrics["validation_loss_before"]))
    accuracy = [line(log, "accuracy", "train"), line(log, "validation_accuracy", "validation")]
    best = metrics.get("best_step")
    panels = [
        _curves("loss, nats an assistant token", [line(log, "loss", "train"), validation], mark=best),
        _curves("next-token accuracy", accuracy, mark=best),
        _curves("gradient norm", [line(log, "grad_norm")]),
    ]
    return _figure("sft", "Fine-tuning loss, accuracy and gradient norm", panels)


def reward_model(log: Log, calibration: Mapping[str, Any]) -> str:
    """Ranking loss and pair accuracy over steps, and the reliability diagram."""
    accuracy = [line(log, "accuracy", "train"), line(log, "validation_accuracy", "validation")]
    panels = [
        _curves("ranking loss, nats a pair", [line(log, "loss")], guide=math.log(2)),
        _curves("accuracy on pairs", accuracy, guide=0.5),
        lambda axes: _reliability(axes, calibration),
    ]
    return _figure("reward_model", "Reward model: loss, accuracy and calibration", panels, height=2.7)


def ppo(log: Log) -> str:
    """Twelve panels over PPO steps; the gold judge's score stands beneath the reward model's."""

    def panel(title: str, *keys: str, guide: float | None = None, why: str = "not logged", least: float = -1e9) -> Draw:
        names = [(key, _NAMES.get(key, key)) for key in keys]
        return _curves(title, [line(log, key, name) for key, name in names], guide=guide, why=why, least=least)

    panels = [
        panel("score, as trained on", "score", "rlhf_reward"),
        panel("KL to the reference, nats an answer", "kl", "kl_k3", guide=0.0),
        panel("answer length, tokens", "length"),
        panel("gold judge's score", "gold", why="no judge watched\n(ppo.judge)"),
        panel("entropy, nats a token", "entropy"),
        panel("share of answers that end", "eos_rate", guide=1.0),
        panel("approximate KL of an update", "approx_kl", guide=0.0),
        panel("share of clipped tokens", "clipfrac", guide=0.0),
        panel("probability ratio new / old", "ratio_mean", "first_ratio", guide=1.0),
        panel("value: explained variance", "var_explained", guide=0.0, least=-1.0),
        panel("pretraining loss, nats a token", "ptx_loss", why="no pretraining mix\n(ppo.pretraining)"),
        panel("distinct words and word pairs", "distinct_1", "distinct_2"),
    ]
    return _figure("ppo", "PPO over its steps, in twelve panels", panels)


_NAMES = {
    "score": "score",
    "rlhf_reward": "score less KL cost",
    "kl": "k1",
    "kl_k3": "k3",
    "ratio_mean": "mean",
    "first_ratio": "first minibatch",
    "distinct_1": "words",
    "distinct_2": "pairs",
}


def win_rates(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Bars of how often a is preferred to b, plain and length-controlled, with their 95 % intervals."""

    def draw(axes: Axes) -> None:
        kinds = [
            ("plain", _BLUE, [*rows]),
            ("length-controlled", _ORANGE, [row.get("length_controlled") or row for row in rows]),
        ]
        for offset, (name, colour, found) in zip((-0.19, 0.19), kinds, strict=True):
            y = [index + offset for index in range(len(found))]
            rates = [100 * row["rate"] for row in found]
            below = [max(0.0, 100 * (row["rate"] - row["low"])) for row in found]
            above = [max(0.0, 100 * (row["high"] - row["rate"])) for row in found]
            axes.barh(y, rates, height=0.36, color=colour, alpha=0.8, label=name, zorder=2)
            axes.errorbar(rates, y, xerr=[below, above], fmt="none", ecolor="black", elinewidth=1, capsize=2, zorder=3)
        axes.axvline(50, color="black", linewidth=0.8, linestyle="--", zorder=4)
        names = [f"{labels.get(row['a'], row['a'])} over {labels.get(row['b'], row['b'])}" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set(xlim=(0, 100), xlabel="preferred, % of prompts (ties half)")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return _figure(
        "win_rates", "Win rates with 95 % intervals", [draw], columns=1, height=0.8 + 0.4 * len(rows), left=2.05
    )


def _curves(
    title: str,
    lines: Sequence[Line],
    *,
    x: str = "step",
    guide: float | None = None,
    mark: float | None = None,
    why: str = "not logged",
    least: float = -1e9,
) -> Draw:
    """A panel of lines; `guide` is a dotted level, `mark` a dashed place on x, values below `least` are drawn there."""

    def draw(axes: Axes) -> None:
        axes.set_title(title)
        drawn = [entry for entry in lines if entry[1]]
        if not drawn:
            axes.text(0.5, 0.5, why, ha="center", va="center", color=_GREY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            return
        if guide is not None:
            axes.axhline(guide, color=_GREY, linewidth=0.9, linestyle=":")
        if mark is not None:
            axes.axvline(mark, color=_GREY, linewidth=0.9, linestyle="--")
        for (name, xs, ys), colour in zip(drawn, _COLOURS, strict=False):
            if min(ys) < least:
                axes.set_title(f"{title}, at least {least:g}".replace("-", "\N{MINUS SIGN}"))
            _plot(axes, name, xs, [max(y, least) for y in ys], colour)
        _number_axes(axes, x)
        if len(drawn) > 1:
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
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", color=_GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    most = max(count for *_, count in found)
    confidence, accuracy = [point[0] for point in found], [point[1] for point in found]
    axes.plot([0.5, 1], [0.5, 1], color=_GREY, linewidth=0.9, linestyle=":")
    axes.plot(confidence, accuracy, color=_BLUE, linewidth=1)
    axes.scatter(confidence, accuracy, s=[6 + 60 * count / most for *_, count in found], color=_BLUE, zorder=3)
    axes.set(xlim=(0.48, 1.02), ylim=(min(0.38, *accuracy) - 0.02, 1.02), xlabel="confidence", ylabel="right")


def _figure(
    name: str, label: str, draws: Sequence[Draw], *, columns: int = 3, height: float = 2.1, left: float = 0.62
) -> str:
    """Panels in rows of `columns`, as an `<svg>` that says what it is.

    `height` is of one row and `left` the room for a panel's y axis, in inches; a layout engine would take twice the
    time for the same.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = math.ceil(len(draws) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height * rows))
        width = _WIDTH / columns
        for place, draw in enumerate(draws):
            row, column = divmod(place, columns)
            inches = (column * width + left, (rows - 1 - row) * height + 0.45, width - left - 0.15, height - 0.8)
            share = [inch / whole for inch, whole in zip(inches, (_WIDTH, height * rows) * 2, strict=True)]
            draw(figure.add_axes((share[0], share[1], share[2], share[3])))
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return _embedded(text.getvalue(), name, label)


def _embedded(svg: str, name: str, label: str) -> str:
    """The `<svg>` element alone, scaling with the page, with ids of its own and a text for those who can't see it."""
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f'{opening} role="img" aria-label="{html.escape(label)}"{svg[svg.index(">") :]}'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
