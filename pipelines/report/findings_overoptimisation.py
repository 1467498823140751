"""Over-optimisation (Gao et al. 2022): what the reward model says and what is true, over d = sqrt(KL).

Two ways lead away from the first policy: best of n, whose KL is known, and online runs, whose KL is measured at every
step. Both are recentred to where they begin (n = 1, and the first step's mean). The fits are those of
`reward/statistics/overoptimisation.py`; best-of-n's have errors over prompts, as the stage wrote them. Without a gold
judge there is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptlife.pipelines.report.findings import Table, is_number
from gptlife.pipelines.report.record import Record

Points = list[tuple[float, float]]
_FITTED = 60
"""Points of a drawn fit."""


@dataclass(frozen=True)
class Curve:
    """Gold and proxy of one way of optimising against one reward model; points are (d, gain since the beginning)."""

    name: str
    reward: str
    """The reward model's step."""
    form: str
    """Of the fit: `best_of_n` or `rl`."""
    gold: Points
    proxy: Points
    bands: dict[str, list[tuple[float, float]]]
    """(low, high) of every point of `gold` and `proxy`, where they have intervals."""
    fit: Table
    """`reward.overoptimisation.Fit` of gold as a table; empty where there is none."""
    predicted: Table
    """`PeakPrediction` of gold, likewise."""

    @property
    def reach(self) -> float:
        """The farthest d."""
        return max((d for d, _ in self.gold), default=0.0)

    def fitted(self) -> Points:
        """The fit as a line from 0 to as far as was measured."""
        from gptlife.reward.statistics.overoptimisation import fitted_reward

        if not self.fit:
            return []
        ds = [self.reach * index / _FITTED for index in range(_FITTED + 1)]
        return [(d, fitted_reward(self.fit["form"], self.fit["alpha"], self.fit["beta"], d)) for d in ds]


def curves(best_of_n: Sequence[Record], online: Sequence[Record]) -> list[Curve]:
    """Every curve that a gold judge saw."""
    found = [curve for record in best_of_n for curve in _of_best_of_n(record)]
    return found + [curve for record in online if (curve := _of_run(record)) is not None]


def _of_best_of_n(record: Record) -> list[Curve]:
    found = []
    for name, points in (record.metrics.get("curves") or {}).items():
        if not points or not all("gold" in point for point in points):
            continue
        member, reward = name.partition(".")[2], reward_of(record, name)
        fits = (record.metrics.get("fits") or {}).get(name) or {}
        start = {key: points[0][key]["mean"] for key in ("gold", "proxy")}

        def gains(key: str, points: Any = points, start: Any = start) -> Points:
            return [(point["d"], point[key]["mean"] - start[key]) for point in points]

        bands = {
            key: [(point[key]["low"] - start[key], point[key]["high"] - start[key]) for point in points]
            for key in ("gold", "proxy")
        }
        found.append(
            Curve(
                record.name + (f", member {member} alone" if member else ""),
                reward,
                "best_of_n",
                gains("gold"),
                gains("proxy"),
                bands,
                (fits.get("gold") or {}).get("best_of_n") or {},
                fits.get("predicted") or {},
            )
        )
    return found


def reward_of(record: Record, name: str) -> str:
    """The step of the reward model that an input is from; `.1` stays for an ensemble's first member alone."""
    source, dot, member = name.partition(".")
    return (record.upstream(source) or source) + dot + member


def _of_run(record: Record) -> Curve | None:
    rows = [row for row in record.log if all(is_number(row.get(key)) for key in ("kl", "score", "gold"))]
    if len(rows) < 2:
        return None

    def gains(key: str) -> Points:
        # A KL that is measured below 0 is noise about 0.
        return [(math.sqrt(max(0.0, row["kl"])), row[key] - rows[0][key]) for row in rows]

    gold = gains("gold")
    fit, predicted = fitted(gold)
    reward = record.upstream("reward") or str(record.field("reward_function") or "a function")
    return Curve(record.name, reward, "rl", gold, gains("score"), {}, fit, predicted)


def fitted(points: Points) -> tuple[Table, Table]:
    """Fit and predicted peak of a run's gold gains, by step; empty where they have too few places to say anything."""
    from gptlife.reward.statistics.overoptimisation import fit, predict_peak

    away = [point for point in points if point[0] > 0]
    d, gains = [point[0] for point in away], [point[1] for point in away]
    try:
        return fit(d, gains, "rl")._asdict(), predict_peak(d, gains, "rl")._asdict()
    except ValueError:
        return {}, {}


def by_reward(found: Sequence[Curve], most: int = 4) -> list[tuple[str, list[Curve], int]]:
    """(reward model, its curves, how many were left out): best of n, and the `most` runs that went farthest."""
    groups: dict[str, list[Curve]] = {}
    for curve in found:
        groups.setdefault(curve.reward, []).append(curve)
    kept = []
    for reward, own in groups.items():
        runs = sorted((curve for curve in own if curve.form == "rl"), key=lambda curve: -curve.reach)
        shown = [curve for curve in own if curve.form != "rl" or curve in runs[:most]]
        kept.append((reward, shown, len(own) - len(shown)))
    return kept


def table(found: Sequence[Curve]) -> list[Mapping[str, Any]]:
    """A row a curve: the fit of gold, the peak that the first half predicts, the one found, and where it ends."""
    return [
        {
            "name": curve.name,
            "reward": curve.reward,
            "form": curve.form,
            "fit": curve.fit,
            "predicted": curve.predicted,
            "d": curve.reach,
            "gold": curve.gold[-1][1],
            "proxy": curve.proxy[-1][1],
        }
        for curve in found
    ]
