"""A vector of vectors.json: made from an oracle, written as JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

TOLERANCE = 1e-5
"""Absolute; fair to float32."""

Vector = dict[str, Any]


def vector(
    name: str,
    function: str,
    source: str,
    inputs: dict[str, Any],
    answer: Callable[..., Any],
    broken: dict[str, str],
    key: str = "result",
) -> Vector:
    """One vector; `answer(wrong)` gives the expected value for "", a known mistake's for its name."""

    def of(wrong: str) -> dict[str, Any]:
        found = answer(wrong)
        return rounded(found if isinstance(found, dict) else {key: found})

    wrongs = {mistake: {"means": means, "value": of(mistake)} for mistake, means in broken.items()}
    return {
        "name": name,
        "detail": name.split("/")[0],
        "function": function,
        "source": source,
        "inputs": inputs,
        "expected": of(""),
        "tolerance": TOLERANCE,
        "broken": wrongs,
    }


def rounded(x: Any) -> Any:
    """Twelve digits: the last ones differ between C libraries."""
    if isinstance(x, dict):
        return {name: rounded(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [rounded(value) for value in x]
    return round(x, 12) if isinstance(x, float) else x


def draw(seed: int, rows: int, columns: int, low: float = -2.0, high: float = 2.0) -> list[list[float]]:
    """A table of numbers with two decimals."""
    rng = random.Random(seed)
    return [[round(low + (high - low) * rng.random(), 2) for _ in range(columns)] for _ in range(rows)]


def without(found: Vector, *names: str) -> Vector:
    """A vector that doesn't ask for some of the results."""
    for values in (found["expected"], *(known["value"] for known in found["broken"].values())):
        for name in names:
            del values[name]
    return found


def text(content: dict[str, Any]) -> str:
    """JSON with one line a field."""

    def block(found: Vector) -> str:
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()) + "\n}"

    head = ",\n".join(f"{json.dumps(key)}: {json.dumps(content[key])}" for key in ("version", "about"))
    return "{\n" + head + ',\n"vectors": [\n' + ",\n".join(map(block, content["vectors"])) + "\n]\n}\n"
