"""The life of a model on one screen: which stage reads which. Stages do not know each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptlife.stages import (
    best_of_n,
    comparisons,
    dpo,
    evaluation,
    kto,
    ppo,
    pretrain,
    reward_model,
    rloo,
    sft,
    tokenizer,
)
from gptlife.stages.runtime.stage import Stage


@dataclass(frozen=True)
class Step:
    """A stage at its place in the chain; `inputs` maps the stage's input names to names of other steps."""

    name: str
    """What the recipe's table is called."""
    stage: Stage
    module: str
    inputs: dict[str, str] = field(default_factory=dict)


def step(stage: Stage, **inputs: str) -> Step:
    """Wire `stage`: input name = name of the step whose output it reads."""
    return Step(stage.name, stage, stage.run.__module__, inputs)


LIFECYCLE = (
    step(tokenizer.STAGE),
    step(pretrain.STAGE, tokenizer="tokenizer"),
    step(sft.STAGE, base="pretrain"),
    step(comparisons.STAGE, policy="sft"),
    step(reward_model.STAGE, base="sft", comparisons="comparisons"),
    step(ppo.STAGE, policy="sft", reward="reward_model"),
    # PPO's rivals on the same reward model or the same rankings
    step(best_of_n.STAGE, policy="sft", reward="reward_model"),
    step(rloo.STAGE, policy="sft", reward="reward_model"),
    step(dpo.STAGE, policy="sft", comparisons="comparisons"),
    step(kto.STAGE, policy="sft", comparisons="comparisons"),
    step(
        evaluation.STAGE,
        base="pretrain",
        sft="sft",
        ppo="ppo",
        rloo="rloo",
        dpo="dpo",
        kto="kto",
        best_of_n="best_of_n",
        reward="reward_model",
    ),
)
