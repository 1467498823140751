"""The fields that training stages have: optimizer, precision, micro-batch, checkpoints; and those of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from gptlife.data.config import BelowOne, Execution, Share, Was
from gptlife.stages.modeling.adapters import LoRA
from gptlife.stages.runtime.stage import StageConfig


class TrainingConfig(StageConfig):
    """What every training stage has."""

    learning_rate: NonNegativeFloat
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """AdamW decay, on matrices only. [GPT-3 App. B]"""
    beta1: BelowOne = 0.9
    """AdamW's first moment. [GPT-3 App. B]"""
    beta2: BelowOne = 0.95
    """AdamW's second moment. [GPT-3 App. B]"""
    adam_eps: Annotated[PositiveFloat, Was("epsilon")] = 1e-8
    """AdamW's epsilon. [GPT-3 App. B]"""
    max_grad_norm: PositiveFloat = 1.0
    """Global gradient norm above which gradients are scaled down. [GPT-3 App. B]"""
    min_lr_ratio: Annotated[Share, Was("final_lr_share")] = 0.1
    """The cosine ends at this share of the peak. [GPT-3 App. B, InstructGPT C.1]"""
    precision: Execution[Literal["auto", "fp32", "bf16"]] = "auto"
    """Autocast type; auto: bf16 on a GPU that has it, else fp32 (bf16 is about 20 times slower on most CPUs)."""
    micro_batch_tokens: Execution[PositiveInt] = 4096
    """Padded tokens in one forward pass on one process; lower it when memory runs out."""
    gradient_checkpointing: Execution[bool] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint_seconds: Execution[NonNegativeFloat | None] = None
    """Seconds between checkpoints to resume from; None: 60, or 50 times what saving took where that is more."""
    checkpoints_kept: Execution[int] = Field(2, ge=1)
    """Newest checkpoints to keep while the stage runs; with more than one, a damaged one costs little."""
    log_every: Execution[PositiveInt] = 1
    """Steps between log lines."""


class FinetuningConfig(TrainingConfig):
    """What every stage has that fine-tunes a model on examples for some epochs."""

    epochs: PositiveFloat = 1
    """Passes over the data."""
    batch_size: PositiveInt = 64
    """Global batch in examples."""
    warmup_steps: NonNegativeInt = 0
    """Steps to the peak learning rate, at most half of all."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW decay, on matrices only. [given neither in InstructGPT nor in DPO]"""
    max_length: PositiveInt | None = None
    """Prompt and answer of more tokens are left out; None: the model's context."""
    validate_every: NonNegativeInt = 0
    """Steps between validations; 0: four times per epoch."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights; merged on save."""

    def validation_interval(self, steps: int) -> int:
        """Steps between validations, in a training of so many `steps`."""
        return self.validate_every or max(1, round(steps / self.epochs / 4))
