"""The alignment tax: what alignment costs in pretraining loss and few-shot tasks, and what PPO-ptx gives back of it.

Differences are to the base model of the same size. PPO's tax is its loss above that of the SFT model that it began
from; what another run from the same model gives back is the share of that tax which it does not pay (Ouyang et al.
2022, section 4.2 and E.6: the pretraining mix gives most of it back, a dearer KL does not).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gptlife.pipelines.report.findings import Table, is_number
from gptlife.pipelines.report.findings_evaluation import Answerer


def tax(evaluation: Table, who: Mapping[str, Answerer]) -> Table:
    """Tasks, and a row an answerer: loss, tasks, their mean, and `base`, the row that differences are taken to.

    `right` is the mean over tasks of the right choice's loss, nats a token.
    """
    found = evaluation.get("tax") or {}
    # A prompted base model is its base, and would be there twice.
    values = {name: found[name] for name in who if found.get(name) and not who[name].kind.endswith(", prompted")}
    tasks = sorted({task for value in values.values() for task in value.get("few_shot") or {}})
    rows = {
        name: {
            "label": who[name].label,
            "loss": value.get("validation_loss"),
            "tasks": value.get("few_shot") or {},
            "mean": _mean([(value.get("few_shot") or {}).get(task) for task in tasks]),
            "right": _mean([(value.get("few_shot_loss") or {}).get(task) for task in tasks]),
        }
        for name, value in values.items()
    }
    for name, row in rows.items():
        base = _base_of(name, [other for other in rows if who[other].kind == "base"], who)
        row["base"] = dict(rows[base]) if base is not None and base != name else {}
    return {"rows": rows, "tasks": tasks}


def _base_of(name: str, bases: Sequence[str], who: Mapping[str, Answerer]) -> str | None:
    """The base model that is nearest in size; the first one where sizes are unknown."""
    size = who[name].parameters

    def distance(base: str) -> float:
        other = who[base].parameters
        return abs(math.log(other / size)) if other and size else 0.0

    return min(bases, key=distance, default=None)


def given_back(
    evaluation: Table, who: Mapping[str, Answerer], policies: Mapping[str, str], scores: Mapping[str, Any]
) -> list[Table]:
    """For every policy from which a plain PPO run began: that run's tax, and what its siblings give back of it.

    `policies` has the answerer that a run began from, by the run's name; `scores` are the judge's means. The first
    plain PPO run of a policy is what the others are compared with. `share` is None where it pays no tax.
    """
    told = {name: (value or {}).get("validation_loss") for name, value in (evaluation.get("tax") or {}).items()}
    losses = {name: float(loss) for name, loss in told.items() if is_number(loss)}
    found = []
    for policy in dict.fromkeys(policies.values()):
        runs = [name for name in policies if policies[name] == policy and name in losses]
        plain = next((name for name in runs if who[name].kind == "PPO"), None)
        if plain is None or len(runs) < 2 or policy not in losses:
            continue
        whole = losses[plain] - losses[policy]
        found.append(
            {
                "policy": who[policy].label,
                "plain": who[plain].label,
                "whole": whole,
                "rows": [
                    {
                        "label": who[name].label,
                        "loss": losses[name],
                        "tax": losses[name] - losses[policy],
                        "share": (losses[plain] - losses[name]) / whole if whole > 0 and name != plain else None,
                        "score": scores.get(name),
                    }
                    for name in runs
                ],
            }
        )
    return found


def _mean(values: Sequence[Any]) -> float | None:
    return sum(values) / len(values) if values and all(is_number(value) for value in values) else None
