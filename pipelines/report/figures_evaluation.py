"""The report's figures of an evaluation: win rates over the baseline as bars, and by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptlife.pipelines.report.figures import BLUE, COLOURS, ORANGE, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*X"


def win_rates(
    groups: Sequence[tuple[int | None, Sequence[Mapping[str, Any]]]], labels: Mapping[str, str], name: str = "win_rates"
) -> str:
    """Bars of how often each is preferred to the baseline, plain and length-controlled, with 95 % intervals.

    Groups (by size) stand apart.
    """
    rows = [row for _, group in groups for row in group]
    gaps = [index for index, (_, group) in enumerate(groups) for _ in group]
    places = [index + 0.45 * gap for index, gap in enumerate(gaps)]

    def draw(axes: Axes) -> None:
        kinds = [
            ("plain", BLUE, rows),
            ("length-controlled", ORANGE, [r.get("length_controlled") or r for r in rows]),
        ]
        for offset, (kind, colour, found) in zip((-0.19, 0.19), kinds, strict=True):
            y = [place + offset for place in places]
            rates = [100 * row["rate"] for row in found]
            below = [max(0.0, 100 * (row["rate"] - row["low"])) for row in found]
            above = [max(0.0, 100 * (row["high"] - row["rate"])) for row in found]
            axes.barh(y, rates, height=0.36, color=colour, alpha=0.8, label=kind, zorder=2)
            axes.errorbar(rates, y, xerr=[below, above], fmt="none", ecolor="black", elinewidth=1, capsize=2, zorder=3)
        axes.axvline(50, color="black", linewidth=0.8, linestyle="--", zorder=4)
        axes.set_yticks(places, [labels.get(row["a"], row["a"]) for row in rows])
        axes.set(xlim=(0, 100), ylim=(places[-1] + 0.6, places[0] - 0.6))
        axes.set_xlabel(f"preferred to {labels.get(rows[0]['b'], rows[0]['b'])}, % of prompts (ties half)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    height = 0.85 + 0.34 * (places[-1] + 1)
    return figure(name, "Win rates with 95 % intervals", [draw], columns=1, height=height, left=2.05)


def by_size(lines: Sequence[Mapping[str, Any]], baseline: str, name: str = "sizes") -> str:
    """Figure 1 of Ouyang et al. 2022: win rate over the baseline by parameters, a line a kind of answerer."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import EngFormatter, NullFormatter, NullLocator

        axes.axhline(50, color="black", linewidth=0.8, linestyle="--", zorder=1)
        axes.set_xscale("log")
        # Side by side: intervals of one size would hide each other.
        nudges = [1.012 ** (index - (len(lines) - 1) / 2) for index in range(len(lines))]
        for index, (line, nudge) in enumerate(zip(lines, nudges, strict=True)):
            points = line["points"]
            x, y = [point["parameters"] * nudge for point in points], [100 * point["rate"] for point in points]
            errors = [[100 * (p["rate"] - p["low"]) for p in points], [100 * (p["high"] - p["rate"]) for p in points]]
            axes.errorbar(
                x,
                y,
                yerr=[[max(0.0, error) for error in side] for side in errors],
                color=COLOURS[index % len(COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                linestyle="-" if index < len(COLOURS) else "--",
                capsize=2,
                elinewidth=0.9,
                label=line["name"],
            )
        sizes = sorted({point["parameters"] for line in lines for point in line["points"]})
        apart = [size for i, size in enumerate(sizes) if i == 0 or size > 1.1 * sizes[i - 1]]
        text = EngFormatter(places=1, sep=" ")
        axes.set_xticks(apart, [text(size) for size in apart])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="parameters (logarithmic)", ylabel=f"preferred to {baseline}, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return figure(name, f"Win rate over {baseline} by model size", [draw], columns=1, height=4.0, right=2.2)
