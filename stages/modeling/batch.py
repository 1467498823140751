"""A batch of examples, as every training stage collates and reads it.

A model reads `inputs` whole, so an example may bring further ones (positions, a mask, later images) without a loss or a
loop knowing of them. They are made here and nowhere else of what data/encoded.py holds: rows one below the other
(`inputs_of`), prompts to sample from (`prompt_inputs`), and a prompt once for all its answers (`shared_inputs`).
stages/training/lm.py alone joins conversations in a row by itself.

Shapes: B rows, T tokens, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptlife.data.encoded import Encoded

CPU = torch.device("cpu")


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


def pad_right(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> Tensor:
    """Rows of numbers as one (B, T) tensor, filled on the right."""
    table_BT = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for filled_T, row in zip(table_BT, rows, strict=True):
        filled_T[: len(row)] = row
    return torch.from_numpy(table_BT).to(device)


def last_positions(rows: Sequence[Sized], device: torch.device) -> Tensor:
    """select_BT, bool: True at the last token of each row."""
    width = max(len(row) for row in rows)
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    return torch.arange(width, device=device).unsqueeze(0) == (lengths_B - 1).unsqueeze(1)


def inputs_of(rows: Sequence[Encoded], device: torch.device) -> dict[str, Tensor]:
    """`input_ids` (B, T) of rows, padded on the right with token 0, which no output depends on."""
    return {"input_ids": pad_right([row.tokens for row in rows], 0, device)}


def marks_of(rows: Sequence[Encoded], device: torch.device) -> Tensor:
    """marks_BT, bool: the tokens that are marked, in the layout of `inputs_of`."""
    return pad_right([row.marks for row in rows], False, device).bool()


def prompt_inputs(prompts: Sequence[Encoded], fill: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `position_ids` (B, P): padded on the left, and positions count real tokens."""
    width = max(len(prompt) for prompt in prompts)
    tokens_BP = [[fill] * (width - len(prompt)) + prompt.tokens for prompt in prompts]
    real_BP = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return {
        "input_ids": torch.tensor(tokens_BP, device=device),
        "attention_mask": real_BP,
        "position_ids": (real_BP.cumsum(-1) - 1).clamp(min=0),
    }


def shared_inputs(groups: Sequence[Sequence[Encoded]], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Each group as one row: what its members share at the beginning once, then what each adds.

    Returns:
        `input_ids` and `position_ids` (B, T) with each token's position in its own member, a bool `attention_mask`
        (B, 1, T, T) that keeps the members apart; and select_BT, the last token of each member.
    """
    # Part 0 of a row is what is shared, parts 1 to K what each member adds; padding is part -1.
    rows: dict[str, list[list[int]]] = {"tokens": [], "parts": [], "positions": [], "ends": []}
    for group in groups:
        start = shared_length(group)
        row, parts, positions, ends = group[0].tokens[:start], [0] * start, list(range(start)), [0] * start
        for number, member in enumerate(group, 1):
            added = len(member) - start
            row, parts = row + member.tokens[start:], parts + [number] * added
            positions, ends = positions + list(range(start, len(member))), ends + [0] * (added - 1) + [1]
        for name, column in (("tokens", row), ("parts", parts), ("positions", positions), ("ends", ends)):
            rows[name].append(column)
    part_BT = pad_right(rows["parts"], -1, device)
    visible_BTT = (part_BT.unsqueeze(1) == 0) | (part_BT.unsqueeze(1) == part_BT.unsqueeze(2))
    inputs = {
        "input_ids": pad_right(rows["tokens"], 0, device),
        "position_ids": pad_right(rows["positions"], 0, device),
        "attention_mask": visible_BTT.tril().unsqueeze(1),
    }
    return inputs, pad_right(rows["ends"], 0, device).bool()


def shared_length(group: Sequence[Encoded]) -> int:
    """How many tokens all members share at the beginning, less one where that is all of the shortest."""
    shortest = min(len(member) for member in group)
    first = group[0].tokens
    alike = next((i for i in range(shortest) if any(m.tokens[i] != first[i] for m in group)), shortest)
    return min(alike, shortest - 1)
