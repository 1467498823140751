"""Stage `ppo`: PPO and PPO-ptx against a reward model or a function.

One step (Ziegler et al. 2019; Ouyang et al. 2022, sections 3.5 and C.4):

    sample    one answer a prompt from the policy, temperature 1
    score     reward model at the last token; -penalty where the answer never ended
    shape     reward_t = -kl_coef (log pi - log ref)_t, plus the score at the last token; GAE; whiten the advantages
    update    minibatches: clipped policy loss, clipped value loss, and ptx_coef times the language-model loss on
              pretraining text (PPO-ptx), the two gradients accumulated into one step

The value network is a model of its own, initialised from the reward model. The reference is the policy as it came.
Learning rates warm up from a tenth and stay. With `reward_function` a Python function takes the reward model's place
and the value network starts from the policy's trunk with a zero head.

Left out: entropy bonus, per-token rewards other than KL, asynchronous sampling.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gptlife.data.config import Config, Execution, HashFile, UserError
from gptlife.data.sources import Data
from gptlife.reward.judges import JudgeConfig, identity_of_function
from gptlife.stages.stage import Metrics, Stage
from gptlife.stages.training_config import LoRA, TrainingConfig


class AdaptiveKL(Config):
    """Steer kl_coef so that the KL to the reference stays near a target (Ziegler et al. 2019, section 2.2)."""

    target: float = 6.0
    """Nats an episode. [lm-human-preferences]"""
    horizon: int = 10_000
    """Episodes over which a full error changes the coefficient by its own size. [lm-human-preferences]"""


class PPOConfig(TrainingConfig):
    """Fine-tune a policy by PPO."""

    prompts: Data
    """Prompts to answer, in a new order each time round; conversations count without their last answer."""
    reward_function: str | None = None
    """`module:name` or `file.py:name` of a function (prompts, answers) -> scores, in place of a reward model."""
    pretraining: Data | None = None
    """Text for the pretraining term of PPO-ptx."""
    ptx_coef: float = 27.8
    """Weight of the pretraining term (γ), when `pretraining` is given; 0 is plain PPO. [InstructGPT C.4]"""
    ptx_rows_per_episode: float = 8.0
    """Rows of pretraining text for every episode. [InstructGPT C.4]"""
    ptx_length: int | None = None
    """Tokens of such a row; None: 128, or the policy's context where that is less."""
    steps: int = 500
    """Times that answers are sampled. [InstructGPT C.4: 256k episodes in batches of 512]"""
    batch_size: int = 512
    """Episodes a step, global. [InstructGPT C.4]"""
    minibatch_size: int = 64
    """Episodes an optimizer step, global. [InstructGPT C.4]"""
    inner_epochs: int = 1
    """Passes over a step's episodes. [InstructGPT C.4]"""
    learning_rate: float = 3e-6
    """Policy. [not printed in InstructGPT; Huang et al. 2024]"""
    value_learning_rate: float = 9e-6
    """Value network. [InstructGPT C.4]"""
    warmup_steps: int = 10
    """Linear from a tenth of the learning rate. [InstructGPT C.4]"""
    critic_warmup_steps: int = 0
    """First steps in which only the value network learns."""
    epsilon: float = 1e-5
    """AdamW's epsilon. [Huang et al. 2022, detail on Adam]"""
    weight_decay: float = 0.0
    """[not given in InstructGPT]"""
    kl_coef: float = 0.02
    """β: price of a nat of KL to the reference, in units of the score. [InstructGPT C.4]"""
    adaptive_kl: AdaptiveKL | None = None
    """Let kl_coef follow a target; None: fixed. [InstructGPT: fixed]"""
    discount: float = 1.0
    """GAE's γ. [InstructGPT: no discount]"""
    lam: float = 0.95
    """GAE's λ. [Ziegler et al. 2019 code]"""
    clip_range: float = 0.2
    """Ratio beyond which the policy loss is flat. [InstructGPT C.4]"""
    value_clip_range: float = 0.2
    """Change of a value beyond which the value loss is not reduced, in units of the score."""
    score_clip: float | None = None
    """Scores are held within ± this."""
    whiten_advantages: bool = True
    """Mean 0, variance 1 over the step's tokens. [lm-human-preferences]"""
    whiten_rewards: bool = False
    """Variance 1 without moving the mean. [lm-human-preferences; off in Huang et al. 2024]"""
    missing_eos_penalty: float = 1.0
    """Taken off the score of an answer that never ended."""
    temperature: float = 1.0
    """Of sampling, and of every log-probability. [InstructGPT C.4]"""
    max_new_tokens: int = 256
    """Longest answer."""
    ema: float | None = 0.992
    """Decay a step of the averaged weights, saved under `ema/`; None: none. [InstructGPT C.4]"""
    lora: LoRA | None = None
    """Train adapters; the reference is then the policy with its adapters off. Merged on save."""
    judge: JudgeConfig | None = None
    """A judge that watches: its mean score of the sampled answers is logged, never trained on."""
    sample_every: int = 10
    """Steps between samples in the log."""
    rows: Execution[int] = 256
    """Answers decoded together on one process."""

    def identity(self, hash_file: HashFile) -> dict[str, Any]:
        """With the reward function by content."""
        own = super().identity(hash_file)
        if self.reward_function is not None:
            own["reward_function"] = identity_of_function(self.reward_function, hash_file)
        return own


def run(config: PPOConfig, output: Path, *, policy: Path, reward: Path | None = None) -> Metrics:
    """Fine-tune and save policy, `ema/` and `value/`; metrics: those of the last step, and the cost."""
    from gptlife.data.formats import prompts
    from gptlife.stages.hardware import peak_gpu_memory_mb
    from gptlife.stages.journal import Journal
    from gptlife.stages.loop import seed_step
    from gptlife.stages.ppo_models import Players
    from gptlife.stages.ppo_step import Steps
    from gptlife.stages.training import accelerator_for

    _check(config, reward)
    accelerator = accelerator_for(config)
    players = Players(config, accelerator, output, policy, reward)
    steps = Steps(config, accelerator, players, prompts(config.prompts, config.seed), output)
    state = players.checkpoints.restore() or {"step": 0, "kl_coef": config.kl_coef, "tokens": 0, "seconds": 0.0}
    step, kl_coef, tokens = int(state["step"]), float(state["kl_coef"]), int(state["tokens"])
    begun = time.monotonic() - float(state["seconds"])
    metrics: dict[str, Any] = {}
    with Journal(
        output, "ppo", config.steps, start=step, track=config.track, main=accelerator.is_main_process
    ) as journal:
        while step < config.steps:
            seed_step(config.seed, step, accelerator.process_index)
            metrics, kl_coef = steps.take(step, kl_coef)
            step += 1
            tokens += int(metrics["step_tokens"])
            journal.log(step, metrics, _status(metrics))
            if step < config.steps and players.checkpoints.due():
                seconds = time.monotonic() - begun
                players.checkpoints.save(step, {"kl_coef": kl_coef, "tokens": tokens, "seconds": seconds})
    players.save(output)
    seconds = time.monotonic() - begun
    return {
        **{name: value for name, value in metrics.items() if name != "samples"},
        "algorithm": "PPO-ptx" if steps.has_ptx else "PPO",
        "steps": config.steps,
        "episodes": config.steps * config.batch_size,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "checkpoint_seconds": round(players.checkpoints.seconds, 2),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(accelerator.device),
    }


def _check(config: PPOConfig, reward: Path | None) -> None:
    if (reward is None) == (config.reward_function is None):
        raise UserError(
            "ppo.reward_function: give either this or the input `reward` (a reward model), not both or none"
        )
    if config.batch_size % config.minibatch_size:
        raise UserError(
            f"ppo.minibatch_size: {config.minibatch_size} does not divide batch_size {config.batch_size}; "
            "choose one that does"
        )


def _status(metrics: dict[str, Any]) -> str:
    gold = f" gold {metrics['gold']:.3f}" if "gold" in metrics else ""
    return (
        f"score {metrics['score']:.3f}{gold} kl {metrics['kl']:.2f} length {metrics['length']:.1f} "
        f"{metrics['tokens_per_second']:,.0f} tokens/s"
    )


STAGE = Stage("ppo", PPOConfig, run, inputs=("policy",), optional=("reward",))

if __name__ == "__main__":
    STAGE.main()
