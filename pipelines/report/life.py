"""A life as the report's sections read it: its records by family, and its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from markupsafe import Markup

from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.report.evaluations import Evaluation, evaluations
from gptlife.pipelines.report.record import Record, begun
from gptlife.stages.runtime.stage import Family, Stage


class Life:
    """The records of one plan; `name` is the recipe's."""

    def __init__(self, name: str, records: Sequence[Record]) -> None:
        self.name, self.records = name, records

    def of(self, *families: Family) -> list[Record]:
        """The records of these families in the plan's order, those that are called like their stage first."""
        members = [record for record in self.records if record.family in families]
        return sorted(members, key=lambda record: record.name != record.stage)

    def begun(self, *families: Family) -> list[Record]:
        """Those of them that have something to show."""
        return begun(self.of(*families))

    def lead(self, family: Family) -> Record | None:
        """The record that a section shows whole: the first of a family."""
        return next(iter(self.of(family)), None)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every evaluation that measured something, the main one first."""
        return evaluations(self.of("evaluation"), self.records)

    @property
    def due(self) -> list[Record]:
        """Evaluations that were not begun, though all that they read is done."""
        ready = [r for r in self.of("evaluation") if all(up.state == "done" for up in r.step.inputs.values())]
        return [record for record in ready if record.state == "to do"]

    def missing(self, family: Family) -> str:
        """Why a section has nothing to show, and what would change that."""
        lead = self.lead(family)
        if lead is None:
            [stage, *_] = stages_of(family)
            return Markup("The recipe has no step {0}; give it a table <code>{0}:</code>.").format(stage.name)
        if lead.step.adopted is not None:
            return f"The model was adopted ({lead.step.adopted}), so it has no training log here."
        text = Markup("The step {} is {}; <code>gptlife run {}</code> makes this.")
        return text.format(lead.name, lead.progress, self.name)


def stages_of(*families: Family) -> list[Stage]:
    """The stages of these families that gptlife ships, as examples of what a recipe may add."""
    return [step.stage for step in LIFECYCLE if step.stage.family in families]
