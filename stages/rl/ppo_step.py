"""What PPO learns from a step's episodes: GAE, and the clipped losses of policy and value network, tokens as actions.

Legend: B episodes, R response tokens, N the response tokens of some episodes, row-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptlife.reward.objective import PolicyTerms, ValueTerms, policy_loss, value_loss
from gptlife.stages.rl.episodes import Experience, Picked, Rollouts, shape
from gptlife.stages.rl.networks import Players
from gptlife.stages.rl.steps import Loss

if TYPE_CHECKING:
    from gptlife.stages.ppo import PPOConfig


class PPO:
    """The `Algorithm` of the stage `ppo`."""

    name, title, answers_per_prompt = "ppo", "PPO", 1

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self.value_learning_rate = config.value_learning_rate

    def experience(self, found: dict[str, Tensor], rollouts: Rollouts, kl_coef: float) -> Experience:
        """Rewards a token, GAE's advantages and returns."""
        config = self.config
        return shape(
            found,
            rollouts,
            kl_coef=kl_coef,
            gamma=config.gamma,
            lam=config.lam,
            missing_eos_penalty=config.missing_eos_penalty,
            score_clip=config.score_clip,
            whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages,
        )

    def actions(self, rollouts: Rollouts, episodes: Sequence[int]) -> float:
        """Response tokens."""
        return float(rollouts.mask_BR[list(episodes)].sum())

    def losses(self, step: int) -> dict[str, Loss]:
        """The value network's, and the policy's once the critic's warm-up is over."""
        losses: dict[str, Loss] = {"value": self.value_terms}
        return losses if step < self.config.critic_warmup_steps else {**losses, "policy": self.policy_terms}

    def value_terms(self, players: Players, picked: Picked) -> ValueTerms:
        """The clipped value loss on some episodes."""
        values_N = players.networks["value"].reader(picked.tokens_BT, picked.select_BT)
        old_N, returns_N = picked.of_tokens(picked.values_BR), picked.of_tokens(picked.returns_BR)
        return value_loss(*_one_row(values_N, old_N, returns_N), self.config.value_clip_range)

    def policy_terms(self, players: Players, picked: Picked) -> PolicyTerms:
        """The clipped policy loss on some episodes."""
        logprobs_N = players.logprobs(picked)
        old_N, advantages_N = picked.of_tokens(picked.logprobs_BR), picked.of_tokens(picked.advantages_BR)
        return policy_loss(*_one_row(logprobs_N, old_N, advantages_N), self.config.clip_range)


def _one_row(new_N: Tensor, old_N: Tensor, goal_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four of a loss over tokens without padding, as one row: new, old, goal, mask."""
    mask_N = torch.ones_like(new_N, dtype=torch.bool)
    return new_N.unsqueeze(0), old_N.unsqueeze(0), goal_N.unsqueeze(0), mask_N.unsqueeze(0)
