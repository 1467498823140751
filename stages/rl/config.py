"""The fields of every stage that learns from its own policy's answers. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gptlife.data.config import BelowOne, Config, HashFile, Was
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.reward.ensemble import EnsembleConfig
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.functions import identity_of_function
from gptlife.stages.generation.config import SamplingConfig
from gptlife.stages.modeling.adapters import LoRA
from gptlife.stages.training.config import TrainingConfig


def check_reward(stage: str) -> Callable[[Any, Collection[str]], None]:
    """The `check` of an online stage: exactly one of a reward model and a reward function. Raises UserError."""

    def check(config: OnlineConfig, inputs: Collection[str]) -> None:
        if ("reward" in inputs) == (config.reward_function is not None):
            raise UserError(
                f"{stage}.reward_function: give either this or the input `reward` (a reward model), not both or none"
            )

    return check


class AdaptiveKL(Config):
    """Steer kl_coef so that the KL to the reference stays near a target (Ziegler et al. 2019, section 2.2)."""

    target: PositiveFloat = 6.0
    """Nats per episode. [lm-human-preferences]"""
    horizon: PositiveInt = 10_000
    """Episodes over which a full error changes the coefficient by its own size. [lm-human-preferences]"""


class OnlineConfig(TrainingConfig, SamplingConfig):
    """The fields of every stage that learns from its own policy's answers."""

    prompts: Data
    """Prompts to answer, in a new order each time through; of conversations, all but the last answer."""
    reward_function: str | None = None
    """`module:name` or `file.py:name` of a function (prompts, answers) -> scores, in place of a reward model."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """How a reward model of several members gives one score."""
    pretraining: Data | None = None
    """Text for the pretraining term of PPO-ptx."""
    ptx_coef: NonNegativeFloat = 27.8
    """Weight of the pretraining term (γ), when `pretraining` is given; 0 is plain PPO. [InstructGPT C.4]"""
    ptx_rows_per_episode: NonNegativeFloat = 8.0
    """Rows of pretraining text per episode. [InstructGPT C.4]"""
    ptx_length: PositiveInt | None = None
    """Tokens per row; None: 128, or the policy's context where that is less."""
    steps: PositiveInt = 500
    """Rounds of sampling and learning. [InstructGPT C.4: 256k episodes in batches of 512]"""
    batch_size: PositiveInt = 512
    """Episodes per step, over all processes. [InstructGPT C.4]"""
    minibatch_size: PositiveInt = 64
    """Episodes per optimizer step, over all processes. [InstructGPT C.4]"""
    inner_epochs: PositiveInt = 1
    """Passes over a step's episodes. [InstructGPT C.4]"""
    learning_rate: NonNegativeFloat = 3e-6
    """Policy. [not printed in InstructGPT; Huang et al. 2024]"""
    warmup_steps: NonNegativeInt = 10
    """Linear from a tenth of the learning rate. [InstructGPT C.4]"""
    adam_eps: Annotated[PositiveFloat, Was("epsilon")] = 1e-5
    """AdamW's epsilon. [Huang et al. 2022, detail on Adam]"""
    weight_decay: NonNegativeFloat = 0.0
    """[not given in InstructGPT]"""
    kl_coef: NonNegativeFloat = 0.02
    """β: what a nat of KL to the reference costs, in units of the score. [InstructGPT C.4]"""
    adaptive_kl: AdaptiveKL | None = None
    """Steer kl_coef towards a target KL; None: fixed. [InstructGPT: fixed]"""
    target_kl: Annotated[float | None, Was("stop_kl")] = Field(None, gt=0)
    """KL in nats per episode at which the run stops: a step that measures more makes no update; None: never."""
    score_clip: PositiveFloat | None = None
    """Scores are clipped to ± this."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Subtracted from the score of an answer that never ended."""
    temperature: PositiveFloat = 1.0
    """Of sampling, and of every log-probability. [InstructGPT C.4]"""
    ema: BelowOne | None = 0.992
    """Decay per step of the averaged weights, saved under `ema/`; None: no average. [InstructGPT C.4]"""
    lora: LoRA | None = None
    """Train low-rank adapters, merged on save; the reference is then the policy with its adapters off."""
    judge: JudgeConfig | None = None
    """A judge that watches: its mean score of the sampled answers is logged, never trained on."""
    keep_every: int = Field(0, ge=0)
    """Steps between copies of the policy, saved under `steps/<step>/`; 0: no copies. The last step is the output."""
    sample_every: PositiveInt = 10
    """Steps between samples in the log."""

    @model_validator(mode="after")
    def _batches(self) -> OnlineConfig:
        for name in ("minibatch_size", "answers_per_prompt"):
            size = getattr(self, name, 1)
            if self.batch_size % size:
                raise ValueError(f"{name}: {size} does not divide batch_size {self.batch_size}; choose one that does")
        return self

    def identity(self, hash_file: HashFile) -> dict[str, Any]:
        """With the reward function by content."""
        own = super().identity(hash_file)
        if self.reward_function is not None:
            own["reward_function"] = identity_of_function(self.reward_function, hash_file)
        return own
