"""What RLOO learns from a step's episodes: leave-one-out advantages, and the policy's loss, answers as actions.

Legend: B episodes, R response tokens, N the response tokens of some episodes, row-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptlife.reward.objective import PolicyTerms, policy_loss
from gptlife.stages.rl.episodes import Experience, Picked, Rollouts, shape_answers
from gptlife.stages.rl.networks import Players
from gptlife.stages.rl.steps import Loss

if TYPE_CHECKING:
    from gptlife.stages.rloo import RLOOConfig


class RLOO:
    """The `Algorithm` of the stage `rloo`."""

    name, title, value_learning_rate = "rloo", "RLOO", None

    def __init__(self, config: RLOOConfig) -> None:
        self.config = config
        self.answers_per_prompt = config.answers_per_prompt

    def experience(self, found: dict[str, Tensor], rollouts: Rollouts, kl_coef: float) -> Experience:
        """Rewards a token, and their sums against those of the prompt's other answers."""
        return shape_answers(
            found,
            rollouts,
            answers_per_prompt=self.answers_per_prompt,
            kl_coef=kl_coef,
            missing_eos_penalty=self.config.missing_eos_penalty,
            score_clip=self.config.score_clip,
        )

    def actions(self, rollouts: Rollouts, episodes: Sequence[int]) -> float:
        """Answers."""
        return float(len(episodes))

    def losses(self, step: int) -> dict[str, Loss]:
        """The policy's."""
        return {"policy": self.policy_terms}

    def policy_terms(self, players: Players, picked: Picked) -> PolicyTerms:
        """The policy loss on some episodes, each one action whose log-probability is the sum over its tokens."""
        logprobs_BR = picked.as_rows(players.logprobs(picked))
        # Old and new are summed alike, padding included: the first minibatch's ratio is 1 to the last bit.
        logprobs_B1 = logprobs_BR.sum(1, keepdim=True)
        old_B1 = picked.logprobs_BR.sum(1, keepdim=True)
        advantages_B1 = picked.advantages_BR[:, :1]
        one_B1 = torch.ones_like(advantages_B1, dtype=torch.bool)
        return policy_loss(logprobs_B1, old_B1, advantages_B1, one_B1, self.config.clip_range)
