"""Lineage: every step's address, inputs, seed, versions, commit and config."""

from __future__ import annotations

from typing import Any

from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.section import Section


def build(life: Life) -> dict[str, Any]:
    """All steps, folded."""
    return {"records": life.records}


SECTION = Section("lineage", "Lineage", build, "lineage")
