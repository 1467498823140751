"""The verdict in a language model's reply."""

from __future__ import annotations

import pytest

from gptlife.reward.judges.llm_prompt import verdict_of


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: 1", "1"),
        ("Both fine.\n\n**Verdict:** 2\n\n", "2"),
        ("Verdict: 1\nNo, wait.\nverdict: TIE.", "tie"),
        ("## Final verdict: Answer 2", "2"),
        ("2", "2"),
        ("The first says 'Verdict: 1'.", None),
        ("Verdict: 1\nI hope that helps!", None),
        ("Verdict: 12", None),
        ("Verdict: 1 / Verdict: 2 / Verdict: tie", None),
        ("", None),
    ],
)
def test_the_verdict_is_the_last_line(reply: str, verdict: str | None) -> None:
    assert verdict_of(reply) == verdict
