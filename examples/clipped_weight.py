"""A loss of your own in one file: CISPO (MiniMax 2025, arXiv 2506.13585), on a reward in Python.

    python examples/own_data.py          # makes the model that is trained here
    python -m examples.clipped_weight

You learn how an algorithm uses a prompt's answers as each other's baseline, how a loss sees that the policy has moved
since it sampled, and that a reward in Python takes the reward model's place here too. gptlife ships this algorithm as
`cispo`; a stage of your own needs a name that no other has.

Legend: B episodes, R response tokens, N the response tokens of a minibatch, without padding.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gptlife
from gptlife.stages.rl.algorithm import Algorithm, Loss
from gptlife.stages.rl.config import OnlineConfig


class ClippedWeightConfig(OnlineConfig):
    """Fine-tune a policy by REINFORCE with a clipped weight."""

    answers_per_prompt: int = 4
    """Answers to each prompt."""
    highest: float = 5.0
    """A token's weight is at most this."""


class ClippedWeight(Algorithm):
    """Tokens are actions; what an answer got more than the prompt's others is the advantage of each."""

    name, title = "clipped_weight", "clipped weight"

    def __init__(self, config: ClippedWeightConfig) -> None:
        self.config: ClippedWeightConfig = config
        self.answers_per_prompt = config.answers_per_prompt

    def experience(self, readings: Any, rollouts: Any, kl_coef: float) -> Any:
        """The return is the score less the KL's price; advantages have mean 0 and deviation 1 in each prompt."""
        from gptlife.reward.advantage import group_normalised
        from gptlife.stages.rl.episodes import Experience, over_tokens, rewards

        config, mask_BR = self.config, rollouts.mask_BR
        rewards_BR = rewards(readings, rollouts, kl_coef, config.missing_eos_penalty, config.score_clip)
        returns_B = rewards_BR.sum(1)
        advantages_B = group_normalised(returns_B, self.answers_per_prompt, scale=True, eps=1e-4)
        returns_BR, advantages_BR = (over_tokens(x_B, mask_BR) for x_B in (returns_B, advantages_B))
        return Experience(readings, rewards_BR, returns_BR - advantages_BR, advantages_BR, returns_BR)

    def losses(self, step: int, kl_coef: float) -> dict[str, Loss]:
        """The policy's alone: there is no value network."""
        return {"policy": self.policy_loss}

    def policy_loss(self, policy: Any, minibatch: Any) -> dict[str, Any]:
        """Sums over tokens: the weight bounds a token's gradient, and never stops it as PPO's clip does."""
        import torch

        logprobs_N = minibatch.logprobs(policy, self.config.temperature)
        ratio_N = (logprobs_N - minibatch.logprobs_N).exp().detach()
        weights_N = ratio_N.clamp(max=self.config.highest)
        return {
            "loss_sum": -(weights_N * minibatch.advantages_N * logprobs_N).sum(),
            "n": torch.tensor(float(ratio_N.numel()), device=ratio_N.device),
            "ratio_sum": ratio_N.sum(),  # these two names give ratio_mean and ratio_var
            "ratio_sq_sum": ratio_N.square().sum(),
        }


def run(config: ClippedWeightConfig, output: Path, *, policy: Path, reward: Path | None = None) -> dict[str, Any]:
    """Fine-tune and save; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.loop import train

    return train(ClippedWeight(config), output, policy, reward)


STAGE = gptlife.Stage(
    "clipped_weight",
    ClippedWeightConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    title="clipped weight",
    family="online",
    about="A policy trained by REINFORCE with a clipped weight, against a reward.",
)


def brief(prompts: list[dict[str, Any]], answers: list[str]) -> list[float]:
    """The reward: 1 for an empty answer, 0 for one of 40 characters, and less for longer ones."""
    return [1.0 - len(answer) / 40 for answer in answers]


def main() -> None:
    """Train on the life of own_data.py: everything before is finished and stays."""
    from examples.clipped_weight import STAGE as stage  # by the name under which each step's process imports it

    recipe, store = Path(__file__).with_name("own_data.yaml"), "build/examples/store"
    table = {
        "prompts": "${data}/prompts.jsonl",
        "reward_function": f"{__file__}:brief",
        "steps": 8,
        "batch_size": 16,
        "minibatch_size": 8,
        "learning_rate": 5e-3,
        "warmup_steps": 0,
        "kl_coef": 0.0,
        "max_new_tokens": 12,
    }
    steps = (*gptlife.LIFECYCLE, gptlife.step(stage, policy="sft", reward="reward_model"))
    changes = {"clipped_weight": table, "reward_model": None, "ppo": None}
    page = "build/examples/clipped_weight.html"
    life = gptlife.run(recipe, changes, store, until="clipped_weight", report=page, steps=steps)
    for row in life.output("clipped_weight").log:
        print(
            f"step {row['step']}: score {row['score']:.3f}, length {row['length']:.1f}, ratio {row['ratio_mean']:.3f}"
        )


if __name__ == "__main__":
    STAGE.main() if "--config" in sys.argv else main()
