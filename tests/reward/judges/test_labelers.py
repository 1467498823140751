"""Labelers: the Village's people and a user's function."""

from __future__ import annotations

import random
from pathlib import Path

from gptlife.data.config import decode
from gptlife.reward.judges.config import PanelConfig
from gptlife.reward.judges.labelers import load_panel

CODE = """\
def longest_first(prompt, answers, rng):
    order = sorted(answers, key=len, reverse=True)
    return [1 + order.index(answer) for answer in answers]
"""


def test_a_function_is_a_panel_of_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    (labeler,) = load_panel(decode(PanelConfig, {"function": f"{path}:longest_first"}, "x"))
    assert labeler.group == "function"
    assert labeler.rank({"messages": []}, ["a", "abc", "ab"], random.Random(0)) == [3, 1, 2]


def test_village_panels_are_two_groups_of_people() -> None:
    groups = {}
    for group in ("training", "heldout"):
        panel = load_panel(decode(PanelConfig, {"village": group}, "x"))
        assert len(panel) > 1
        assert {labeler.group for labeler in panel} == {group}
        groups[group] = {labeler.name for labeler in panel}
    assert not groups["training"] & groups["heldout"]
