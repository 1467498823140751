"""Every evaluation of a life as the report's page shows it: names, tables and what its figures need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptlife.pipelines.report import findings_evaluation as found_of
from gptlife.pipelines.report import findings_tax
from gptlife.pipelines.report.findings_evaluation import Answerer
from gptlife.pipelines.report.record import Record, Table, of_stage

_SIDE_BY_SIDE = 5
"""Answerers whose answers stand beside each other; more stand below one another."""


@dataclass(frozen=True)
class View:
    """One evaluation."""

    name: str
    metrics: Table
    who: dict[str, Answerer]
    baseline: str | None
    groups: list[tuple[int | None, list[Table]]]
    """Win rates over the baseline, size by size."""
    sizes: list[Table]
    """Lines of win rate by parameters; nothing where all have one size."""
    paper: list[Table]
    """Win rates that InstructGPT has as well."""
    matrix: list[tuple[str, list[Table | None]]]
    """A row an answerer: its win rate over each."""
    honesty: list[Table]
    honesty_gain: Table | None
    manners: Table
    tax: Table
    given_back: list[Table]
    judging: list[tuple[str, Any]]

    @property
    def labels(self) -> dict[str, str]:
        """By name."""
        return {name: each.label for name, each in self.who.items()}

    @property
    def side_by_side(self) -> bool:
        """Whether the answers fit beside each other."""
        return len(self.who) <= _SIDE_BY_SIDE

    def has(self, key: str) -> bool:
        """Whether a value of the models (`score`, `reward`, `parameters`) is there for any of them."""
        return any((model or {}).get(key) is not None for model in (self.metrics.get("models") or {}).values())


def views(records: Sequence[Record]) -> list[View]:
    """A view an evaluation that says anything, the main one first."""
    by_name = {record.name: record for record in records}
    return [_view(record, by_name) for record in of_stage(records, "evaluation") if record.metrics]


def _view(record: Record, by_name: Mapping[str, Record]) -> View:
    metrics = record.metrics
    models = metrics.get("models") or {}
    sources = {name: by_name[up.name] for name, up in record.step.inputs.items() if up.name in by_name}
    who = found_of.answerers(models, {name: _made_by(source) for name, source in sources.items()})
    rows = metrics.get("win_rates") or []
    baseline = found_of.baseline(record.field("baseline"), who)
    honesty = metrics.get("honesty") or {}
    scores = {name: (model.get("score") or {}).get("mean") for name, model in models.items()}
    return View(
        name=record.name,
        metrics=metrics,
        who=who,
        baseline=baseline,
        groups=found_of.against(rows, who, baseline),
        sizes=found_of.curves_by_size(rows, who, baseline) if rows and found_of.sized(who) else [],
        paper=found_of.paper_pairs(rows, who),
        matrix=[(who[a].label, [found_of.rate(rows, a, b) if a != b else None for b in who]) for a in who],
        honesty=found_of.honesty(honesty, who),
        honesty_gain=found_of.honesty_gain(honesty, who),
        manners=found_of.manners(metrics, who),
        tax=findings_tax.tax(metrics, who),
        given_back=findings_tax.given_back(metrics, who, _policies(who, sources), scores),
        judging=found_of.judging(metrics["judging"]) if metrics.get("judging") else [],
    )


def _made_by(source: Record) -> str | None:
    """What made an answerer, where its step tells."""
    if source.stage == "best_of_n":
        return f"best of {source.metrics.get('answer_n') or source.field('answer_n') or 'n'}"
    if source.step.adopted is not None:
        return None
    told = source.metrics.get("algorithm")
    return str(told) if told else {"sft": "SFT", "ppo": "PPO", "rloo": "RLOO", "dpo": "DPO"}.get(source.stage)


def _policies(who: Mapping[str, Answerer], sources: Mapping[str, Record]) -> dict[str, str]:
    """The answerer that each run began from, where it answers too."""
    names = {source.name: name for name, source in sources.items() if name in who}
    began = {name: sources[name].upstream("policy") for name in who if name in sources}
    return {name: names[policy] for name, policy in began.items() if policy in names}
