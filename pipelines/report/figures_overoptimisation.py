"""The report's figures of over-optimisation: gold over d = sqrt(KL) for all reward models, and each with its proxy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gptlife.pipelines.report.figures import COLOURS, GREY, Draw, figure
from gptlife.pipelines.report.findings_overoptimisation import Curve, Points
from gptlife.pipelines.report.findings_overoptimisation import by_reward as grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_D = "d = \N{SQUARE ROOT}KL, nats½"
_SMOOTH = 12
"""A run is drawn as means over so many parts of it: one step's mean is mostly noise."""


def overview(curves: Sequence[Curve]) -> str:
    """Gold's gain over d: best of n on the left, online runs on the right, a colour a reward model.

    Where there is one reward model, its panel of `by_reward` stands beside.
    """
    rewards = list(dict.fromkeys(curve.reward for curve in curves))
    colours = {reward: COLOURS[index % len(COLOURS)] for index, reward in enumerate(rewards)}

    def panel(title: str, form: str) -> Draw:
        own = [curve for curve in curves if curve.form == form]
        return lambda axes: _gold(axes, title, own, colours)

    forms = {curve.form for curve in curves}
    titles = {"best_of_n": "best of n: gold, gained", "rl": "online runs: gold, gained"}
    draws = [panel(title, form) for form, title in titles.items() if form in forms]
    if len(rewards) == 1:
        [group] = grouped(curves)
        draws.append(lambda axes: _both(axes, *group))
    columns = max(2, len(draws))
    return figure("overoptimisation", "Gold score over the distance from the start", draws, columns=columns, height=3.4)


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


def by_reward(curves: Sequence[Curve]) -> str:
    """A panel a reward model: gold as lines, the proxy dashed, the fits of gold thin."""

    def panel(reward: str, own: Sequence[Curve], hidden: int) -> Draw:
        return lambda axes: _both(axes, reward, own, hidden)

    draws = [panel(*group) for group in grouped(curves)]
    return figure("overoptimisation_by_reward", "Gold and proxy by reward model", draws, columns=3, height=2.7)


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
