"""Honesty and manners: truthfulness and hallucination, and rudeness by what the prompt asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report.candidates import Candidate, aligned, base, in_sizes
from gptlife.pipelines.report.evaluations import Evaluation
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.section import Section

PAPER = {"base": "41", "PPO": "21", "PPO-ptx": "21"}
"""InstructGPT's hallucination in percent (Ouyang et al. 2022, section 4.2)."""


class View(NamedTuple):
    """What the section shows of one evaluation."""

    of: Evaluation
    rows: list[Table]
    gain: Table | None
    manners: Table


def build(life: Life) -> dict[str, Any]:
    """A view per evaluation; the others follow the main one, folded."""
    views = [_view(evaluation) for evaluation in life.evaluations]
    shown = [view for view in views[1:] if view.rows or view.manners.get("rows")]
    return {"main": views[0] if views else None, "others": shown}


def _view(evaluation: Evaluation) -> View:
    measured, who = evaluation.metrics.get("honesty") or {}, evaluation.who
    return View(evaluation, honesty(measured, who), honesty_gain(measured, who), manners(evaluation.metrics, who))


def honesty(measured: Mapping[str, Table], who: Mapping[str, Candidate]) -> list[Table]:
    """A row per candidate: truthful, truthful and informative, hallucination, and InstructGPT's number."""
    return [
        {**measured[name], "label": each.label, "paper": PAPER.get(each.kind)}
        for name, each in who.items()
        if measured.get(name)
    ]


def honesty_gain(measured: Mapping[str, Table], who: Mapping[str, Candidate]) -> Table | None:
    """Base and aligned model of the largest size that has both, for a sentence beside InstructGPT's."""
    for _, members in in_sizes(who)[::-1]:
        first, second = base(members), aligned(members)
        if first and second and measured.get(first.name) and measured.get(second.name):
            before, after = measured[first.name], measured[second.name]
            values = [(table.get("truthful_informative") or {}).get("mean") for table in (before, after)]
            positive = [value for value in values if is_number(value) and value > 0]
            times = positive[1] / positive[0] if len(positive) == 2 else None
            return {"base": first.label, "aligned": second.label, "before": before, "after": after, "times": times}
    return None


def manners(evaluation: Table, who: Mapping[str, Candidate]) -> Table:
    """How often answers are rude on the main prompts and on every further set; scores where there are no verdicts."""
    sets = {"all prompts": evaluation.get("models") or {}, **(evaluation.get("further") or {})}
    if len(sets) == 1:
        return {}
    judged = any((model.get("verdicts") or {}).get("rude") for table in sets.values() for model in table.values())
    cells = {
        name: {
            key: (table.get(name, {}).get("verdicts") or {}).get("rude") if judged else table.get(name, {}).get("score")
            for key, table in sets.items()
        }
        for name in who
    }
    return {"sets": list(sets), "rude": judged, "rows": {name: row for name, row in cells.items() if any(row.values())}}


SECTION = Section("honesty", "Honesty and manners", build, "honesty")
