"""Judges and labelers from configs, their refusals, and what enters an address."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.config import decode, sha256_of_file
from gptlife.data.errors import UserError
from gptlife.reward.judges.judge import JudgeConfig, PanelConfig, load_function, load_judge, load_panel

PROMPTS = [{"messages": [{"role": "user", "content": "Hi"}]}, {"messages": [{"role": "user", "content": "Ho"}]}]
CODE = """\
import math

def length(prompts, answers):
    return [len(answer) for answer in answers]

def short(prompts, answers):
    return [1.0]

def broken(prompts, answers):
    return [0.0, math.inf]

def longest_first(prompt, answers, rng):
    order = sorted(answers, key=len, reverse=True)
    return [1 + order.index(answer) for answer in answers]
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def judge(function: str) -> Any:
    return load_judge(decode(JudgeConfig, {"function": function}, "judge"), "ppo.judge")


def test_a_function_judges(code: Path) -> None:
    assert judge(f"{code}:length")(PROMPTS, ["a", "abc"]) == [1.0, 3.0]


def test_a_module_judges() -> None:
    assert load_function("math:sqrt", "x")(9.0) == 3.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"short: gave 1 scores for 2 answers; give one score an answer$"),
        ("broken", r"broken: gave inf for the answer 'abc'; scores must be finite$"),
    ],
)
def test_results_are_checked(name: str, message: str, code: Path) -> None:
    with pytest.raises(UserError, match=message):
        judge(f"{code}:{name}")(PROMPTS, ["a", "abc"])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine", r"^ppo\.judge: 'mine' names no function; write package\.module:name"),
        ("nowhere.at_all:f", r"^ppo\.judge: 'nowhere\.at_all:f' can't be loaded \(No module named 'nowhere'\)"),
        ("math:squareroot", r"^ppo\.judge: 'math:squareroot' can't be loaded .*; check the path and the name$"),
        ("missing.py:f", r"^ppo\.judge: 'missing\.py:f' can't be loaded"),
    ],
)
def test_a_function_that_is_not_there(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        judge(reference)
    assert "\n" not in str(error.value)


LLM = {"endpoint": "http://localhost:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    "raw",
    [{}, {"village": True, "reward_model": True}, {"village": True, "function": "a:b"}, {"village": True, "llm": LLM}],
)
def test_exactly_one_judge(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^judge: name exactly one judge"):
        decode(JudgeConfig, raw, "judge")


def test_an_llm_gives_no_scores() -> None:
    config = decode(JudgeConfig, {"llm": LLM}, "judge")
    with pytest.raises(UserError, match=r"^ppo\.judge\.llm: an LLM compares two answers and gives no scores; name"):
        load_judge(config, "ppo.judge")


@pytest.mark.parametrize("raw", [{}, {"village": "training", "function": "a:b"}])
def test_exactly_one_panel(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^labelers: name exactly one panel"):
        decode(PanelConfig, raw, "labelers")


def test_a_panel_of_one(code: Path) -> None:
    (labeler,) = load_panel(decode(PanelConfig, {"function": f"{code}:longest_first"}, "x"))
    assert labeler.group == "function"
    assert labeler.rank(PROMPTS[0], ["a", "abc", "ab"], random.Random(0)) == [3, 1, 2]


def test_village_panels_are_two_groups_of_people() -> None:
    groups = {}
    for group in ("training", "heldout"):
        panel = load_panel(decode(PanelConfig, {"village": group}, "x"))
        assert len(panel) > 1
        assert {labeler.group for labeler in panel} == {group}
        groups[group] = {labeler.name for labeler in panel}
    assert not groups["training"] & groups["heldout"]


def test_the_village_judge_needs_village_prompts() -> None:
    village = load_judge(decode(JudgeConfig, {"village": True}, "x"))
    with pytest.raises(UserError, match=r"^judge\.village: a prompt has no `meta`, so it is not of the Village"):
        village(PROMPTS, ["a", "b"])


def test_a_file_enters_the_address_by_content(code: Path, tmp_path: Path) -> None:
    def identity(path: Path) -> Any:
        return decode(JudgeConfig, {"function": f"{path}:length"}, "x").identity(sha256_of_file)

    other = tmp_path / "elsewhere" / "other.py"
    other.parent.mkdir()
    other.write_text(CODE, encoding="utf-8")
    assert identity(other) == identity(code)
    assert str(tmp_path) not in str(identity(code))
    other.write_text(CODE + "\n# changed\n", encoding="utf-8")
    assert identity(other) != identity(code)
    with pytest.raises(UserError, match=r"^gone\.py: no such file; give path/file\.py:name$"):
        decode(JudgeConfig, {"function": "gone.py:f"}, "x").identity(sha256_of_file)
