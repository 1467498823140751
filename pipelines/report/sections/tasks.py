"""Tasks of an evaluation that no other section knows: their metrics as plain tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report.evaluations import Evaluation
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.section import Section

_SHOWN_ELSEWHERE = ("models", "further", "honesty", "tax", "use_cases", "judging")


def build(life: Life) -> dict[str, Any] | None:
    """Every such table of every evaluation; None where there is none."""
    tables = [table for evaluation in life.evaluations for table in plain_tables(evaluation)]
    return {"tables": tables} if tables else None


def plain_tables(evaluation: Evaluation) -> list[Table]:
    """A table per task: the metrics of each candidate, of tables candidate -> metric -> number or estimate."""
    tables = []
    for task, of in {**evaluation.metrics, **(evaluation.metrics.get("tasks") or {})}.items():
        if task not in _SHOWN_ELSEWHERE and (rows := _rows(of, evaluation)):
            names = list(dict.fromkeys(metric for row in rows.values() for metric in row))
            tables.append({"evaluation": evaluation.name, "task": task, "names": names, "rows": rows})
    return tables


def _rows(of: Any, evaluation: Evaluation) -> dict[str, Mapping[str, Any]]:
    """Label -> metrics; empty for what is not a table of candidates."""
    if not isinstance(of, Mapping):
        return {}
    return {
        each.label: of[name] for name, each in evaluation.who.items() if of.get(name) and isinstance(of[name], Mapping)
    }


SECTION = Section("tasks", "Other tasks", build, "tasks")
