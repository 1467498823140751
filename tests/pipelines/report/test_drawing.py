"""Figures as SVG: long logs, low values, what is left out."""

from __future__ import annotations

import re
from typing import Any

from gptlife.pipelines.report import drawing
from gptlife.pipelines.report.sections import losses


def ticks(svg: str, text: str) -> list[tuple[float, float]]:
    """x, y of every text of a figure that begins so."""
    found = re.findall(rf'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>{re.escape(text)}', svg)
    found += re.findall(rf"<text[^>]*translate\(([\d.]+) ([\d.]+)\)[^>]*>{re.escape(text)}", svg)
    return [(float(x), float(y)) for x, y in found]


def test_long_logs_stay_small_and_keep_their_spikes():
    def log(spike: float) -> list[dict[str, Any]]:
        return [{"step": i, "tokens": i, "loss": spike if i == 7000 else 1.0} for i in range(20000)]

    svg = losses.pretraining(log(9.0))
    assert len(svg) < 150_000
    assert ticks(svg, "8")  # a tick near the spike: the axis reaches it
    assert not ticks(losses.pretraining(log(1.0)), "8")


def test_a_line_leaves_out_what_is_no_number():
    log = [
        {"step": 1, "a": 1},
        {"step": 2, "a": float("nan")},
        {"step": 3},
        {"step": 4, "a": True},
        {"step": 5, "a": 2},
    ]
    assert drawing.line(log, "a", "name") == ("name", [1.0, 5.0], [1.0, 2.0])
