"""Numbers as the report writes them. What is missing, or is not a finite number, becomes a dash, never `nan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table


def spread(rows: Sequence[Table], n: int) -> list[Table]:
    """At most `n` of the rows, evenly spaced, first and last among them."""
    if len(rows) <= n:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (n - 1))] for index in range(n)]


def num(value: Any, digits: int = 3) -> str:
    """A number with a fixed count of decimals and a real minus sign; a dash for what is not a finite number."""
    if not is_number(value):
        return "–"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before zero


def pct(value: Any, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{num(100 * value, digits)}\N{NO-BREAK SPACE}%" if is_number(value) else "–"


def far(value: Any) -> str:
    """A number of an extrapolation, which may be too large to mean anything."""
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


FILTERS = {each.__name__: each for each in (num, pct, count, span, change, duration, far)}
"""For the templates, by name."""
