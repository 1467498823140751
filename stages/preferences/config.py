"""The fields that the stages on TRL's trainers have in common. Imports no torch."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from gptlife.data.config import Share
from gptlife.data.sources import Data
from gptlife.stages.modeling.adapters import LoRA
from gptlife.stages.training.config import TrainingConfig

SHOWN = 400
"""Training rankings or answers on which the `train_` metrics are measured."""


class PreferenceConfig(TrainingConfig):
    """Train a policy against the reference that it starts from."""

    data: Data | None = None
    """Rows to learn from; None: those of the input `comparisons`."""
    validation: Data | Share = 0.1
    """Rows held out, or the share of `data`; the input `comparisons` brings its own."""
    beta: float = Field(0.1, gt=0)
    """Strength of the KL constraint: the higher, the nearer the policy stays to the reference. [DPO App. B, which has
    0.5 for TL;DR; KTO section 4]"""
    epochs: PositiveFloat = 1
    """Passes over the pairs or answers, rounded to whole batches. [DPO's and KTO's code]"""
    weight_decay: NonNegativeFloat = 0.0
    """[not given in DPO and KTO]"""
    max_length: PositiveInt | None = None
    """A prompt and answer of more tokens are left out; None: the model's context."""
    validate_every: NonNegativeInt = 0
    """Steps between validations; 0: four times per epoch."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights, against the model without them; merged on save."""
    batch_size: PositiveInt
    warmup_steps: NonNegativeInt
