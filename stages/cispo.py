"""Stage `cispo`: REINFORCE on tokens, whose importance weight is clipped and held constant.

MiniMax 2025 (MiniMax-M1, arXiv 2506.13585, section 3.1). A prompt's G answers are each other's baseline, as in `grpo`:

    sample    G answers per prompt
    score     as in PPO
    shape     A_i = (R_i - mean of the group) / (standard deviation of the group + ε), the same at each of its tokens
    update    -sg(clip(pi / pi_old, 1 - c_low, 1 + c_high)) A_i log pi, a mean over all tokens of a minibatch

The clip bounds a token's weight and never stops its gradient; PPO's and GRPO's stops that of a rare token which the
update has moved much. On policy the weight is 1 and this is REINFORCE. The paper has no KL penalty, so `kl_coef` is 0;
a positive one counts in the reward, as in PPO. The standard deviation is as in `grpo`. The loop is `rl/loop.py`.

Left out: the mask on tokens that PPO would clip (Eq 6 and 7), dynamic sampling and the length penalty.

Legend: B episodes, R response tokens, N the response tokens of a minibatch, without padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from gptlife.stages.rl.algorithm import Algorithm, Loss
from gptlife.stages.rl.config import OnlineConfig, check_reward
from gptlife.stages.runtime.stage import Metrics, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gptlife.stages.rl.episodes import Experience, Minibatch, Readings, Rollouts


class CISPOConfig(OnlineConfig):
    """Fine-tune a policy by CISPO."""

    answers_per_prompt: int = Field(16, ge=2)
    """G: answers to each prompt; a step has batch_size / G prompts. [as in `grpo`]"""
    minibatch_size: PositiveInt = 64
    """Answers per optimizer step, global; batch_size: on-policy, and every weight is 1. [not printed in MiniMax-M1]"""
    kl_coef: NonNegativeFloat = 0.0
    """β: what a nat of KL to the reference costs, in units of the score. [MiniMax-M1 3.1: no KL penalty]"""
    advantage_eps: PositiveFloat = 1e-4
    """Added to a group's standard deviation, in units of the score. [TRL]"""
    clip_range_low: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A token's weight is at least 1 - this; 1: no lower bound. [MiniMax-M1 3.1: no lower bound]"""
    clip_range_high: PositiveFloat = 4.0
    """A token's weight is at most 1 + this. [not printed in MiniMax-M1; Khatri et al. 2025, arXiv 2510.13786, A.17.2: a
    weight of at most 4, 5 or 8 does equally well]"""


class CISPO(Algorithm):
    """Tokens are actions, and the prompt's answers are each other's baseline."""

    name, title = "cispo", "CISPO"

    def __init__(self, config: CISPOConfig) -> None:
        self.config: CISPOConfig = config
        self.answers_per_prompt = config.answers_per_prompt

    def experience(self, readings: Readings, rollouts: Rollouts, kl_coef: float) -> Experience:
        """An answer's return is the sum of its rewards; its advantage is relative to its group."""
        from gptlife.reward.advantage import group_normalised
        from gptlife.stages.rl.episodes import Experience, over_tokens, rewards

        config, mask_BR, k = self.config, rollouts.mask_BR, self.answers_per_prompt
        rewards_BR = rewards(readings, rollouts, kl_coef, config.missing_eos_penalty, config.score_clip)
        returns_B = rewards_BR.sum(1)
        advantages_B = group_normalised(returns_B, k, scale=True, eps=config.advantage_eps)
        means_B = returns_B.view(-1, k).mean(1).repeat_interleave(k)
        advantages_BR, returns_BR, values_BR = (
            over_tokens(answer_B, mask_BR) for answer_B in (advantages_B, returns_B, means_B)
        )
        return Experience(readings, rewards_BR, values_BR, advantages_BR, returns_BR)

    def losses(self, step: int, kl_coef: float) -> dict[str, Loss]:
        """The policy's."""
        return {"policy": self.policy_loss}

    def policy_loss(self, policy: nn.Module, minibatch: Minibatch) -> dict[str, Tensor]:
        """Sums over tokens; the loop divides by the response tokens of the minibatch."""
        from gptlife.reward.objective import weighted_policy_loss

        config = self.config
        logprobs_N = minibatch.logprobs(policy, config.temperature)
        old_N, advantages_N = minibatch.logprobs_N, minibatch.advantages_N
        low, high = config.clip_range_low, config.clip_range_high
        return weighted_policy_loss(logprobs_N, old_N, advantages_N, low, high)._asdict()


def run(config: CISPOConfig, output: Path, *, policy: Path, reward: Path | None = None) -> Metrics:
    """Fine-tune and save policy and `ema/`; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.loop import train

    return train(CISPO(config), output, policy, reward)


STAGE = Stage(
    "cispo",
    CISPOConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    check=check_reward("cispo"),
    title="CISPO",
    family="online",
    about="A policy trained by CISPO against a reward, without a value network. `ema/` holds its averaged weights.",
)

if __name__ == "__main__":
    STAGE.main()
