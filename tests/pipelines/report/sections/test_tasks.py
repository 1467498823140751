"""A task of tomorrow has a plain table, wherever the evaluation puts its metrics."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("place", ["top", "tasks"])
def test_an_unknown_task_is_a_plain_table(half, reader, evaluation, place):
    task = {"sft": {"passed": {"mean": 0.25, "low": 0.125, "high": 0.5}, "tries": 3}, "ppo": {"passed": {"mean": 0.75}}}
    half.done("evaluation", evaluation(**({"code_golf": task} if place == "top" else {"tasks": {"code_golf": task}})))
    page = half.page()
    assert (
        "code golf , in evaluation model passed tries SFT 0.250 [0.125, 0.500] 3.000 PPO 0.750 –" in reader(page).text
    )
    assert 'href="#tasks"' in page


def test_without_one_there_is_no_section(half, evaluation):
    half.done("evaluation", evaluation(tokens=12, broken={"who": {"a": 1}}))
    assert 'id="tasks"' not in half.page()
