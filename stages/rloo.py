"""Stage `rloo`: REINFORCE with a leave-one-out baseline; PPO's critic-free cross-check.

Ahmadian et al. 2024 (arXiv 2402.14740, section 3.2; the estimator is Kool et al. 2019's). An answer as a whole is one
action, and a prompt's other answers are its baseline:

    sample    k answers a prompt
    score     as in PPO
    shape     R_i = score_i - penalty - kl_coef * sum_t (log pi - log ref)_t;  A_i = R_i - mean of the other k - 1
    update    -A_i pi(y_i) / pi_old(y_i), a mean over answers; and the pretraining term as in PPO-ptx

pi(y) is the product over the answer's tokens, as in the paper: log-probabilities are summed, not averaged, so a long
answer's gradient is a long sum. With one optimizer step for a batch (the default) the ratio is 1 and its gradient that
of log pi(y): the paper's estimator, and the clip never acts. Smaller minibatches are slightly off-policy; the ratio is
then the importance weight of the one action there is, the answer, held within 1 ± clip_range (as TRL's RLOO does; the
paper has no clip). A ratio of tokens would weigh actions that no advantage was estimated for.

No value network, GAE, whitening. The policy's gradient is that of one answer and not of one token, so `ptx_coef` weighs
about an answer's length less here than in `ppo`. The rest is `rl/loop.py`.

Legend: B episodes, R response tokens, N the response tokens of a minibatch, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt

from gptlife.stages.rl.algorithm import Algorithm, Loss
from gptlife.stages.rl.config import OnlineConfig, check_reward
from gptlife.stages.runtime.stage import Metrics, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gptlife.stages.rl.episodes import Experience, Minibatch, Readings, Rollouts


class RLOOConfig(OnlineConfig):
    """Fine-tune a policy by RLOO."""

    answers_per_prompt: int = Field(4, ge=2)
    """k: answers to each prompt; a step has batch_size / k prompts. [Ahmadian et al. 2024: 2 and 4]"""
    minibatch_size: PositiveInt = 512
    """Answers an optimizer step, global; batch_size: on-policy, the ratio is 1. [Ahmadian et al. 2024]"""
    clip_range: PositiveFloat = 0.2
    """Ratio of an answer's probabilities beyond which the loss is flat. [TRL; not in Ahmadian et al. 2024]"""


class RLOO(Algorithm):
    """Whole answers are actions, and the prompt's other answers are their baseline."""

    name, title = "rloo", "RLOO"

    def __init__(self, config: RLOOConfig) -> None:
        self.config: RLOOConfig = config
        self.answers_per_prompt = config.answers_per_prompt

    def experience(self, readings: Readings, rollouts: Rollouts, kl_coef: float) -> Experience:
        """An answer's return is the sum of its rewards, its baseline the mean return of the prompt's other answers."""
        from gptlife.reward.advantage import leave_one_out
        from gptlife.stages.rl.episodes import Experience, over_tokens, rewards

        config, mask_BR = self.config, rollouts.mask_BR
        rewards_BR = rewards(readings, rollouts, kl_coef, config.missing_eos_penalty, config.score_clip)
        returns_B = rewards_BR.sum(1)
        advantages_B = leave_one_out(returns_B, self.answers_per_prompt)
        advantages_BR, returns_BR, values_BR = (
            over_tokens(answer_B, mask_BR) for answer_B in (advantages_B, returns_B, returns_B - advantages_B)
        )
        return Experience(readings, rewards_BR, values_BR, advantages_BR, returns_BR)

    def denominator(self, rollouts: Rollouts, experience: Experience, episodes: Sequence[int]) -> float:
        """Answers."""
        return float(len(episodes))

    def losses(self, step: int, kl_coef: float) -> dict[str, Loss]:
        """The policy's."""
        return {"policy": self.policy_loss}

    def policy_loss(self, policy: nn.Module, minibatch: Minibatch) -> dict[str, Tensor]:
        """Each answer is one action, whose log-probability is the sum over its tokens."""
        from gptlife.reward.objective import policy_loss

        # Old and new are summed alike: the first minibatch's ratio is 1 to the last bit.
        logprobs_B = minibatch.sums(minibatch.logprobs(policy, self.config.temperature))
        old_B, advantages_B = minibatch.sums(minibatch.logprobs_N), minibatch.first(minibatch.advantages_N)
        return policy_loss(logprobs_B, old_B, advantages_B, self.config.clip_range)._asdict()


def run(config: RLOOConfig, output: Path, *, policy: Path, reward: Path | None = None) -> Metrics:
    """Fine-tune and save policy and `ema/`; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.loop import train

    return train(RLOO(config), output, policy, reward)


STAGE = Stage(
    "rloo",
    RLOOConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    check=check_reward("rloo"),
    title="RLOO",
    family="online",
    about="A policy trained by RLOO against a reward, without a value network. `ema/` holds its averaged weights.",
)

if __name__ == "__main__":
    STAGE.main()
