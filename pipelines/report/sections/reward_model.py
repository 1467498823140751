"""Comparisons and reward models: what was ranked, labelers beside the model, one row per model, the learning curve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report import drawing
from gptlife.pipelines.report.drawing import BLUE, COLOURS, GREY, Log, curves, line
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.record import Record
from gptlife.pipelines.report.section import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = {
    "agreement": {"training": "72.6 ± 1.5", "heldout": "77.3 ± 1.3"},
    "accuracy": {"training": "72.4 ± 0.4", "heldout": "69.6 ± 0.9"},
}
"""InstructGPT's numbers in percent, by labeler group (Ouyang et al. 2022, section 3.4): 6B reward model."""

_RULES = ("mean", "mean_std", "worst")


def build(life: Life) -> dict[str, Any]:
    """The first of each family whole, and every one in a table."""
    rankings, main = life.lead("rankings"), life.lead("reward")
    comparisons, reward = (record.metrics if record else {} for record in (rankings, main))
    models = life.begun("reward")
    members = [ensemble(record.metrics) for record in models]
    lines = learning_curve(models)
    return {
        "comparisons": comparisons,
        "rankings": life.of("rankings"),
        "paper": PAPER,
        "groups": groups(comparisons, reward),
        "reward": reward,
        "figure_of_main": training(main.log, reward.get("calibration") or {}) if main and main.log else "",
        "figure_of_curve": draw_learning_curve(lines, levels(comparisons, reward)) if lines else "",
        "models": list(zip(models, members, map(quarters, (record.metrics for record in models)), strict=True)),
        "ensembles": any(members),
    }


def groups(comparisons: Table, reward: Table) -> list[Table]:
    """One row per labeler group: the labelers' agreement, a perfectly informed judge's, the model's accuracy."""
    prefixes = {"agreement": "agreement_", "ceiling": "ceiling_", "accuracy": "validation_accuracy_"}
    tables = {"agreement": comparisons, "ceiling": comparisons, "accuracy": reward}
    names = {key[len(prefixes[kind]) :] for kind in prefixes for key in tables[kind] if key.startswith(prefixes[kind])}
    return [
        {"name": name, **{kind: tables[kind].get(prefixes[kind] + name) for kind in prefixes}}
        for name in sorted(names, key=lambda name: (name != "training", name))
    ]


def ensemble(metrics: Table, part: str = "validation") -> Table | None:
    """Members' accuracies, the rules', and where the members disagree; None for a single model."""
    members = metrics.get(f"{part}_member_accuracies")
    if not members:
        return None
    return {
        "members": members,
        "rules": {rule: metrics.get(f"{part}_{rule}_accuracy") for rule in _RULES},
        "disagreement": metrics.get(f"{part}_disagreement"),
        "by_disagreement": metrics.get(f"{part}_by_disagreement") or [],
    }


def quarters(metrics: Table, part: str = "validation") -> list[Any]:
    """Accuracy on the quarters of the pairs, from the least confident to the most; empty where not measured."""
    return metrics.get(f"{part}_by_confidence") or []


def learning_curve(records: Sequence[Record]) -> list[Table]:
    """Accuracy on held-out pairs over the number of rankings: a line for the models that differ only in that.

    Other models (another base, an ensemble) are lines of one point. Empty where all have equally many.
    """
    lines: dict[str, Table] = {}
    for record in records:
        rankings, accuracy = record.metrics.get("rankings"), record.metrics.get("validation_accuracy")
        if is_number(rankings) and is_number(accuracy):
            line = lines.setdefault(_but_for_rankings(record), {"names": [], "points": []})
            line["names"].append(record.name)
            line["points"].append((rankings, accuracy))
    lines_drawn = [{"name": ", ".join(line["names"]), "points": sorted(line["points"])} for line in lines.values()]
    return lines_drawn if len({point[0] for line in lines_drawn for point in line["points"]}) > 1 else []


def _but_for_rankings(record: Record) -> str:
    config = record.step.config
    fields = {} if config is None else config.model_dump(mode="json", exclude={"rankings"})
    return repr((sorted(fields.items()), sorted((name, up.address) for name, up in record.step.inputs.items())))


def levels(comparisons: Table, reward: Table) -> dict[str, float]:
    """Levels that bound a learning curve: always choosing the longer answer, and the mean of the groups' ceilings."""
    ceilings = [value for key, value in comparisons.items() if key.startswith("ceiling_") and is_number(value)]
    longer = reward.get("longer_baseline")
    ceiling = {"ceiling": sum(ceilings) / len(ceilings)} if ceilings else {}
    return {**ceiling, **({"always the longer": longer} if is_number(longer) else {})}


def training(log: Log, calibration: Mapping[str, Any]) -> str:
    """Ranking loss and pair accuracy over steps, and the reliability diagram."""
    accuracy = [line(log, "accuracy", "train"), line(log, "validation_accuracy", "validation")]
    panels = [
        curves("ranking loss, nats per pair", [line(log, "loss")], guide=math.log(2)),
        curves("accuracy on pairs", accuracy, guide=0.5),
        lambda axes: _reliability(axes, calibration),
    ]
    return drawing.figure("reward_model", "Reward model: loss, accuracy and calibration", panels, height=2.7)


def draw_learning_curve(lines: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> str:
    """Accuracy on held-out pairs over the rankings trained on, between the levels that bound it."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import NullFormatter, NullLocator

        for (name, level), style in zip(levels.items(), ("--", ":"), strict=False):
            axes.axhline(100 * level, color=GREY, linewidth=1.1, linestyle=style, label=name)
        for each, colour in zip(lines, itertools.cycle(COLOURS), strict=False):
            xs, ys = [point[0] for point in each["points"]], [100 * point[1] for point in each["points"]]
            hollow = {"markersize": 7.0, "markerfacecolor": "none"} if len(xs) == 1 else {"markersize": 4.0}
            axes.plot(xs, ys, color=colour, marker="o", label=fill(each["name"], 42), **hollow)
        axes.set_xscale("log")
        ticks = sorted({point[0] for each in lines for point in each["points"]})
        apart = [tick for i, tick in enumerate(ticks) if i == len(ticks) - 1 or ticks[i + 1] > 1.3 * tick]
        axes.set_xticks(apart, [f"{tick:,}" for tick in apart])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="rankings (logarithmic)", ylabel="right, % of held-out pairs")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return drawing.figure(
        "learning_curve", "Reward models' accuracy over rankings", [draw], columns=1, height=2.9, right=3.6
    )


def _reliability(axes: Axes, calibration: Mapping[str, Any]) -> None:
    """How often the favourite was right over how sure the model was; a point's area is its share of the pairs."""
    points = [
        (confidence, accuracy, count)
        for confidence, accuracy, count in zip(
            *(calibration.get(key, ()) for key in ("confidence", "accuracy", "counts")), strict=True
        )
        if count
    ]
    axes.set_title("calibration")
    if not points:
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    most = max(count for *_, count in points)
    confidence, accuracy = [point[0] for point in points], [point[1] for point in points]
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=0.9, linestyle=":")
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
    axes.scatter(confidence, accuracy, s=[6 + 60 * count / most for *_, count in points], color=BLUE, zorder=3)
    axes.set(xlim=(0.48, 1.02), ylim=(min(0.38, *accuracy) - 0.02, 1.02), xlabel="confidence", ylabel="right")


SECTION = Section("reward", "Comparisons and reward models", build, "reward_model")
