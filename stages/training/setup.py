"""What training needs before its first step: schedule, optimizer, accelerator.

A schedule is a pure function of the step (which rows, which learning rate), so no checkpoint has to save it. Cosine
with linear warm-up and a floor: Brown et al. 2020, App. B. AdamW decays matrices only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from gptlife.stages.modeling.forward import Batch
from gptlife.stages.runtime.device import best_device
from gptlife.stages.runtime.notices import quiet_libraries
from gptlife.stages.runtime.provenance import resume_as_begun
from gptlife.stages.runtime.stage import StageConfig
from gptlife.stages.training.config import TrainingConfig


class Examples(Protocol):
    """A training set whose lengths and loss weights are known before an example is read."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each example, as it is read."""
        ...

    @property
    def weights(self) -> Sequence[float]:
        """What each example adds to the denominator of the loss."""
        ...

    def collate(self, indices: Sequence[int]) -> Batch:
        """The examples as one batch on the CPU."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The rows and the learning rate of each step: pure functions of the step."""

    n_examples: int
    sizes: list[int]
    """Global batch size of every step, in examples."""
    rates: list[float]
    """Learning rate of every step."""
    seed: int
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        starts, position = [], 0
        for size in self.sizes:
            starts.append(position)
            position += size
        object.__setattr__(self, "starts", starts)

    def batch(self, step: int) -> list[int]:
        """Example indices of a step, from a stream of epochs, each in another order."""
        rows = []
        for position in range(self.starts[step], self.starts[step] + self.sizes[step]):
            epoch, index = divmod(position, self.n_examples)
            rows.append(self._permutation(epoch)[index])
        return rows

    def _permutation(self, epoch: int) -> list[int]:
        cached: dict[int, list[int]] = self.__dict__.setdefault("_permutations", {})
        if epoch not in cached:
            cached.clear()
            order = list(range(self.n_examples))
            random.Random(f"order {self.seed} {epoch}").shuffle(order)
            cached[epoch] = order
        return cached[epoch]


def cosine(progress: float, warmup: float, final_share: float) -> float:
    """Linear warm-up to 1 over `warmup`, cosine to `final_share` at 1, then constant, over a progress from 0 to 1."""
    if progress < warmup:
        return progress / warmup
    if progress >= 1.0:
        return final_share
    phase = (progress - warmup) / (1.0 - warmup)
    return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * phase))


def epochs(config: TrainingConfig, n_examples: int, batch_size: int, n_epochs: float, warmup_steps: int) -> Schedule:
    """Batches of fixed size over `n_epochs`, cosine to `min_lr_ratio`; a last partial batch is kept."""
    total = max(1, round(n_examples * n_epochs))
    sizes = [min(batch_size, total - start) for start in range(0, total, batch_size)]
    share = min(warmup_steps / len(sizes), 0.5)
    rates = [
        config.learning_rate
        * cosine((step + (1 if step < warmup_steps else 0)) / len(sizes), share, config.min_lr_ratio)
        for step in range(len(sizes))
    ]
    return Schedule(n_examples, sizes, rates, config.seed)


def accelerator_for(config: StageConfig, output: Path) -> Accelerator:
    """The accelerator of this process in a stage that works on `output`; seeds every generator."""
    quiet_libraries()
    device, precision = best_device(config.device), getattr(config, "precision", "fp32")
    mixed = {"auto": "no", "fp32": "no"}.get(precision, precision)
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        mixed = "bf16"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
    set_seed(config.seed)
    resume_as_begun(output, config.model_dump())
    return accelerator


def adamw(model: nn.Module, config: TrainingConfig, rate: float | None = None) -> Any:
    """AdamW with decay on matrices only; `rate`: the learning rate in place of the config's."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        groups,
        lr=rate or config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
        fused=fused,
    )
