"""Steps by family: a stage of tomorrow is in its section without a change of the report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptlife.pipelines.report.life import Life, stages_of
from gptlife.pipelines.report.record import read


def rename(half, name: str, like: str, **changes) -> None:
    """A step `name` whose stage is like another one's, but has a name and a title of its own."""
    half.branch(name, like)
    planned = half.steps[name]
    half.steps[name] = replace(planned, stage=replace(planned.stage, name=name, **changes))


def test_the_first_of_a_family_is_called_like_its_stage(half):
    half.branch("plain", "ppo")
    records = [read(half.steps[name]) for name in ("plain", "sft", "ppo", "rloo")]
    life = Life("toy", records)
    assert [record.name for record in life.of("online")] == ["ppo", "rloo", "plain"]
    assert life.lead("chat").name == "sft"
    assert life.lead("preference") is None


def test_what_a_recipe_lacks_is_named_by_a_stage_that_makes_it():
    assert "no step ppo; give it a table <code>ppo:</code>" in Life("toy", []).missing("online")
    assert stages_of("preference")[0].name == "dpo"


def test_a_new_online_algorithm_is_in_the_online_section(half, reader, online_log):
    rename(half, "grpo", "ppo", title="GRPO")
    half.done("grpo", {"steps": 20}, online_log(lambda i: 0.1 * i, None))
    text = reader(half.page(("tokenizer", "pretrain", "sft", "grpo"))).text
    assert "GRPO moved the score from 0.090 to 2.010 in 20 steps." in text
    assert "First update (step 1): ratio 1.0" in text
    half.done("ppo", {}, online_log(lambda i: 0.2 * i, None))
    text = reader(half.page((*half.names, "grpo"))).text
    assert "grpo GRPO sft reward_model 0.02 – 20 1.90 2.010" in text


def test_a_new_preference_algorithm_has_a_table_of_its_own(half, reader):
    rename(half, "kto", "dpo", title="KTO")
    half.done("kto", {"pairs": 1234, "steps": 77})
    text = reader(half.page((*half.names, "dpo", "kto"))).text
    assert "KTO Learned from" in text
    assert "kto sft 1,234 77" in text


def test_a_new_algorithm_is_a_candidate_by_its_title(half, reader, evaluation):
    rename(half, "grpo", "ppo", title="GRPO")
    half.branch("evaluation", "evaluation", ours="grpo")
    found = evaluation(models={"sft": {}, "ours": {}}, honesty={}, tax={}, use_cases={}, samples=[])
    found["win_rates"] = [{"a": "ours", "b": "sft", "rate": 0.75, "low": 0.7, "high": 0.8, "n": 40}]
    half.done("evaluation", found)
    text = reader(half.page((*half.names[:-1], "grpo", "evaluation"))).text
    assert "GRPO preferred to SFT in 75.0 % [70.0, 80.0] of 40 unseen prompts" in text


@pytest.mark.parametrize(("n", "title"), [(16, "best of 16"), (None, "best of 4")])
def test_the_n_of_best_of_n_is_its_own(half, n, title):
    half.done("best_of_n", {} if n is None else {"answer_n": n})
    assert read(half.steps["best_of_n"]).title == title  # the config's is 4
