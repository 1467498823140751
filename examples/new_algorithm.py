"""A new online algorithm in one file: REINFORCE with the step's mean return as its baseline (Williams 1992).

    python examples/own_data.py          # makes the model that is trained here
    python -m examples.new_algorithm

You learn what sets one algorithm apart from another: what the episodes are worth (`experience`) and what is learnt from
them (`losses`). Sampling, reading, micro-batches, processes, checkpoints, log and report are the loop's. Nothing is
registered: `steps` tells `gptlife.run` about the stage.

Legend: B episodes, R response tokens, N the response tokens of a minibatch, without padding.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gptlife
from gptlife.stages.rl.algorithm import Algorithm, Loss
from gptlife.stages.rl.config import OnlineConfig


class ReinforceConfig(OnlineConfig):
    """Fine-tune a policy by REINFORCE."""

    minibatch_size: int = 512
    """Episodes per optimizer step, global; batch_size: on-policy, as REINFORCE has to be."""


class Reinforce(Algorithm):
    """An answer is one action; what it got more than the average answer is its advantage."""

    name, title = "reinforce", "REINFORCE"

    def __init__(self, config: ReinforceConfig) -> None:
        self.config = config

    def experience(self, readings: Any, rollouts: Any, kl_coef: float) -> Any:
        """The return is the score less the KL's price; the baseline is the mean return of the step."""
        from gptlife.stages.rl.episodes import Experience, over_tokens, rewards

        config, mask_BR = self.config, rollouts.mask_BR
        rewards_BR = rewards(readings, rollouts, kl_coef, config.missing_eos_penalty, config.score_clip)
        returns_B = rewards_BR.sum(1)
        baseline_B = returns_B.mean().expand_as(returns_B)
        returns_BR, baseline_BR = (over_tokens(x_B, mask_BR) for x_B in (returns_B, baseline_B))
        return Experience(readings, rewards_BR, baseline_BR, returns_BR - baseline_BR, returns_BR)

    def losses(self, step: int, kl_coef: float) -> dict[str, Loss]:
        """The policy's alone: there is no value network."""
        return {"policy": self.policy_loss}

    def policy_loss(self, policy: Any, minibatch: Any) -> dict[str, Any]:
        """Sums over tokens: the loss, which the loop divides by the response tokens of the minibatch, and metrics."""
        import torch

        logprobs_N = minibatch.logprobs(policy, self.config.temperature)
        positive_N = (minibatch.advantages_N > 0).float()
        return {
            "loss_sum": -(minibatch.advantages_N * logprobs_N).sum(),
            "n": torch.tensor(float(logprobs_N.numel()), device=logprobs_N.device),
            "encouraged_sum": positive_N.sum(),  # every other *_sum is logged as a mean over n
        }


def run(config: ReinforceConfig, output: Path, *, policy: Path, reward: Path | None = None) -> dict[str, Any]:
    """Fine-tune and save; metrics: those of the last step, and the cost."""
    from gptlife.stages.rl.loop import train

    return train(Reinforce(config), output, policy, reward)


STAGE = gptlife.Stage(
    "reinforce",
    ReinforceConfig,
    run,
    inputs=("policy",),
    optional=("reward",),
    title="REINFORCE",
    family="online",
    about="A policy trained by REINFORCE against a reward.",
)


def main() -> None:
    """Train on the life of own_data.py, beside its PPO: everything before is finished and stays."""
    from examples.new_algorithm import STAGE as stage  # by the name under which each step's process imports it

    recipe, store = Path(__file__).with_name("own_data.yaml"), "build/examples/store"
    table = {
        "prompts": "${data}/prompts.jsonl",
        "steps": 6,
        "batch_size": 16,
        "minibatch_size": 16,
        "learning_rate": 1e-3,
        "kl_coef": 0.05,
        "max_new_tokens": 12,
    }
    steps = (*gptlife.LIFECYCLE, gptlife.step(stage, policy="sft", reward="reward_model"))
    page = "build/examples/new_algorithm.html"
    life = gptlife.run(recipe, {"reinforce": table}, store, until="reinforce", report=page, steps=steps)
    for row in life.output("reinforce").log:
        print(f"step {row['step']}: score {row['score']:.3f}, encouraged {row['encouraged']:.0%}, KL {row['kl']:.3f}")


if __name__ == "__main__":
    STAGE.main() if "--config" in sys.argv else main()
