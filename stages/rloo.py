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
about an answer's length less here than in `ppo`. The rest is `online.py`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from gptlife.stages.rl.config import OnlineConfig, train
from gptlife.stages.runtime.stage import Metrics, Stage


class RLOOConfig(OnlineConfig):
    """Fine-tune a policy by RLOO."""

    answers_per_prompt: int = Field(4, ge=2)
    """k: answers to each prompt; a step has batch_size / k prompts. [Ahmadian et al. 2024: 2 and 4]"""
    minibatch_size: PositiveInt = 512
    """Answers an optimizer step, global; batch_size: on-policy, the ratio is 1. [Ahmadian et al. 2024]"""
    clip_range: PositiveFloat = 0.2
    """Ratio of an answer's probabilities beyond which the loss is flat. [TRL; not in Ahmadian et al. 2024]"""


def run(config: RLOOConfig, output: Path, *, policy: Path, reward: Path | None = None) -> Metrics:
    """Fine-tune and save policy and `ema/`; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.rloo_step import RLOO

    return train(RLOO(config), output, policy, reward)


STAGE = Stage(
    "rloo",
    RLOOConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    title="RLOO",
    family="online",
    about=("A policy trained by RLOO against a reward, without a value network. `ema/` holds its averaged weights."),
)

if __name__ == "__main__":
    STAGE.main()
