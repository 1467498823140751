"""The first prompts of the evaluation with every candidate's answer."""

from __future__ import annotations

from typing import Any

from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.section import Section


def build(life: Life) -> dict[str, Any]:
    """Of the main evaluation; side by side where they fit."""
    return {"main": life.evaluations[0] if life.evaluations else None}


SECTION = Section("samples", "Samples", build, "samples")
