"""Over-optimisation (Gao et al. 2022): what the reward model says and what is true, over d = sqrt(KL).

Two methods move away from the first policy: best of n, whose KL has a formula, and online runs, whose KL is measured at
every step. Both are recentred to their start (n = 1, and the first step's mean). The fits are those of
`reward/statistics/overoptimisation.py`; best-of-n's have errors over prompts, as the stage wrote them. Without a gold
judge there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report import drawing
from gptlife.pipelines.report.drawing import COLOURS, GREY, Draw
from gptlife.pipelines.report.life import Life, stages_of
from gptlife.pipelines.report.record import Record
from gptlife.pipelines.report.section import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]
_FITTED = 60
"""Points of a drawn fit."""
_D = "d = \N{SQUARE ROOT}KL, nats½"
_SMOOTH = 12
"""Equal parts of a run whose means are drawn: one step's mean is mostly noise."""


@dataclass(frozen=True)
class Curve:
    """Gold and proxy of one way of optimising against one reward model; points are (d, gain since the start)."""

    name: str
    reward: str
    """The reward model's step."""
    form: str
    """Of the fit: `best_of_n` or `rl`."""
    gold: Points
    proxy: Points
    bands: dict[str, list[tuple[float, float]]]
    """(low, high) of every point of `gold` and `proxy`, where they have intervals."""
    fit: Table
    """`reward.overoptimisation.Fit` of gold as a table; empty where there is none."""
    predicted: Table
    """`PeakPrediction` of gold, likewise."""

    @property
    def reach(self) -> float:
        """The farthest d."""
        return max((d for d, _ in self.gold), default=0.0)

    def fitted(self) -> Points:
        """The fit as a line from 0 to as far as was measured."""
        from gptlife.reward.statistics.overoptimisation import fitted_reward

        if not self.fit:
            return []
        ds = [self.reach * index / _FITTED for index in range(_FITTED + 1)]
        return [(d, fitted_reward(self.fit["form"], self.fit["alpha"], self.fit["beta"], d)) for d in ds]


def build(life: Life) -> dict[str, Any]:
    """The curves of best of n and of the online runs that a gold judge scored."""
    seen = curves(life.of("answers"), life.of("online"))
    return {
        "curves": table(seen),
        "figure_of_gold": overview(seen) if seen else "",
        "figure_by_reward": draw_by_reward(seen) if len({curve.reward for curve in seen}) > 1 else "",
        "judged": [stages_of(family)[0].name for family in ("online", "answers")],
    }


def curves(best_of_n: Sequence[Record], online: Sequence[Record]) -> list[Curve]:
    """Every curve that a gold judge scored."""
    of_n = [curve for record in best_of_n for curve in _of_best_of_n(record)]
    return of_n + [curve for record in online if (curve := _of_run(record)) is not None]


def _of_best_of_n(record: Record) -> list[Curve]:
    curves = []
    for name, points in (record.metrics.get("curves") or {}).items():
        if not points or not all("gold" in point for point in points):
            continue
        member, reward = name.partition(".")[2], reward_of(record, name)
        fits = (record.metrics.get("fits") or {}).get(name) or {}
        start = {key: points[0][key]["mean"] for key in ("gold", "proxy")}

        def gains(key: str, points: Any = points, start: Any = start) -> Points:
            return [(point["d"], point[key]["mean"] - start[key]) for point in points]

        bands = {
            key: [(point[key]["low"] - start[key], point[key]["high"] - start[key]) for point in points]
            for key in ("gold", "proxy")
        }
        curves.append(
            Curve(
                record.name + (f", member {member} alone" if member else ""),
                reward,
                "best_of_n",
                gains("gold"),
                gains("proxy"),
                bands,
                (fits.get("gold") or {}).get("best_of_n") or {},
                fits.get("predicted") or {},
            )
        )
    return curves


def reward_of(record: Record, name: str) -> str:
    """The step of the reward model that an input is from; `.1`, for an ensemble's first member alone, is kept."""
    source, dot, member = name.partition(".")
    return (record.upstream(source) or source) + dot + member


def _of_run(record: Record) -> Curve | None:
    rows = [row for row in record.log if all(is_number(row.get(key)) for key in ("kl", "score", "gold"))]
    if len(rows) < 2:
        return None

    def gains(key: str) -> Points:
        # A KL that is measured below 0 is noise about 0.
        return [(math.sqrt(max(0.0, row["kl"])), row[key] - rows[0][key]) for row in rows]

    gold = gains("gold")
    fit, predicted = fitted(gold)
    reward = record.upstream("reward") or str(record.field("reward_function") or "a function")
    return Curve(record.name, reward, "rl", gold, gains("score"), {}, fit, predicted)


def fitted(points: Points) -> tuple[Table, Table]:
    """Fit and predicted peak of a run's gold gains, by step; empty where there are too few distances for a fit."""
    from gptlife.reward.statistics.overoptimisation import fit, predict_peak

    away = [point for point in points if point[0] > 0]
    d, gains = [point[0] for point in away], [point[1] for point in away]
    try:
        return fit(d, gains, "rl")._asdict(), predict_peak(d, gains, "rl")._asdict()
    except ValueError:
        return {}, {}


def by_reward(curves: Sequence[Curve], most: int = 4) -> list[tuple[str, list[Curve], int]]:
    """(reward model, its curves, how many were left out): best of n, and the `most` runs that went farthest."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.reward, []).append(curve)
    kept = []
    for reward, members in groups.items():
        runs = sorted((curve for curve in members if curve.form == "rl"), key=lambda curve: -curve.reach)
        shown = [curve for curve in members if curve.form != "rl" or curve in runs[:most]]
        kept.append((reward, shown, len(members) - len(shown)))
    return kept


def table(curves: Sequence[Curve]) -> list[Mapping[str, Any]]:
    """One row per curve: the fit of gold, the peak that the first half predicts, the one found, and where it ends."""
    return [
        {
            "name": curve.name,
            "reward": curve.reward,
            "form": curve.form,
            "fit": curve.fit,
            "predicted": curve.predicted,
            "d": curve.reach,
            "gold": curve.gold[-1][1],
            "proxy": curve.proxy[-1][1],
        }
        for curve in curves
    ]


def overview(curves: Sequence[Curve]) -> str:
    """Gold's gain over d: best of n on the left, online runs on the right, a colour per reward model.

    Where there is one reward model, its panel of `draw_by_reward` is beside.
    """
    rewards = list(dict.fromkeys(curve.reward for curve in curves))
    colours = {reward: COLOURS[index % len(COLOURS)] for index, reward in enumerate(rewards)}

    def panel(title: str, form: str) -> Draw:
        chosen = [curve for curve in curves if curve.form == form]
        return lambda axes: _gold(axes, title, chosen, colours)

    forms = {curve.form for curve in curves}
    titles = {"best_of_n": "best of n: gold, gained", "rl": "online runs: gold, gained"}
    draws = [panel(title, form) for form, title in titles.items() if form in forms]
    if len(rewards) == 1:
        [group] = by_reward(curves)
        draws.append(lambda axes: _both(axes, *group))
    columns = max(2, len(draws))
    return drawing.figure(
        "overoptimisation", "Gold score over the distance from the start", draws, columns=columns, height=3.4
    )


def _gold(axes: Axes, title: str, curves: Sequence[Curve], colours: Mapping[str, str]) -> None:
    axes.set_title(title)
    axes.axhline(0, color=GREY, linewidth=0.9, linestyle=":")
    named: set[str] = set()
    for curve in curves:
        colour = colours[curve.reward]
        label = None if curve.reward in named else curve.reward
        named.add(curve.reward)
        _line(axes, curve, "gold", colour, label, width=1.5)
        _fit(axes, curve, colour)
    axes.set_xlabel(_D)
    axes.legend(loc="best")


def draw_by_reward(curves: Sequence[Curve]) -> str:
    """A panel per reward model: gold as lines, the proxy dashed, the fits of gold thin."""

    def panel(reward: str, curves: Sequence[Curve], hidden: int) -> Draw:
        return lambda axes: _both(axes, reward, curves, hidden)

    draws = [panel(*group) for group in by_reward(curves)]
    return drawing.figure("overoptimisation_by_reward", "Gold and proxy by reward model", draws, columns=3, height=2.7)


def _both(axes: Axes, reward: str, curves: Sequence[Curve], hidden: int) -> None:
    axes.set_title(reward + (f" ({hidden} nearer runs left out)" if hidden else ""))
    axes.axhline(0, color=GREY, linewidth=0.9, linestyle=":")
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        if curve.form == "rl":
            axes.plot(*_columns(curve.gold), ".", color=colour, markersize=3.5, alpha=0.4, markeredgewidth=0)
        _line(axes, curve, "gold", colour, _short(curve), width=1.5)
        _line(axes, curve, "proxy", colour, None, width=1.0, style="--")
        _fit(axes, curve, colour)
    axes.set_xlabel(_D)
    axes.legend(loc="best", fontsize=7)


def _short(curve: Curve) -> str:
    if curve.form == "rl":
        return curve.name
    return "best of n" + (f", member {curve.reward.partition('.')[2]}" if "." in curve.reward else "")


def _line(axes: Axes, curve: Curve, key: str, colour: str, label: str | None, width: float, style: str = "-") -> None:
    points: Points = getattr(curve, key)
    if curve.form == "rl":
        points = smooth(points)
    elif key in curve.bands:
        low, high = ([bounds[side] for bounds in curve.bands[key]] for side in (0, 1))
        axes.fill_between([d for d, _ in points], low, high, color=colour, alpha=0.15, linewidth=0)
    few = len(points) <= 25 and curve.form != "rl"
    axes.plot(*_columns(points), style, color=colour, linewidth=width, label=label, marker="o" if few else None, ms=2.5)


def smooth(points: Points) -> Points:
    """The first point, and means over `_SMOOTH` equal parts of the rest, in the run's order."""
    rest = points[1:]
    size = max(1, math.ceil(len(rest) / _SMOOTH))
    parts = [rest[start : start + size] for start in range(0, len(rest), size)]
    means = [(sum(d for d, _ in part) / len(part), sum(gain for _, gain in part) / len(part)) for part in parts]
    return [*points[:1], *means]


def _fit(axes: Axes, curve: Curve, colour: str) -> None:
    axes.plot(*_columns(curve.fitted()), ":", color=colour, linewidth=0.9)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


SECTION = Section("overoptimisation", "Over-optimisation", build, "overoptimisation")
