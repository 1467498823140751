"""The wiring: every input of a stage comes from an earlier step."""

from __future__ import annotations

import importlib

import pytest

from gptlife.data.errors import UserError
from gptlife.pipelines import planner, recipe
from gptlife.pipelines.lifecycle import LIFECYCLE, MAKING, step, with_candidates
from gptlife.pipelines.store import Store
from gptlife.stages import evaluation
from gptlife.stages.runtime.stage import Stage, StageConfig

NAMES = [step.name for step in LIFECYCLE]


def test_the_life_in_order():
    line = ["tokenizer", "pretrain", "sft", "comparisons", "reward_model", "ppo"]
    assert [*line, "rloo", "grpo", "cispo", "dpo", "kto", "best_of_n", "evaluation"] == NAMES


@pytest.mark.parametrize("step", LIFECYCLE, ids=NAMES)
def test_every_step_is_wired_to_earlier_ones(step):
    earlier = NAMES[: NAMES.index(step.name)]
    assert set(step.inputs.values()) <= set(earlier)
    assert set(step.stage.inputs) <= set(step.inputs)
    assert all(step.stage.takes(name) for name in step.inputs)


@pytest.mark.parametrize("step", LIFECYCLE, ids=NAMES)
def test_the_module_of_a_step_holds_its_stage(step):
    assert importlib.import_module(step.module).STAGE is step.stage
    assert step.module == f"gptlife.stages.{step.name}"


def test_evaluation_reads_every_step_that_answers_in_the_order_of_the_life():
    assert LIFECYCLE[-1].inputs == {
        "base": "pretrain", "sft": "sft", "ppo": "ppo", "rloo": "rloo", "grpo": "grpo", "cispo": "cispo",
        "dpo": "dpo", "kto": "kto", "best_of_n": "best_of_n",
        "reward": "reward_model",
    }  # fmt: skip


@pytest.mark.parametrize(("family", "reads"), [("online", True), ("rankings", False)])
def test_a_new_algorithm_is_one_line(family, reads):
    def run(config, output, *, policy):
        return {}

    new = step(Stage("grpo", StageConfig, run, inputs=("policy",), family=family), policy="sft")
    wired = with_candidates(evaluation.STAGE, (*MAKING, new), reward="reward_model")
    assert (wired.inputs.get("grpo") == "grpo") is reads
    assert ("grpo" in wired.droppable) is reads


@pytest.fixture
def inputs_of_evaluation(tmp_path):
    def planned(*overrides):
        steps = planner.plan(recipe.load("smoke", overrides, LIFECYCLE), Store(tmp_path / "store"))
        return {step.name: [*step.inputs] for step in steps}["evaluation"]

    return planned


def test_what_the_lifecycle_wires_to_an_open_stage_goes_with_its_step(inputs_of_evaluation):
    assert inputs_of_evaluation() == ["base", "sft", "ppo", "best_of_n", "reward"]
    assert inputs_of_evaluation("ppo=null") == ["base", "sft", "best_of_n", "reward"]
    assert inputs_of_evaluation("reward_model=null", "ppo=null", "best_of_n=null") == ["base", "sft"]


@pytest.mark.parametrize("name", ["ppo", "other"])
def test_what_a_recipe_wires_must_be_there(inputs_of_evaluation, name):
    with pytest.raises(UserError) as error:
        inputs_of_evaluation("ppo=null", f"evaluation.inputs={{{name}: ppo}}")
    assert str(error.value).startswith(f"smoke.yaml: evaluation reads ppo (as '{name}'), but the recipe has no table")
    # The stage itself can do without `reward`, even when a recipe wires it.
    wired = inputs_of_evaluation("reward_model=null", "ppo=null", "best_of_n=null", "evaluation.inputs={reward: ppo}")
    assert "reward" not in wired


def test_a_required_input_of_an_open_stage_is_not_dropped(tmp_path):
    with pytest.raises(UserError, match="best_of_n reads reward_model"):
        planner.plan(recipe.load("smoke", ["reward_model=null", "ppo=null"], LIFECYCLE), Store(tmp_path / "store"))


def test_a_stage_of_the_running_script_can_not_be_started():
    def run(config, output):
        return {}

    run.__module__ = "__main__"
    with pytest.raises(UserError, match=r"^step 'mine': its stage is defined in the script that is running"):
        step(Stage("mine", StageConfig, run))
