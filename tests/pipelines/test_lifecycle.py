"""The wiring: every input of a stage comes from an earlier step."""

from __future__ import annotations

import importlib

import pytest

from gptlife.pipelines.lifecycle import LIFECYCLE

NAMES = [step.name for step in LIFECYCLE]


def test_the_life_in_order():
    line = ["tokenizer", "pretrain", "sft", "comparisons", "reward_model", "ppo"]
    assert [*line, "best_of_n", "rloo", "dpo", "kto", "evaluation"] == NAMES


@pytest.mark.parametrize("step", LIFECYCLE, ids=NAMES)
def test_every_step_is_wired_to_earlier_ones(step):
    earlier = NAMES[: NAMES.index(step.name)]
    assert set(step.inputs.values()) <= set(earlier)
    assert set(step.stage.inputs) <= set(step.inputs) <= {*step.stage.inputs, *step.stage.optional}


@pytest.mark.parametrize("step", LIFECYCLE, ids=NAMES)
def test_the_module_of_a_step_holds_its_stage(step):
    assert importlib.import_module(step.module).STAGE is step.stage
    assert step.module == f"gptlife.stages.{step.name}"
