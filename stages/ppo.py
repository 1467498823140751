"""Stage `ppo`: PPO and PPO-ptx against a reward model or a function.

One step (Ziegler et al. 2019; Ouyang et al. 2022, sections 3.5 and C.4):

    sample    one answer a prompt from the policy, temperature 1
    score     reward model at the last token; -penalty where the answer never ended
    shape     reward_t = -kl_coef (log pi - log ref)_t, plus the score at the last token; GAE; whiten the advantages
    update    minibatches: clipped policy loss, clipped value loss, and ptx_coef times the language-model loss on
              pretraining text (PPO-ptx), the two gradients accumulated into one step

The value network is a model of its own, initialised from the reward model (an ensemble's first member). With
`reward_function` the value network starts from the policy's trunk with a zero head. What it shares with `rloo`, and
what is left out, stands in `online.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from gptlife.data.config import Share, Was
from gptlife.stages.rl.config import OnlineConfig, train
from gptlife.stages.runtime.stage import Metrics, Stage


class PPOConfig(OnlineConfig):
    """Fine-tune a policy by PPO."""

    value_learning_rate: NonNegativeFloat = 9e-6
    """Value network. [InstructGPT C.4]"""
    critic_warmup_steps: NonNegativeInt = 0
    """First steps in which only the value network learns."""
    gamma: Annotated[Share, Was("discount")] = 1.0
    """GAE's γ. [InstructGPT: no discount]"""
    lam: Share = 0.95
    """GAE's λ. [Ziegler et al. 2019 code]"""
    clip_range: PositiveFloat = 0.2
    """Ratio beyond which the policy loss is flat. [InstructGPT C.4]"""
    value_clip_range: PositiveFloat = 0.2
    """Change of a value beyond which the value loss is not reduced, in units of the score."""
    whiten_advantages: bool = True
    """Mean 0, variance 1 over the step's tokens. [lm-human-preferences]"""
    whiten_rewards: bool = False
    """Variance 1 without moving the mean. [lm-human-preferences; off in Huang et al. 2024]"""


def run(config: PPOConfig, output: Path, *, policy: Path, reward: Path | None = None) -> Metrics:
    """Fine-tune and save policy, `ema/` and `value/`; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.ppo_step import PPO

    return train(PPO(config), output, policy, reward)


STAGE = Stage(
    "ppo",
    PPOConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    title="PPO",
    family="online",
    about=(
        "A policy trained by PPO against a reward. `ema/` holds its averaged weights and `value/` the value "
        "network; both load in the same way."
    ),
)

if __name__ == "__main__":
    STAGE.main()
