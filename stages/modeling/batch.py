"""A batch of examples, as every training stage collates and reads it.

A model reads `inputs` whole, so an example may bring further ones (positions, a mask, later images) without a loss or a
loop knowing of them.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Examples collated."""

    inputs: dict[str, Tensor]
    """Arguments of the model's forward: `input_ids` (B, T), and where used `position_ids`, `attention_mask`."""
    select: Tensor
    """select_BT, bool: the positions that the loss reads."""
    targets: dict[str, Tensor]
    """What the loss compares the model's outputs with."""

    def to(self, device: torch.device) -> Batch:
        """The batch with all its tensors on a device."""
        inputs, targets = (
            {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
            for tensors in (self.inputs, self.targets)
        )
        return Batch(inputs, self.select.to(device, non_blocking=True), targets)
