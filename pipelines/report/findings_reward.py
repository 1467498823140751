"""What the report says of the reward models: one row each, the labelers beside them, ensembles, the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptlife.pipelines.report.findings import Table, is_number
from gptlife.pipelines.report.record import Record

PAPER = {
    "agreement": {"training": "72.6 ± 1.5", "heldout": "77.3 ± 1.3"},
    "accuracy": {"training": "72.4 ± 0.4", "heldout": "69.6 ± 0.9"},
}
"""InstructGPT's numbers in percent, by labeler group (Ouyang et al. 2022, section 3.4): 6B reward model."""

_RULES = ("mean", "mean_std", "worst")


def groups(comparisons: Table, reward: Table) -> list[Table]:
    """A row a labeler group: the labelers' agreement, the ceiling that perfect knowledge has, the model's accuracy."""
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
    """Accuracy on the quarters of the pairs, from the least confident to the most; nothing where not measured."""
    return metrics.get(f"{part}_by_confidence") or []


def learning_curve(records: Sequence[Record]) -> list[Table]:
    """Accuracy on held-out pairs over the number of rankings: a line for the models that differ in nothing else.

    Alone standing models (another base, an ensemble) are lines of one point. Nothing where all have equally many.
    """
    lines: dict[str, Table] = {}
    for record in records:
        rankings, accuracy = record.metrics.get("rankings"), record.metrics.get("validation_accuracy")
        if is_number(rankings) and is_number(accuracy):
            line = lines.setdefault(_but_for_rankings(record), {"names": [], "points": []})
            line["names"].append(record.name)
            line["points"].append((rankings, accuracy))
    found = [{"name": ", ".join(line["names"]), "points": sorted(line["points"])} for line in lines.values()]
    return found if len({point[0] for line in found for point in line["points"]}) > 1 else []


def _but_for_rankings(record: Record) -> str:
    config = record.step.config
    fields = {} if config is None else config.model_dump(mode="json", exclude={"rankings"})
    return repr((sorted(fields.items()), sorted((name, up.address) for name, up in record.step.inputs.items())))


def levels(comparisons: Table, reward: Table) -> dict[str, float]:
    """What a learning curve stands between: always choosing the longer answer, and the mean of the groups' ceilings."""
    ceilings = [value for key, value in comparisons.items() if key.startswith("ceiling_") and is_number(value)]
    longer = reward.get("longer_baseline")
    found = {"ceiling": sum(ceilings) / len(ceilings)} if ceilings else {}
    return {**found, **({"always the longer": longer} if is_number(longer) else {})}
