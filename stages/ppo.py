"""Stage `ppo`: PPO and PPO-ptx against a reward model or a function.

One step (Ziegler et al. 2019; Ouyang et al. 2022, sections 3.5 and C.4):

    sample    one answer a prompt from the policy, temperature 1
    score     reward model at the last token; -penalty where the answer never ended
    shape     reward_t = -kl_coef (log pi - log ref)_t, plus the score at the last token; GAE; whiten the advantages
    update    minibatches: clipped policy loss, clipped value loss, and ptx_coef times the language-model loss on
              pretraining text (PPO-ptx), the two gradients accumulated into one step

The value network is a model of its own, initialised from the reward model (an ensemble's first member). With
`reward_function` the value network starts from the policy's trunk with a zero head. The loop, which `rloo` and `grpo`
share, and what is left out: `rl/loop.py`.

Legend: B episodes, R response tokens, N the response tokens of a minibatch, without padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from gptlife.data.config import Share, Was
from gptlife.stages.rl.algorithm import Algorithm, Loss
from gptlife.stages.rl.config import OnlineConfig, check_reward
from gptlife.stages.runtime.stage import Metrics, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gptlife.stages.rl.episodes import Experience, Minibatch, Readings, Rollouts


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


class PPO(Algorithm):
    """Tokens are actions, and a value network is their baseline."""

    name, title = "ppo", "PPO"

    def __init__(self, config: PPOConfig) -> None:
        self.config: PPOConfig = config
        self.value_learning_rate = config.value_learning_rate

    def experience(self, readings: Readings, rollouts: Rollouts, kl_coef: float) -> Experience:
        """Rewards per token, GAE's advantages and returns."""
        from gptlife.reward.advantage import gae, whiten
        from gptlife.stages.rl.episodes import Experience, rewards

        config, mask_BR = self.config, rollouts.mask_BR
        rewards_BR = rewards(readings, rollouts, kl_coef, config.missing_eos_penalty, config.score_clip)
        if config.whiten_rewards:
            rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
        advantages_BR, returns_BR = gae(rewards_BR, readings.values_BR, mask_BR, config.gamma, config.lam)
        if config.whiten_advantages:
            advantages_BR = whiten(advantages_BR, mask_BR)
        return Experience(readings, rewards_BR, readings.values_BR, advantages_BR, returns_BR)

    def losses(self, step: int, kl_coef: float) -> dict[str, Loss]:
        """The value network's, and the policy's once the critic's warm-up is over."""
        losses: dict[str, Loss] = {"value": self.value_loss}
        return losses if step < self.config.critic_warmup_steps else {**losses, "policy": self.policy_loss}

    def value_loss(self, value: nn.Module, minibatch: Minibatch) -> dict[str, Tensor]:
        """The clipped value loss."""
        from gptlife.reward.objective import value_loss

        values_N = value(minibatch.rows.inputs, minibatch.rows.select_BT)
        return value_loss(values_N, minibatch.values_N, minibatch.returns_N, self.config.value_clip_range)._asdict()

    def policy_loss(self, policy: nn.Module, minibatch: Minibatch) -> dict[str, Tensor]:
        """The clipped policy loss."""
        from gptlife.reward.objective import policy_loss

        logprobs_N = minibatch.logprobs(policy, self.config.temperature)
        return policy_loss(logprobs_N, minibatch.logprobs_N, minibatch.advantages_N, self.config.clip_range)._asdict()


def run(config: PPOConfig, output: Path, *, policy: Path, reward: Path | None = None) -> Metrics:
    """Fine-tune and save policy, `ema/` and `value/`; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.loop import train

    return train(PPO(config), output, policy, reward)


STAGE = Stage(
    "ppo",
    PPOConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    check=check_reward("ppo"),
    title="PPO",
    family="online",
    about=(
        "A policy trained by PPO against a reward. `ema/` holds its averaged weights and `value/` the value "
        "network; both load in the same way."
    ),
)

if __name__ == "__main__":
    STAGE.main()
