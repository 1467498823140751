"""The main run that learned from its own answers: its curves, its health, over-optimisation along the way, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report import drawing
from gptlife.pipelines.report.drawing import Draw, Log, curves, line
from gptlife.pipelines.report.life import Life, stages_of
from gptlife.pipelines.report.numbers import num, spread
from gptlife.pipelines.report.section import Section

_SAMPLED_STEPS = 6
_HEALTH: tuple[tuple[str, str, str, Callable[[float], bool]], ...] = (
    ("kl", "KL to the reference, nats per answer", "from exactly 0 smoothly up; 2 to 10", lambda x: x > 30 or x < -1),
    ("rlhf_reward", "score less KL cost", "keeps rising", lambda x: False),
    ("approx_kl", "approximate KL of an update", "below 0.05", lambda x: x > 0.1),
    ("clipfrac", "share of clipped tokens", "a few percent", lambda x: x > 0.3),
    ("ratio_mean", "probability ratio", "about 1", lambda x: abs(x - 1) > 0.5),
    ("var_explained", "value: explained variance", "rises above 0.5", lambda x: x < 0),
    ("entropy", "entropy, nats per token", "declines slowly", lambda x: False),
    ("eos_rate", "share of answers that end", "goes to 1", lambda x: False),
    ("length", "answer length, tokens", "steady", lambda x: False),
    ("ptx_loss", "pretraining loss, nats per token", "flat", lambda x: False),
)
"""(metric, name, healthy, alarm); the ranges are those of Ziegler et al. 2019, Huang et al. 2024 and their code."""


def build(life: Life) -> dict[str, Any]:
    """The first run of the family; its algorithm names the section."""
    main = life.lead("online")
    log = main.log if main else []
    title = main.title if main else stages_of("online")[0].title
    return {
        "link": title,
        "title": f"{title}: {main.name}" if main and len(life.of("online")) > 1 else title,
        "stage": main.step.stage.title if main else title,
        "figure_of_run": run(main.name, log) if main and log else "",
        "first": next((row for row in log if "first_ratio" in row), None),
        "first_kl": next((row.get("kl") for row in log if row.get("step") == 1), None),
        "over_optimised": over_optimised(log),
        "health": health(log),
        "sampled": spread([row for row in log if row.get("samples")], _SAMPLED_STEPS),
    }


def health(log: Sequence[Table]) -> list[Table]:
    """First and last value of every health metric, and whether the last one is alarming."""
    rows = []
    for key, name, healthy, alarm in _HEALTH:
        values = [row[key] for row in log if is_number(row.get(key))]
        if values:
            last = values[-1]
            rows.append({"name": name, "healthy": healthy, "first": values[0], "last": last, "alarm": alarm(last)})
    return rows


def over_optimised(log: Sequence[Table]) -> str | None:
    """A sentence where the reward model's score rises while the gold judge's falls (Gao et al. 2022), else None.

    The run is cut into fifths. From the fifth with the best gold to the last one, both means must have moved by more
    than two standard errors of their difference.
    """
    rows = [row for row in log if is_number(row.get("score")) and is_number(row.get("gold"))]
    if len(rows) < 10:
        return None
    size = len(rows) / 5
    fifths = [rows[round(index * size) : round((index + 1) * size)] for index in range(5)]
    best = max(fifths, key=lambda rows: _mean_error(rows, "gold")[0])
    (score_a, score_a_error), (score_b, score_b_error) = (_mean_error(part, "score") for part in (best, fifths[-1]))
    (gold_a, gold_a_error), (gold_b, gold_b_error) = (_mean_error(part, "gold") for part in (best, fifths[-1]))
    rose = score_b - score_a > 2 * math.hypot(score_a_error, score_b_error)
    fell = gold_a - gold_b > 2 * math.hypot(gold_a_error, gold_b_error)
    if not (rose and fell):
        return None
    return (
        f"Over-optimised: from steps {best[0]['step']} to {best[-1]['step']} to the last fifth of the run the score "
        f"rose from {num(score_a)} to {num(score_b)}, while the gold judge's fell from {num(gold_a)} to {num(gold_b)}."
    )


def _mean_error(rows: Sequence[Table], key: str) -> tuple[float, float]:
    values = [float(row[key]) for row in rows]
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def run(name: str, log: Log) -> str:
    """Twelve panels over steps; the gold judge's score is below the reward model's."""

    def panel(title: str, *keys: str, guide: float | None = None, why: str = "not logged", least: float = -1e9) -> Draw:
        names = [(key, _NAMES.get(key, key)) for key in keys]
        return curves(title, [line(log, key, text) for key, text in names], guide=guide, why=why, least=least)

    panels = [
        panel("score, as trained on", "score", "rlhf_reward"),
        panel("KL to the reference, nats per answer", "kl", "kl_k3", guide=0.0),
        panel("answer length, tokens", "length"),
        panel("gold judge's score", "gold", why=f"no judge watched\n({name}.judge)"),
        panel("entropy, nats per token", "entropy"),
        panel("share of answers that end", "eos_rate", guide=1.0),
        panel("approximate KL of an update", "approx_kl", guide=0.0),
        panel("share of clipped tokens", "clipfrac", guide=0.0),
        panel("probability ratio new / old", "ratio_mean", "first_ratio", guide=1.0),
        panel("value: explained variance", "var_explained", guide=0.0, least=-1.0),
        panel("pretraining loss, nats per token", "ptx_loss", why=f"no pretraining mix\n({name}.pretraining)"),
        panel("distinct words and word pairs", "distinct_1", "distinct_2"),
    ]
    return drawing.figure("online", f"{name} over its steps, in twelve panels", panels)


_NAMES = {
    "score": "score",
    "rlhf_reward": "score less KL cost",
    "kl": "k1",
    "kl_k3": "k3",
    "ratio_mean": "mean",
    "first_ratio": "first minibatch",
    "distinct_1": "words",
    "distinct_2": "pairs",
}

SECTION = Section("online", "Online", build, "online")
