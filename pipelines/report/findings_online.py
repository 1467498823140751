"""What the report says of PPO and RLOO runs: health, over-optimisation along the way, and all of them side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gptlife.pipelines.report.findings import Table, is_number, num
from gptlife.pipelines.report.record import Record

ONLINE = ("ppo", "rloo")
"""Stages that learn from their own policy's answers."""

_HEALTH: tuple[tuple[str, str, str, Callable[[float], bool]], ...] = (
    ("kl", "KL to the reference, nats an answer", "from exactly 0 smoothly up; 2 to 10", lambda x: x > 30 or x < -1),
    ("rlhf_reward", "score less KL cost", "keeps rising", lambda x: False),
    ("approx_kl", "approximate KL of an update", "below 0.05", lambda x: x > 0.1),
    ("clipfrac", "share of clipped tokens", "a few percent", lambda x: x > 0.3),
    ("ratio_mean", "probability ratio", "about 1", lambda x: abs(x - 1) > 0.5),
    ("var_explained", "value: explained variance", "rises above 0.5", lambda x: x < 0),
    ("entropy", "entropy, nats a token", "declines slowly", lambda x: False),
    ("eos_rate", "share of answers that end", "goes to 1", lambda x: False),
    ("length", "answer length, tokens", "steady", lambda x: False),
    ("ptx_loss", "pretraining loss, nats a token", "flat", lambda x: False),
)
"""(metric, name, healthy, alarm); the ranges are those of Ziegler et al. 2019, Huang et al. 2024 and their code."""


def health(log: Sequence[Table]) -> list[Table]:
    """First and last value of what tells a healthy PPO run, and whether the last one is alarming."""
    found = []
    for key, name, healthy, alarm in _HEALTH:
        values = [row[key] for row in log if is_number(row.get(key))]
        if values:
            last = values[-1]
            found.append({"name": name, "healthy": healthy, "first": values[0], "last": last, "alarm": alarm(last)})
    return found


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


def runs(records: Sequence[Record]) -> list[Table]:
    """A row a run: what it is, what it read, and where it stands after its last step."""
    return [
        {
            "name": record.name,
            "algorithm": record.metrics.get("algorithm") or record.stage.upper(),
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
    """What sets a run apart: not finished, stopped early, over-optimised."""
    stopped = record.latest("stopped_at")
    return [
        *([] if record.state == "done" else [record.standing]),
        *([f"stopped at step {stopped} by its KL"] if stopped is not None else []),
        *(["over-optimised"] if over_optimised(record.log) else []),
    ]
