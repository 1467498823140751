"""The judge that a config names, and its name in reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.judge import describe, load_judge
from gptlife.reward.judges.verdicts import scores_of

PROMPTS = [{"messages": [{"role": "user", "content": "Hi"}]}]
LLM = {"endpoint": "http://localhost:8000/v1", "model": "m"}


def config(**raw: Any) -> JudgeConfig:
    return decode(JudgeConfig, raw, "judge")


def test_a_function_judges(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def length(prompts, answers):\n    return [len(answer) for answer in answers]\n", encoding="utf-8")
    judge = load_judge(config(function=f"{path}:length"), "ppo.judge")
    assert scores_of(judge(PROMPTS * 2, ["a", "abc"])) == [1.0, 3.0]


def test_the_village_judge_needs_village_prompts() -> None:
    with pytest.raises(UserError, match=r"^judge\.village: a prompt has no `meta`, so it is not of the Village"):
        load_judge(config(village=True))(PROMPTS, ["a"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"llm": LLM}, r"^ppo\.judge\.llm: a language model compares two answers and gives no scores; name another"),
        ({"reward_model": True}, r"^ppo\.judge\.reward_model: this field takes no reward model; name another judge$"),
        ({"function": "nowhere.at_all:f"}, r"^ppo\.judge: 'nowhere\.at_all:f' can't be loaded"),
    ],
)
def test_what_gives_no_scores_by_itself_is_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_judge(config(**raw), "ppo.judge")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"village": True}, "the Village's gold judge"),
        ({"llm": LLM}, "the language model m"),
        ({"function": "mine.py:score"}, "mine.py:score"),
        ({"reward_model": True}, "the reward model"),
    ],
)
def test_names_in_reports(raw: dict[str, Any], name: str) -> None:
    assert describe(config(**raw)) == name
