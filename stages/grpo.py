"""Stage `grpo`: group-relative policy optimisation, and the choices that its successors made.

Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300, section 4.1). A prompt's G answers are each other's baseline, and
every token of an answer has the answer's advantage:

    sample    G answers per prompt
    score     as in PPO
    shape     A_i = (R_i - mean of the group) / (standard deviation of the group + ε), the same at each of its tokens
    update    minibatches: clipped policy loss, plus kl_coef times an estimate of the KL to the reference

What later work changed is a field each: no division by the deviation and a constant denominator (Dr. GRPO: Liu et al.
2025, arXiv 2503.20783); a higher upper clip, a mean over tokens, truncated answers left out (DAPO: Yu et al. 2025,
arXiv 2503.14476); one ratio for a whole answer (GSPO: Zheng et al. 2025, arXiv 2507.18071).

The standard deviation divides by G - 1, as TRL's does, and ε is `advantage_eps`. A group whose answers all have the
same return has advantage 0 and teaches nothing; `zero_variance_groups` is their share. KL in the loss weighs each token
by pi / pi_old, held constant. At the states that were visited, the gradient of k2 is then that of KL(pi || ref), and
that of k3 is that of KL(ref || pi); k1 in the loss would have gradient 0 on average, and is not offered.

Left out: supervision of single steps (process rewards), iterative training of the reward model, dynamic sampling of
prompts (DAPO). The loop is `rl/loop.py`.

Legend: B episodes, R response tokens, N the response tokens of a minibatch, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from gptlife.stages.rl.algorithm import Algorithm, Loss
from gptlife.stages.rl.config import OnlineConfig, check_reward
from gptlife.stages.runtime.stage import Metrics, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gptlife.stages.rl.episodes import Experience, Minibatch, Readings, Rollouts


class GRPOConfig(OnlineConfig):
    """Fine-tune a policy by GRPO."""

    answers_per_prompt: int = Field(16, ge=2)
    """G: answers to each prompt; a step has batch_size / G prompts. [DeepSeek-R1: 16; DeepSeekMath: 64]"""
    minibatch_size: PositiveInt = 512
    """Answers per optimizer step, global; batch_size: one update for what was sampled. [DeepSeekMath 4.2]"""
    learning_rate: NonNegativeFloat = 1e-6
    """Policy. [DeepSeekMath 4.2]"""
    kl_coef: NonNegativeFloat = 0.04
    """β: strength of the KL penalty. [DeepSeekMath 4.2; 0 in DAPO and Dr. GRPO]"""
    kl_penalty: Literal["k3_in_loss", "k2_in_loss", "k1_in_reward"] = "k3_in_loss"
    """Where the KL to the reference counts, and its estimator. [DeepSeekMath Eq 4: k3; InstructGPT: k1 in reward]"""
    scale_by_std: bool = True
    """Divide a group's advantages by its standard deviation. [DeepSeekMath; off in Dr. GRPO]"""
    advantage_eps: PositiveFloat = 1e-4
    """Added to that standard deviation, in units of the score. [TRL]"""
    clip_range: PositiveFloat = 0.2
    """Ratios below 1 - this, or above 1 + this, earn nothing more. [DeepSeekMath; 3e-4 in GSPO]"""
    clip_range_high: PositiveFloat | None = None
    """Upper range where it differs; None: `clip_range`. [DAPO: 0.28; GSPO: 4e-4]"""
    ratio: Literal["token", "sequence"] = "token"
    """What the ratio is of: each token, or an answer (the geometric mean over its tokens). [GSPO Eq 7]"""
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    """A mean over answers of their means over tokens [DeepSeekMath Eq 3]; a mean over all tokens [DAPO Eq 12]; or the
    sum over tokens divided by answers times max_new_tokens [Dr. GRPO]."""
    mask_truncated: bool = False
    """Leave answers that never ended out of the loss; `missing_eos_penalty` is the other way. [DAPO 3.4]"""

    @model_validator(mode="after")
    def _one_ratio(self) -> GRPOConfig:
        if self.ratio == "sequence" and self.aggregation != "sequence":
            raise ValueError(
                f"aggregation: {self.aggregation} sums over tokens, but ratio is sequence; set aggregation: sequence"
            )
        return self


class GRPO(Algorithm):
    """Tokens are actions, and the prompt's answers are each other's baseline."""

    name, title = "grpo", "GRPO"

    def __init__(self, config: GRPOConfig) -> None:
        self.config: GRPOConfig = config
        self.answers_per_prompt = config.answers_per_prompt

    def experience(self, readings: Readings, rollouts: Rollouts, kl_coef: float) -> Experience:
        """An answer's return is the sum of its rewards; its advantage is relative to its group."""
        from gptlife.reward.advantage import group_normalised
        from gptlife.stages.rl.episodes import Experience, over_tokens, rewards

        config, mask_BR, k = self.config, rollouts.mask_BR, self.answers_per_prompt
        in_reward = kl_coef if config.kl_penalty == "k1_in_reward" else 0.0
        rewards_BR = rewards(readings, rollouts, in_reward, config.missing_eos_penalty, config.score_clip)
        returns_B = rewards_BR.sum(1)
        advantages_B = group_normalised(returns_B, k, scale=config.scale_by_std, eps=config.advantage_eps)
        means_B = returns_B.view(-1, k).mean(1).repeat_interleave(k)
        advantages_BR, returns_BR, values_BR = (
            over_tokens(answer_B, mask_BR) for answer_B in (advantages_B, returns_B, means_B)
        )
        spread_P = returns_B.view(-1, k).amax(1) - returns_B.view(-1, k).amin(1)
        metrics = {"zero_variance_groups": float((spread_P == 0).float().mean())}
        if in_reward == 0.0:
            metrics["non_score_reward"] = 0.0
        if config.mask_truncated:
            metrics["masked_share"] = float((~rollouts.finished_B).float().mean())
        return Experience(readings, rewards_BR, values_BR, advantages_BR, returns_BR, self._weights(rollouts), metrics)

    def _weights(self, rollouts: Rollouts) -> Tensor:
        """weights_BR: each token's in the sum that `denominator` divides; 0 for an answer that is left out."""
        weights_BR = rollouts.mask_BR.float()
        if self.config.aggregation == "sequence":
            weights_BR = weights_BR / weights_BR.sum(1, keepdim=True)
        return weights_BR * self._counted(rollouts).unsqueeze(1)

    def _counted(self, rollouts: Rollouts) -> Tensor:
        """counted_B, bool: the answers that are learnt from."""
        return rollouts.finished_B if self.config.mask_truncated else rollouts.mask_BR[:, 0]

    def denominator(self, rollouts: Rollouts, experience: Experience, episodes: Sequence[int]) -> float:
        """Answers, tokens, or answers times max_new_tokens, of those that count; 1 where none does."""
        rows = list(episodes)
        counted_B = self._counted(rollouts)[rows]
        if self.config.aggregation == "token":
            count = float(rollouts.mask_BR[rows].sum(1)[counted_B].sum())
        else:
            count = float(counted_B.sum())
        return max(1.0, count) * (self.config.max_new_tokens if self.config.aggregation == "constant" else 1)

    def losses(self, step: int, kl_coef: float) -> dict[str, Loss]:
        """The policy's."""
        return {"policy": lambda policy, minibatch: self.policy_loss(policy, minibatch, kl_coef)}

    def policy_loss(self, policy: nn.Module, minibatch: Minibatch, kl_coef: float) -> dict[str, Tensor]:
        """The clipped policy loss, and the KL penalty where it is in the loss."""
        from gptlife.reward import kl
        from gptlife.reward.objective import policy_loss

        config, weights_N = self.config, minibatch.weights_N
        assert weights_N is not None
        logprobs_N = minibatch.logprobs(policy, config.temperature)
        new, old, advantages, weights = logprobs_N, minibatch.logprobs_N, minibatch.advantages_N, weights_N
        if config.ratio == "sequence":
            lengths_B = minibatch.mask_BR.sum(1)
            new, old = minibatch.sums(logprobs_N) / lengths_B, minibatch.sums(minibatch.logprobs_N) / lengths_B
            advantages, weights = minibatch.first(minibatch.advantages_N), minibatch.sums(weights_N)
        terms = policy_loss(new, old, advantages, config.clip_range, config.clip_range_high, weights)._asdict()
        if config.kl_penalty == "k1_in_reward":
            return terms
        estimate = kl.k2 if config.kl_penalty == "k2_in_loss" else kl.k3
        importance_N = (logprobs_N.detach() - minibatch.logprobs_N).exp()
        penalty_N = importance_N * estimate(logprobs_N, minibatch.ref_logprobs_N)
        loss_sum = terms["loss_sum"] + kl_coef * (weights_N * penalty_N).sum()
        return {**terms, "loss_sum": loss_sum, "kl_penalty_sum": terms["n"] * penalty_N.detach().mean()}


def run(config: GRPOConfig, output: Path, *, policy: Path, reward: Path | None = None) -> Metrics:
    """Fine-tune and save policy and `ema/`; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.loop import train

    return train(GRPO(config), output, policy, reward)


STAGE = Stage(
    "grpo",
    GRPOConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    check=check_reward("grpo"),
    title="GRPO",
    family="online",
    about="A policy trained by GRPO against a reward, without a value network. `ema/` holds its averaged weights.",
)

if __name__ == "__main__":
    STAGE.main()
