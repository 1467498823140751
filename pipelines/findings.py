"""What the report says beyond what it shows: one sentence for the life, health of PPO, over-optimisation, comparisons.

Pure functions from metrics and log rows to plain values; `num` and its kin write numbers as the page shows them.
Whatever is missing or no finite number becomes a dash, never `nan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

Table = dict[str, Any]

LABELS = {"base": "base", "base_prompted": "base, prompted", "sft": "SFT", "ppo": "PPO"}
"""Evaluation's models, in reading order."""

PAPER = {
    "agreement": {"training": "72.6 ± 1.5", "heldout": "77.3 ± 1.3"},
    "accuracy": {"training": "72.4 ± 0.4", "heldout": "69.6 ± 0.9"},
    "win_rates": {("ppo", "base"): "85 ± 3", ("ppo", "base_prompted"): "71 ± 4"},
}
"""InstructGPT's numbers in percent (Ouyang et al. 2022, sections 3.4 and 4.1): 6B reward model, 175B policies."""

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


def summary(of: Mapping[str, Table], logs: Mapping[str, list[Table]], labels: Mapping[str, str]) -> str:
    """The life in one sentence: the strongest thing that its numbers say so far."""
    evaluation = of.get("evaluation", {})
    for a, b in (("ppo", "sft"), ("ppo", "base"), ("sft", "base_prompted"), ("sft", "base")):
        for row in evaluation.get("win_rates") or []:
            if (row["a"], row["b"]) == (a, b):
                judged = f", judged by {evaluation['judge']}" if evaluation.get("judge") else ""
                return (
                    f"{labels[a]} preferred to {labels[b]} in {pct(row['rate'])} {span(row, 100)} of "
                    f"{count(row.get('n'))} unseen prompts{judged}."
                )
    if (rows := logs.get("ppo", [])) and "score" in rows[0]:
        first, last = rows[0], rows[-1]
        return f"PPO moved the score from {num(first['score'])} to {num(last.get('score'))} in {last['step']} steps."
    reward, sft, pretrain = (of.get(key, {}) for key in ("reward_model", "sft", "pretrain"))
    if "validation_accuracy" in reward:
        return f"The reward model is right on {pct(reward['validation_accuracy'])} of held-out pairs; no policy yet."
    if "validation_loss" in sft:
        before = num(sft.get("validation_loss_before"))
        return f"SFT brought the validation loss from {before} to {num(sft['validation_loss'])} nats a token."
    if "validation_loss" in pretrain:
        return f"Pretrained to a validation loss of {num(pretrain['validation_loss'])} nats a token; not aligned yet."
    return "No model of this life is finished yet."


def without_mirrors(rows: Sequence[Table]) -> list[Table]:
    """Win rates without those whose reverse stands before them."""
    kept: dict[tuple[str, str], Table] = {}
    for row in rows:
        if (row["b"], row["a"]) not in kept:
            kept[row["a"], row["b"]] = row
    return list(kept.values())


def groups(comparisons: Table, reward: Table) -> list[Table]:
    """A row a labeler group: the labelers' agreement, the ceiling that perfect knowledge has, the model's accuracy."""
    prefixes = {"agreement": "agreement_", "ceiling": "ceiling_", "accuracy": "validation_accuracy_"}
    tables = {"agreement": comparisons, "ceiling": comparisons, "accuracy": reward}
    names = {key[len(prefixes[kind]) :] for kind in prefixes for key in tables[kind] if key.startswith(prefixes[kind])}
    return [
        {"name": name, **{kind: tables[kind].get(prefixes[kind] + name) for kind in prefixes}}
        for name in sorted(names, key=lambda name: (name != "training", name))
    ]


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


def spread(rows: Sequence[Table], n: int) -> list[Table]:
    """At most `n` of the rows, evenly spaced, first and last among them."""
    if len(rows) <= n:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (n - 1))] for index in range(n)]


def tax(evaluation: Table) -> Table:
    """Models, tasks and values of the alignment tax; `base` is what differences are taken to."""
    models = {key: value for key, value in (evaluation.get("tax") or {}).items() if value}
    tasks = sorted({task for value in models.values() for task in value.get("few_shot") or {}})
    columns = {
        key: {
            "loss": value.get("validation_loss"),
            "tasks": value.get("few_shot") or {},
            "mean": _mean([(value.get("few_shot") or {}).get(task) for task in tasks]),
        }
        for key, value in models.items()
    }
    return {"models": columns, "tasks": tasks, "base": columns.get("base", {})}


def _mean(values: Sequence[Any]) -> float | None:
    return sum(values) / len(values) if values and all(is_number(value) for value in values) else None


def num(value: Any, digits: int = 3) -> str:
    """A number with a fixed count of decimals and a real minus sign; a dash for what is no finite number."""
    if not is_number(value):
        return "–"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before zero


def pct(value: Any, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{num(100 * value, digits)}\N{NO-BREAK SPACE}%" if is_number(value) else "–"


def count(value: Any) -> str:
    """A whole number with thousands separated."""
    return num(value, 0)


def span(estimate: Any, scale: float = 1, digits: int | None = None) -> str:
    """`[low, high]` of an estimate; nothing where it has none."""
    low, high = ((estimate or {}).get(key) for key in ("low", "high"))
    if not (is_number(low) and is_number(high)):
        return ""
    places = digits if digits is not None else 1 if scale == 100 else 3
    return f"[{num(scale * low, places)}, {num(scale * high, places)}]"


def change(value: Any, base: Any, scale: float = 1, digits: int = 3) -> str:
    """value - base with its sign; nothing where either is missing."""
    if not (is_number(value) and is_number(base)):
        return ""
    difference = scale * (value - base)
    return ("+" if difference > 0 else "") + num(difference, digits)


def duration(seconds: Any) -> str:
    """Seconds as a person reads them."""
    if not is_number(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
