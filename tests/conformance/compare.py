"""Are two numbers, lists, tables or tensors the same? Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any


def differences(found: Any, expected: Any, tolerance: float, place: str = "") -> list[str]:
    """Where `found` (numbers, lists, tables or tensors) isn't `expected`; None in `expected` is not looked at."""
    found = found.tolist() if hasattr(found, "tolist") else found
    expected = expected.tolist() if hasattr(expected, "tolist") else expected
    if expected is None:
        return []
    if isinstance(expected, dict):
        missing = [f"{place}.{name}: missing" for name in expected if name not in found]
        both = [name for name in expected if name in found]
        return missing + [d for n in both for d in differences(found[n], expected[n], tolerance, f"{place}.{n}")]
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return [f"{place}: {found} instead of {expected}"]
        pairs = enumerate(zip(found, expected, strict=True))
        return [d for i, (f, e) in pairs for d in differences(f, e, tolerance, f"{place}[{i}]")]
    # A NaN is never near: written so that its comparison fails.
    near = isinstance(found, int | float) and abs(found - expected) <= tolerance
    return [] if near else [f"{place}: {found} instead of {expected}"]


def agree(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Raise AssertionError where `found` isn't `expected`."""
    wrong = differences(found, expected, tolerance)
    assert not wrong, "\n".join(wrong)


def joined(rows: Iterable[Iterable[Any]]) -> list[Any]:
    """Rows one after the other."""
    return list(chain.from_iterable(rows))
