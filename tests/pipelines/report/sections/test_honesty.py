"""Honesty in a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from gptlife.pipelines.report.sections import honesty


def test_honesty_in_a_sentence(who):
    def table(informative: float, hallucination: float) -> dict[str, Any]:
        return {"truthful_informative": {"mean": informative}, "hallucination": {"mean": hallucination}}

    found = honesty.honesty_gain({"base": table(0.2, 0.4), "ppo": table(0.5, 0.1)}, who(base=9, ppo=9))
    assert found is not None
    assert found["times"] == pytest.approx(2.5)
    nothing = honesty.honesty_gain({"base": table(0.0, 0.4), "ppo": table(0.5, 0.1)}, who(base=9, ppo=9))
    assert nothing is not None
    assert nothing["times"] is None  # no multiple of nothing
