"""All policies: every run that learned online, those that learned from preferences, and best of n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report import drawing
from gptlife.pipelines.report.drawing import COLOURS, Draw, Log, curves, line
from gptlife.pipelines.report.life import Life, stages_of
from gptlife.pipelines.report.record import Record
from gptlife.pipelines.report.section import Section
from gptlife.pipelines.report.sections.online import over_optimised
from gptlife.pipelines.report.sections.overoptimisation import reward_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOGETHER = 6
"""Runs in one panel, at most."""


def build(life: Life) -> dict[str, Any]:
    """A table per family, and the online runs side by side."""
    online, main = life.begun("online"), life.lead("online")
    preference = life.of("preference")
    return {
        "runs": runs(life.of("online")),
        "figure_of_runs": draw_runs([(record.name, record.log) for record in online]) if len(online) > 1 else "",
        "preference": {title: [r for r in preference if r.step.stage.title == title] for title in _titles(preference)},
        "best_of_n": [(record, _curves(record)) for record in life.begun("answers")],
        "main": main.name if main else stages_of("online")[0].name,
        "like": main.stage if main else stages_of("online")[0].name,
        "baselines": [stage.name for stage in stages_of("online", "preference", "answers")][1:],
    }


def _titles(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.step.stage.title for record in records))


def _curves(record: Record) -> list[tuple[str, list[Table]]]:
    """Of each reward model the points for one answer, for the most, and for the n that the answers are of."""
    curves = (record.metrics.get("curves") or {}).items()
    return [
        (
            reward_of(record, name),
            [p for p in points if p["n"] in (points[0]["n"], points[-1]["n"], record.metrics.get("answer_n"))],
        )
        for name, points in curves
    ]


def runs(records: Sequence[Record]) -> list[Table]:
    """One row per run: what it is, what it reads, and its metrics after the last step."""
    return [
        {
            "name": record.name,
            "algorithm": record.title,
            "policy": record.upstream("policy"),
            "reward": record.upstream("reward") or record.field("reward_function"),
            "kl_coef": record.field("kl_coef"),
            "ptx_coef": record.field("ptx_coef") if record.field("pretraining") is not None else None,
            "step": record.log[-1].get("step") if record.log else record.metrics.get("steps"),
            **{key: record.latest(key) for key in ("kl", "score", "gold", "length", "entropy")},
            "note": "; ".join(_notes(record)),
        }
        for record in records
    ]


def _notes(record: Record) -> list[str]:
    """What is special about a run: not finished, stopped early, over-optimised."""
    stopped = record.latest("stopped_at")
    return [
        *([] if record.state == "done" else [record.progress]),
        *([f"stopped at step {stopped} by its KL"] if stopped is not None else []),
        *(["over-optimised"] if over_optimised(record.log) else []),
    ]


def draw_runs(logs: Sequence[tuple[str, Log]]) -> str:
    """Score, gold score and KL of every run over its steps; runs drawn together share a row."""
    size = math.ceil(len(logs) / math.ceil(len(logs) / _TOGETHER))
    draws: list[Draw] = []
    for start in range(0, len(logs), size):
        together = logs[start : start + size]
        draws.append(_names([name for name, _ in together]))
        for key, title, why in (
            ("score", "score, as trained on", "not logged"),
            ("gold", "gold judge's score", "no judge watched"),
            ("kl", "KL, nats per answer", "not logged"),
        ):
            lines = [line(log, key, name) for name, log in together]
            draws.append(curves(title, lines, why=why, legend=False))
    return drawing.figure("runs", "Score, gold score and KL of every online run", draws, columns=4, left=0.5)


def _names(names: Sequence[str]) -> Draw:
    """A panel that is only a legend."""

    def draw(axes: Axes) -> None:
        for name, colour in zip(names, COLOURS, strict=False):
            axes.plot([], [], color=colour, label=name)
        axes.set_axis_off()
        axes.legend(loc="upper left", bbox_to_anchor=(-0.25, 1.1), handlelength=1.2)

    return draw


SECTION = Section("runs", "All runs", build, "policies")
