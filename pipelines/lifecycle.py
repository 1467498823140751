"""The life of a model on one screen: which stage reads which. Stages do not know each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gptlife.data.errors import UserError
from gptlife.stages import (
    best_of_n,
    cispo,
    comparisons,
    dpo,
    evaluation,
    grpo,
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
    droppable: frozenset[str] = frozenset()
    """Inputs that go when the recipe leaves their step out: those that the stage can do without, and what the
    lifecycle wires to an open stage beyond its required inputs. What a recipe wires itself must be there."""


def step(stage: Stage, **inputs: str) -> Step:
    """Wire `stage`: input name = name of the step whose output it reads.

    Raises:
        UserError: when the stage is defined in the script that runs, and so is in no module to start.
    """
    extra = {*inputs} - {*stage.inputs} if stage.open else set()
    module = stage.run.__module__
    if module == "__main__":
        raise UserError(
            f"step '{stage.name}': its stage is defined in the script that is running, so it can't be started; "
            "define it in a module, and import that"
        )
    return Step(stage.name, stage, module, inputs, frozenset({*stage.optional, *extra}))


def with_candidates(stage: Stage, steps: Sequence[Step], **inputs: str) -> Step:
    """`stage` wired to every step whose output can answer, under the step's name (a base model's: `base`)."""
    named = {"base" if each.stage.family == "base" else each.name: each for each in steps}
    answering = {name: each.name for name, each in named.items() if each.stage.family in ANSWERING}
    return step(stage, **answering, **inputs)


ANSWERING = ("base", "chat", "online", "preference", "answers")
"""Families of stages whose outputs an evaluation can ask, or take answers from."""

MAKING = (
    step(tokenizer.STAGE),
    step(pretrain.STAGE, tokenizer="tokenizer"),
    step(sft.STAGE, base="pretrain"),
    step(comparisons.STAGE, policy="sft"),
    step(reward_model.STAGE, base="sft", comparisons="comparisons"),
    step(ppo.STAGE, policy="sft", reward="reward_model"),
    # PPO's rivals on the same reward model or the same rankings
    step(rloo.STAGE, policy="sft", reward="reward_model"),
    step(grpo.STAGE, policy="sft", reward="reward_model"),
    step(cispo.STAGE, policy="sft", reward="reward_model"),
    step(dpo.STAGE, policy="sft", comparisons="comparisons"),
    step(kto.STAGE, policy="sft", comparisons="comparisons"),
    step(best_of_n.STAGE, policy="sft", reward="reward_model"),
)
"""What makes models and answers, in the order of a life."""

LIFECYCLE = (*MAKING, with_candidates(evaluation.STAGE, MAKING, reward="reward_model"))
"""A new algorithm is one line in `MAKING`; evaluation takes it from there."""
