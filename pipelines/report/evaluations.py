"""An evaluation as several sections of the report read it: its metrics, its candidates and their win rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report.candidates import Candidate, Maker, candidates
from gptlife.pipelines.report.record import Record

_SIDE_BY_SIDE = 5
"""Candidates whose answers fit beside each other; more are shown one below another."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that has metrics."""

    record: Record
    sources: Mapping[str, Record]
    """What made each input, by the input's name."""

    @property
    def name(self) -> str:
        """The step's name in the recipe."""
        return self.record.name

    @property
    def metrics(self) -> Table:
        """What the stage measured."""
        return self.record.metrics

    @property
    def models(self) -> dict[str, Table]:
        """What it measured of each candidate."""
        return self.metrics.get("models") or {}

    @cached_property
    def who(self) -> dict[str, Candidate]:
        """Its candidates by name."""
        return candidates(self.models, {name: maker_of(source) for name, source in self.sources.items()})

    @property
    def labels(self) -> dict[str, str]:
        """Their labels by name."""
        return {name: each.label for name, each in self.who.items()}

    @property
    def baseline(self) -> str | None:
        """The candidate that the others are compared with: the config's, or else the first one."""
        wanted, names = self.record.field("baseline"), list(self.who)
        return wanted if wanted in names else names[0] if names else None

    @property
    def side_by_side(self) -> bool:
        """Whether the answers fit beside each other."""
        return len(self.who) <= _SIDE_BY_SIDE

    def has(self, key: str) -> bool:
        """Whether any candidate has this value (`score`, `reward`, `parameters`)."""
        return any((model or {}).get(key) is not None for model in self.models.values())


def maker_of(record: Record) -> Maker:
    """What a step makes of the models that come out of it."""
    return Maker(record.title, record.stage, record.family, record.field("pretraining") is not None)


def evaluations(lead: Sequence[Record], records: Sequence[Record]) -> list[Evaluation]:
    """Those of `lead` that measured something, with what made their inputs out of `records`."""
    by_name = {record.name: record for record in records}

    def sources(record: Record) -> dict[str, Record]:
        return {name: by_name[up.name] for name, up in record.step.inputs.items() if up.name in by_name}

    return [Evaluation(record, sources(record)) for record in lead if record.metrics]


def win_rate(rows: Sequence[Table], a: str, b: str) -> Table | None:
    """The win rate of a over b, turned round where only b over a was written."""
    for row in rows:
        if (row["a"], row["b"]) == (a, b):
            return row
    for row in rows:
        if (row["a"], row["b"]) == (b, a):
            return _turned(row)
    return None


def _turned(row: Table) -> Table:
    def flipped(part: Table) -> Table:
        return {"rate": 1 - part["rate"], "low": 1 - part["high"], "high": 1 - part["low"]}

    counts = {"wins": row.get("losses"), "ties": row.get("ties"), "losses": row.get("wins"), "n": row.get("n")}
    controlled = row.get("length_controlled")
    return {
        "a": row["b"],
        "b": row["a"],
        **flipped(row),
        **counts,
        **({"length_controlled": flipped(controlled)} if controlled else {}),
    }
