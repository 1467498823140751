"""What a model reads, and the two forward passes: a language model and a scalar head, read at selected positions.

A model reads `inputs` whole, so an example may bring further ones (positions, a mask, later images) without a loss or a
loop knowing of them. They are made here and nowhere else of `data/tokens.py: Encoded`: rows one below the other
(`inputs_of`), prompts to sample from (`prompt_inputs`), and a prompt once for all its answers (`shared_inputs`).
stages/training/lm.py alone joins conversations in a row by itself.

`SelectedLogits` gives vocabulary logits and `SelectedScores` the head's outputs only where a mask says that a loss, a
log-probability or a value is read, so no (B, T, V) tensor is ever built. Batches are padded on the right and need no
attention mask: a causal model's real tokens never look right.

Legend: B rows, T tokens, P prompt tokens, N selected positions in row-major order, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptlife.data.tokens import Encoded

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


def unwrapped(model: Any) -> Any:
    """The transformers model inside a LoRA wrapper, adapters still active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class SelectedLogits(nn.Module):
    """A causal LM read at selected positions: inputs of B rows -> (N, V) logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.direct = _head_is_plain(unwrapped(model))

    def forward(self, inputs: Mapping[str, Tensor], select_BT: Tensor) -> Tensor:
        """Logits, in fp32, for the token that follows each selected position, row-major.

        Args:
            inputs: the arguments of the model's forward: `input_ids` (B, T), and what else it takes.
            select_BT: bool.
        """
        inner = unwrapped(self.model)
        if not self.direct:
            return inner(**inputs, use_cache=False).logits[select_BT].float()
        hidden_BTD = _trunk(inner)(**inputs, use_cache=False).last_hidden_state
        return inner.get_output_embeddings()(hidden_BTD[select_BT]).float()


class SelectedScores(nn.Module):
    """A scalar-head model read at selected positions: inputs of B rows -> (N,) scores."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor], select_BT: Tensor) -> Tensor:
        """The head's output, in fp32, at each selected position, row-major; arguments as in `SelectedLogits`."""
        inner = unwrapped(self.model)
        hidden_BTD = _trunk(inner)(**inputs, use_cache=False).last_hidden_state
        return inner.score(hidden_BTD[select_BT]).squeeze(-1).float() + getattr(inner.config, "reward_bias", 0.0)


def _trunk(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    """Whether the logits are the output embedding of the trunk's last state and nothing more.

    Some families scale or cap their logits; for those the model's own forward is used.
    """
    was_training, head = model.training, model.get_output_embeddings()
    if head is None or not hasattr(model, model.base_model_prefix):
        return False
    device = next(model.parameters()).device
    probe = torch.arange(1, 5, device=device).unsqueeze(0) % model.config.vocab_size
    model.eval()
    direct = head(_trunk(model)(input_ids=probe, use_cache=False).last_hidden_state)
    same = torch.allclose(direct, model(input_ids=probe, use_cache=False).logits, atol=1e-5)
    model.train(was_training)
    return bool(same)
