"""Cost: time, tokens and memory, by step and by stage; the machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.record import Record
from gptlife.pipelines.report.section import Section

FOLD = 12
"""Steps from which on a table of all of them is folded."""


def build(life: Life) -> dict[str, Any]:
    """All steps; by stage as well where they are many."""
    return {
        "records": life.records,
        "fold": len(life.records) > FOLD,
        "costs": by_stage(life.records),
        "total_seconds": _sum(life.records, "seconds"),
        "total_tokens": _sum(life.records, "tokens"),
        "machines": sorted({_machine(record.manifest) for record in life.records} - {""}),
        "moved": [record.name for record in life.records if len(record.manifest.get("machines", [])) > 1],
        "inexact": [record.name for record in life.records if record.manifest.get("same_bits") is False],
    }


def by_stage(records: Sequence[Record]) -> list[Table]:
    """Steps, time and tokens of each stage."""
    stages: dict[str, list[Record]] = {}
    for record in records:
        stages.setdefault(record.stage, []).append(record)
    return [
        {"stage": stage, "steps": len(of), "seconds": _sum(of, "seconds"), "tokens": _sum(of, "tokens")}
        for stage, of in stages.items()
    ]


def _machine(manifest: Table) -> str:
    host, platform = manifest.get("host"), manifest.get("platform")
    return f"{host} ({platform})" if host and platform else host or ""


def _sum(records: Sequence[Record], key: str) -> float:
    return sum(record.manifest.get(key) or 0 for record in records)


SECTION = Section("cost", "Cost", build, "cost")
