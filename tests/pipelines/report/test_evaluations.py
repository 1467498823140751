"""Win rates read either way round."""

from __future__ import annotations

from typing import Any

import pytest

from gptlife.pipelines.report.evaluations import win_rate


def rate(a: str, b: str, value: float) -> dict[str, Any]:
    return {"a": a, "b": b, "rate": value, "low": value - 0.1, "high": value + 0.05, "wins": 7, "ties": 1, "losses": 2}


def test_a_win_rate_is_read_either_way_round():
    rows = [{**rate("ppo", "sft", 0.7), "length_controlled": {"rate": 0.6, "low": 0.5, "high": 0.8}}]
    assert win_rate(rows, "ppo", "sft") == rows[0]
    turned = win_rate(rows, "sft", "ppo")
    assert turned is not None
    assert [turned[key] for key in ("rate", "low", "high")] == pytest.approx([0.3, 0.25, 0.4])
    assert (turned["wins"], turned["ties"], turned["losses"]) == (2, 1, 7)
    assert turned["length_controlled"] == pytest.approx({"rate": 0.4, "low": 0.2, "high": 0.5})
    assert win_rate(rows, "ppo", "base") is None
