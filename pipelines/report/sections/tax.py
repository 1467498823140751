"""The alignment tax: what alignment costs in pretraining loss and few-shot tasks, and what a mix gives back.

Differences are to the base model of the same size. A run's tax is its loss above that of the model that it started
from; what another run from the same model gives back is the share of that tax which it does not pay (Ouyang et al.
2022, section 4.2 and E.6: the pretraining mix gives most of it back, a larger KL coefficient does not).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report.candidates import Candidate, sized
from gptlife.pipelines.report.evaluations import Evaluation
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.section import Section


class View(NamedTuple):
    """What the section shows of one evaluation."""

    of: Evaluation
    tax: Table
    given_back: list[Table]
    by_size: bool
    """Whether base models have several sizes, so that differences are to the nearest."""


def build(life: Life) -> dict[str, Any]:
    """A view per evaluation that measured it; the others follow the first, folded."""
    views = [_view(evaluation) for evaluation in life.evaluations]
    return {"views": [view for view in views if view.tax["rows"]], "evaluations": views}


def _view(evaluation: Evaluation) -> View:
    scores = {name: (model.get("score") or {}).get("mean") for name, model in evaluation.models.items()}
    several = bool(evaluation.metrics.get("win_rates")) and sized(evaluation.who)
    back = given_back(evaluation.metrics, evaluation.who, policies(evaluation), scores)
    return View(evaluation, tax(evaluation.metrics, evaluation.who), back, several)


def policies(evaluation: Evaluation) -> dict[str, str]:
    """The candidate that each run started from, where that is a candidate too."""
    sources = {name: source for name, source in evaluation.sources.items() if name in evaluation.who}
    names = {source.name: name for name, source in sources.items()}
    began = {name: source.upstream("policy") for name, source in sources.items()}
    return {name: names[policy] for name, policy in began.items() if policy in names}


def tax(evaluation: Table, who: Mapping[str, Candidate]) -> Table:
    """Tasks, and a row per candidate: loss, tasks, their mean, and `base`, the row that differences are taken to.

    `right` is the mean over tasks of the right choice's loss, nats per token.
    """
    measured = evaluation.get("tax") or {}
    # A prompted base model has its base model's weights: it would be listed twice.
    values = {name: measured[name] for name in who if measured.get(name) and not who[name].prompted}
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
        base = _base_of(name, [other for other in rows if who[other].bare], who)
        row["base"] = dict(rows[base]) if base is not None and base != name else {}
    return {"rows": rows, "tasks": tasks}


def _base_of(name: str, bases: Sequence[str], who: Mapping[str, Candidate]) -> str | None:
    """The base model that is nearest in size; the first one where sizes are unknown."""
    size = who[name].parameters

    def distance(base: str) -> float:
        other = who[base].parameters
        return abs(math.log(other / size)) if other and size else 0.0

    return min(bases, key=distance, default=None)


def given_back(
    evaluation: Table, who: Mapping[str, Candidate], policies: Mapping[str, str], scores: Mapping[str, Any]
) -> list[Table]:
    """For every policy that a run without a pretraining mix started from: its tax, and what its siblings give back.

    `policies` has the candidate that a run started from, by the run's name; `scores` are the judge's means. The others
    are compared with the first online run without a mix, preferably of a stage that also has a run with it.
    `share` is None for a run that pays no tax.
    """
    values = {name: (value or {}).get("validation_loss") for name, value in (evaluation.get("tax") or {}).items()}
    losses = {name: float(loss) for name, loss in values.items() if is_number(loss)}
    groups = []
    for policy in dict.fromkeys(policies.values()):
        runs = [name for name in policies if policies[name] == policy and name in losses]
        plain = _plain([who[name] for name in runs])
        if plain is None or len(runs) < 2 or policy not in losses:
            continue
        whole = losses[plain] - losses[policy]
        rows = [
            {
                "label": who[name].label,
                "loss": losses[name],
                "tax": losses[name] - losses[policy],
                "share": (losses[plain] - losses[name]) / whole if whole > 0 and name != plain else None,
                "score": scores.get(name),
            }
            for name in runs
        ]
        groups.append({"policy": who[policy].label, "plain": who[plain].label, "whole": whole, "rows": rows})
    return groups


def _plain(runs: Sequence[Candidate]) -> str | None:
    """The run that pays the tax which the others are to give back."""
    mixed = {each.maker.stage for each in runs if each.maker.mixed}
    plain = [each for each in runs if each.maker.family == "online" and not each.maker.mixed]
    return next((each.name for each in (*(p for p in plain if p.maker.stage in mixed), *plain)), None)


def _mean(values: Sequence[Any]) -> float | None:
    return sum(values) / len(values) if values and all(is_number(value) for value in values) else None


SECTION = Section("tax", "Alignment tax", build, "tax")
