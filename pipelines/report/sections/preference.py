"""Preference: win rates over the baseline, by size and beside InstructGPT; what the judge says of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report import drawing
from gptlife.pipelines.report.candidates import Candidate, aligned, base, in_sizes, sized
from gptlife.pipelines.report.drawing import BLUE, COLOURS, ORANGE
from gptlife.pipelines.report.evaluations import Evaluation, win_rate
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.section import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = {"base": "85 ± 3", "base, prompted": "71 ± 4"}
"""How often people preferred InstructGPT's 175B policies, in percent (Ouyang et al. 2022, section 4.1)."""
_VERDICTS = ("follows", "true", "rude", "concise")
"""Verdicts that come first; others follow in the evaluation's order."""
_MARKERS = "osD^vP*X"


class View(NamedTuple):
    """What the section shows of one evaluation."""

    of: Evaluation
    groups: list[tuple[int | None, list[Table]]]
    """Win rates over the baseline, size by size."""
    sizes: list[Table]
    """Lines of win rate by parameters; nothing where all have one size."""
    paper: list[Table]
    """Win rates that InstructGPT has as well."""
    matrix: list[tuple[str, list[Table | None]]]
    """A row per candidate: its win rate over each."""
    verdicts: list[str]
    """The verdicts that the judge gave."""
    figure_of_rates: str
    figure_of_sizes: str


def build(life: Life) -> dict[str, Any]:
    """A view per evaluation; the others follow the main one, folded."""
    views = [_view(evaluation) for evaluation in life.evaluations]
    usage = views[0].of.metrics.get("judging") if views else None
    return {"main": views[0] if views else None, "others": views[1:], "judging": judging(usage) if usage else []}


def _view(evaluation: Evaluation) -> View:
    rows, who, baseline = evaluation.metrics.get("win_rates") or [], evaluation.who, evaluation.baseline
    groups = against(rows, who, baseline)
    sizes = curves_by_size(rows, who, baseline) if rows and sized(who) else []
    labels = evaluation.labels
    return View(
        evaluation,
        groups,
        sizes,
        paper_pairs(rows, who),
        [(who[a].label, [win_rate(rows, a, b) if a != b else None for b in who]) for a in who],
        verdicts(evaluation.models),
        draw_win_rates(groups, labels, f"win_rates_{evaluation.name}") if groups else "",
        draw_by_size(sizes, labels[baseline or ""], f"sizes_{evaluation.name}") if sizes else "",
    )


def verdicts(models: Mapping[str, Table]) -> list[str]:
    """The names of all verdicts but the score, which has a column of its own."""
    given = dict.fromkeys(name for model in models.values() for name in model.get("verdicts") or {} if name != "score")
    return [*(name for name in _VERDICTS if name in given), *(name for name in given if name not in _VERDICTS)]


def against(rows: Sequence[Table], who: Mapping[str, Candidate], other: str | None) -> list[tuple[int | None, list]]:
    """Size by size, the win rates of all others over one."""
    groups = []
    for size, members in in_sizes(who):
        over = [row for each in members if other and (row := win_rate(rows, each.name, other)) is not None]
        if over:
            groups.append((size, over))
    return groups


def curves_by_size(rows: Sequence[Table], who: Mapping[str, Candidate], to: str | None) -> list[Table]:
    """Figure 1 of Ouyang et al. 2022: a line per kind of model, its win rate over `to` by parameters.

    A second model of a kind and size (from another round, say) is a line of its own. `to` itself is drawn at one half.
    """
    lines: dict[str, tuple[tuple[int, bool, bool], dict[int, Table]]] = {}
    for each in who.values():
        row = {"rate": 0.5, "low": 0.5, "high": 0.5} if each.name == to else win_rate(rows, each.name, to or "")
        if row is not None and each.parameters is not None and each.size is not None:
            _, points = lines.setdefault(each.kind, (each.rank, {}))
            if each.size in points:
                _, points = lines.setdefault(each.label, (each.rank, {}))
            points[each.size] = {"parameters": each.parameters, **{key: row[key] for key in ("rate", "low", "high")}}
    ordered = sorted(lines.items(), key=lambda item: item[1][0])
    return [{"name": name, "points": [points[size] for size in sorted(points)]} for name, (_, points) in ordered]


def paper_pairs(rows: Sequence[Table], who: Mapping[str, Candidate]) -> list[Table]:
    """Aligned models over base models of their size, with InstructGPT's number; and the smallest over the largest."""
    pairs = []
    for _, members in in_sizes(who):
        better = aligned(members)
        for prompted in (False, True):
            other = base(members, prompted)
            if better and other and (row := win_rate(rows, better.name, other.name)):
                pairs.append({**row, "paper": PAPER["base, prompted" if prompted else "base"] + " (175B)"})
    if sized(who):
        order = sorted((each for each in who.values() if each.size is not None), key=lambda each: each.size or 0)
        small, large = aligned(order), base(order[::-1])
        if small and large and small.size != large.size and (row := win_rate(rows, small.name, large.name)):
            pairs.append({**row, "paper": "preferred (1.3B over 175B)"})
    return pairs


def judging(usage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What an LLM's verdicts took, in words; shares are of the pairs or of the replies."""
    pairs, calls = usage.get("pairs"), usage.get("calls")

    def share(key: str, whole: Any) -> Any:
        return usage[key] / whole if is_number(usage.get(key)) and is_number(whole) and whole else None

    return [
        ("pairs of answers compared", pairs),
        ("ties", share("ties", pairs)),
        ("of them: the verdict changed with the order (position flips)", share("position_flips", pairs)),
        ("of them: equal answers, not asked about", share("identical", pairs)),
        ("replies without a verdict (ties)", share("unparseable", calls)),
        ("replies", calls),
        ("of them from an earlier run", usage.get("cached")),
        ("failed tries before a reply", usage.get("retries")),
        ("tokens read", usage.get("prompt_tokens")),
        ("tokens written", usage.get("completion_tokens")),
    ]


def draw_win_rates(
    groups: Sequence[tuple[int | None, Sequence[Mapping[str, Any]]]], labels: Mapping[str, str], name: str = "win_rates"
) -> str:
    """Bars of how often each is preferred to the baseline, plain and length-controlled, with 95 % intervals.

    Groups (by size) are set apart.
    """
    rows = [row for _, group in groups for row in group]
    gaps = [index for index, (_, group) in enumerate(groups) for _ in group]
    heights = [index + 0.45 * gap for index, gap in enumerate(gaps)]

    def draw(axes: Axes) -> None:
        kinds = [
            ("plain", BLUE, rows),
            ("length-controlled", ORANGE, [r.get("length_controlled") or r for r in rows]),
        ]
        for offset, (kind, colour, shown) in zip((-0.19, 0.19), kinds, strict=True):
            y = [height + offset for height in heights]
            rates = [100 * row["rate"] for row in shown]
            below = [max(0.0, 100 * (row["rate"] - row["low"])) for row in shown]
            above = [max(0.0, 100 * (row["high"] - row["rate"])) for row in shown]
            axes.barh(y, rates, height=0.36, color=colour, alpha=0.8, label=kind, zorder=2)
            axes.errorbar(rates, y, xerr=[below, above], fmt="none", ecolor="black", elinewidth=1, capsize=2, zorder=3)
        axes.axvline(50, color="black", linewidth=0.8, linestyle="--", zorder=4)
        axes.set_yticks(heights, [labels.get(row["a"], row["a"]) for row in rows])
        axes.set(xlim=(0, 100), ylim=(heights[-1] + 0.6, heights[0] - 0.6))
        axes.set_xlabel(f"preferred to {labels.get(rows[0]['b'], rows[0]['b'])}, % of prompts (ties half)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    height = 0.85 + 0.34 * (heights[-1] + 1)
    return drawing.figure(name, "Win rates with 95 % intervals", [draw], columns=1, height=height, left=2.05)


def draw_by_size(lines: Sequence[Mapping[str, Any]], baseline: str, name: str = "sizes") -> str:
    """Figure 1 of Ouyang et al. 2022: win rate over the baseline by parameters, a line per kind of model."""

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

    return drawing.figure(name, f"Win rate over {baseline} by model size", [draw], columns=1, height=4.0, right=2.2)


SECTION = Section("preference", "Preference", build, "preference")
