"""What the report says: one sentence for the life, and numbers as the page shows them.

Whatever is missing or no finite number becomes a dash, never `nan`. The sections' findings stand in `findings_*.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

Table = dict[str, Any]


def summary(of: Mapping[str, Table], logs: Mapping[str, list[Table]], labels: Mapping[str, str]) -> str:
    """The life in one sentence: the strongest thing that its numbers say so far.

    `of` and `logs` have the first step of every stage, `labels` the answerers; the first online run is `ppo`.
    """
    evaluation = of.get("evaluation", {})
    if row := _strongest(evaluation.get("win_rates") or []):
        judged = f", judged by {evaluation['judge']}" if evaluation.get("judge") else ""
        a, b = (labels.get(row[side], row[side]) for side in ("a", "b"))
        rate, prompts = f"{pct(row['rate'])} {span(row, 100)}", count(row.get("n"))
        return f"{a} preferred to {b} in {rate} of {prompts} unseen prompts{judged}."
    if (rows := logs.get("ppo", [])) and "score" in rows[0]:
        first, last, name = rows[0], rows[-1], of.get("ppo", {}).get("algorithm") or labels.get("ppo", "PPO")
        return f"{name} moved the score from {num(first['score'])} to {num(last.get('score'))} in {last['step']} steps."
    reward, sft, pretrain = (of.get(key, {}) for key in ("reward_model", "sft", "pretrain"))
    if "validation_accuracy" in reward:
        return f"The reward model is right on {pct(reward['validation_accuracy'])} of held-out pairs; no policy yet."
    if "validation_loss" in sft:
        before = num(sft.get("validation_loss_before"))
        return f"SFT brought the validation loss from {before} to {num(sft['validation_loss'])} nats a token."
    if "validation_loss" in pretrain:
        return f"Pretrained to a validation loss of {num(pretrain['validation_loss'])} nats a token; not aligned yet."
    return "No model of this life is finished yet."


def _strongest(rows: Sequence[Table]) -> Table | None:
    """The win rate that says most: aligned over fine-tuned, over base, fine-tuned over base; else the last one."""
    for pair in (("ppo", "sft"), ("ppo", "base"), ("sft", "base_prompted"), ("sft", "base")):
        for row in rows:
            if (row["a"], row["b"]) == pair:
                return row
    return rows[-1] if rows else None


def spread(rows: Sequence[Table], n: int) -> list[Table]:
    """At most `n` of the rows, evenly spaced, first and last among them."""
    if len(rows) <= n:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (n - 1))] for index in range(n)]


def num(value: Any, digits: int = 3) -> str:
    """A number with a fixed count of decimals and a real minus sign; a dash for what is no finite number."""
    if not is_number(value):
        return "–"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before zero


def pct(value: Any, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{num(100 * value, digits)}\N{NO-BREAK SPACE}%" if is_number(value) else "–"


def far(value: Any) -> str:
    """A number of an extrapolation, which may lie beyond all that means anything."""
    return num(value, 2) if not is_number(value) or abs(value) < 1000 else "far"


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
