"""Numbers as the report writes them."""

from __future__ import annotations

import pytest

from gptlife.pipelines.report import numbers


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.num(-1234.5678), "−1,234.568"),
        (numbers.num(-0.0001), "0.000"),
        (numbers.num(float("nan")), "–"),
        (numbers.num(None), "–"),
        (numbers.num(True), "–"),
        (numbers.pct(0.7125), "71.2\u00a0%"),
        (numbers.count(3002155), "3,002,155"),
        (numbers.span({"low": 0.67, "high": 0.751}, 100), "[67.0, 75.1]"),
        (numbers.span({"low": -0.5}), ""),
        (numbers.change(2.3, 2.0), "+0.300"),
        (numbers.change(0.45, 0.5, 100, 1), "−5.0"),
        (numbers.change(1.0, None), ""),
        (numbers.far(-2.504), "−2.50"),
        (numbers.far(1000), "far"),
        (numbers.far(None), "–"),
        (numbers.duration(119.94), "119.9 s"),
        (numbers.duration(125), "2 min"),
        (numbers.duration(7199), "2 h 00 min"),
        (numbers.duration(3 * 3600 + 5 * 60), "3 h 05 min"),
        (numbers.duration(None), "–"),
    ],
)
def test_numbers_as_written(written, expected):
    assert written == expected
