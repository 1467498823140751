"""A user's Python function as a judge: loading, identity, and the check of its results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.config import sha256_of_file
from gptlife.data.errors import UserError
from gptlife.reward.judges.functions import checked, identity_of_function, load_function

PROMPTS = [{"messages": [{"role": "user", "content": "Hi"}]}, {"messages": [{"role": "user", "content": "Ho"}]}]


def returning(*results: Any) -> Any:
    return checked(lambda prompts, answers: results, "mine.py:f")(PROMPTS, ["a", "abc"])


def test_numbers_become_scores() -> None:
    assert returning(1, 2.5) == [{"score": 1.0}, {"score": 2.5}]


def test_a_dict_may_have_further_keys_and_not_in_every_row() -> None:
    assert returning({"score": 1, "kind": True}, {"score": 0.5}) == [{"score": 1.0, "kind": 1.0}, {"score": 0.5}]


def test_the_function_gets_prompts_and_answers() -> None:
    judge = checked(lambda prompts, answers: [len(prompts[0]["messages"]), len(answers[1])], "f")
    assert judge(PROMPTS, ["a", "abc"]) == [{"score": 1.0}, {"score": 3.0}]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([1.0], r"^mine\.py:f: returned 1 results for 2 answers; return one per answer$"),
        (
            [0.0, math.inf],
            r"^mine\.py:f: returned inf as 'score' of the answer 'abc'; return a finite number below 1e",
        ),
        ([0.0, None], r"returned None as 'score' of the answer 'abc'; return a finite number below 1e"),
        (
            [{"score": 0, "x": math.nan}, 0.0],
            r"returned nan as 'x' of the answer 'a'; return a finite number below 1e",
        ),
        ([{"b": 0, "a": 0}, 0.0], r"returned keys \['a', 'b'\] for the answer 'a'; add the key 'score'$"),
    ],
)
def test_results_are_checked(results: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        returning(*results)


def test_scores_whose_squares_fp32_does_not_hold_are_refused() -> None:
    for score in (3e38, -1e15, 10**400):
        with pytest.raises(UserError, match=r"^mine\.py:f: returned -?[0-9.e+]+ as 'score' of the answer 'a'; return"):
            returning(score, 0.0)
    assert returning(1e14, 0.0)[0] == {"score": 1e14}


def test_what_the_function_raises_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(prompts, answers):\n    return [p['mood'] for p in prompts]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^mine: line 2 of mine\.py: KeyError: 'mood'; fix the function$"):
        checked(load_function(f"{path}:f", "x"), "mine")(PROMPTS, ["a", "b"])
    wrong_arity: Any = lambda: []  # noqa: E731
    with pytest.raises(UserError, match=r"^f: TypeError: .*takes 0 positional arguments but 2 were given; fix the"):
        checked(wrong_arity, "f")(PROMPTS, ["a", "b"])


def test_a_function_cannot_change_the_callers_prompts() -> None:
    def clearing(prompts: Any, answers: Any) -> list[float]:
        for prompt in prompts:
            prompt.clear()
        return [0.0] * len(answers)

    checked(clearing, "f")(PROMPTS, ["a", "b"])
    assert [prompt["messages"][0]["content"] for prompt in PROMPTS] == ["Hi", "Ho"]


def test_a_file_and_a_module(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
    assert load_function(f"{path}:double", "x")(4) == 8
    assert load_function("math:sqrt", "x")(9.0) == 3.0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine", r"^ppo\.judge: 'mine' names no function; write package\.module:name"),
        ("nowhere.at_all:f", r"^ppo\.judge: 'nowhere\.at_all:f' can't be loaded \(No module named 'nowhere'\)"),
        ("math:squareroot", r"^ppo\.judge: 'math:squareroot' can't be loaded .*; check the path and the name$"),
        ("math:pi", r"^ppo\.judge: 'math:pi' is 3\.14\d+; name a function \(prompts, answers\) -> scores$"),
        ("missing.py:f", r"^ppo\.judge: 'missing\.py:f' can't be loaded"),
    ],
)
def test_a_function_that_is_not_there(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_function(reference, "ppo.judge")
    assert "\n" not in str(error.value)


def test_a_file_is_identified_by_content(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    for path in (first, second):
        path.write_text("f = g = 1\n", encoding="utf-8")
    identity = identity_of_function(f"{first}:f", sha256_of_file)
    assert identity == identity_of_function(f"{second}:f", sha256_of_file)
    assert str(tmp_path) not in identity
    assert identity != identity_of_function(f"{first}:g", sha256_of_file)
    second.write_text("f = g = 2\n", encoding="utf-8")
    assert identity != identity_of_function(f"{second}:f", sha256_of_file)
    assert identity_of_function("package.module:f", sha256_of_file) == "package.module:f"


def test_a_plan_refuses_a_function_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def judge(prompts, answers): ...\n", encoding="utf-8")
    for reference, message in (
        ("gone.py:f", "gone.py: no such file; give path/file.py:name"),
        (str(path), f"'{path}' names no function; write package.module:name or path/file.py:name"),
        (f"{path}:jugde", f"{path}: has no function 'jugde'; check the name"),
    ):
        with pytest.raises(UserError) as error:
            identity_of_function(reference, sha256_of_file)
        assert str(error.value) == message
    assert identity_of_function(f"{path}:judge", sha256_of_file).endswith(":judge")
    path.write_text("from elsewhere import *\n", encoding="utf-8")
    assert identity_of_function(f"{path}:jugde", sha256_of_file).endswith(":jugde")


@pytest.mark.parametrize("returned", [None, 0.5, "scores", {"score": 1.0}])
def test_what_is_no_list_of_results(returned: Any) -> None:
    judge = checked(lambda prompts, answers: returned, "mine.py:f")
    with pytest.raises(UserError, match=r"^mine\.py:f: returned .*; return a list with a number per answer"):
        judge(PROMPTS, ["a", "abc"])
