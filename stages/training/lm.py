"""Language modelling: examples with next-token targets, their loss, and validation.

An example is an encoded row whose marks say which tokens are targets (are predicted and count in the loss). Pretraining
rows have every token as a target; conversations only the assistant's.

Shapes: B rows, T input tokens, N targets (row-major), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gptlife.data.packing import length_batches
from gptlife.data.tokens import Encoded
from gptlife.stages.modeling.forward import CPU, Batch, inputs_of, pad_right
from gptlife.stages.training.loop import Sums, add_sums, gather_sums


class PackedRows:
    """A flat stream of tokens read in rows: every token but the first is a target exactly once.

    Row i reads tokens [i*T, i*T+T) and predicts tokens [i*T+1, i*T+T+1); the last row may be shorter.
    """

    def __init__(self, stream: np.ndarray, row_length: int) -> None:
        self.stream, self.row_length = stream, row_length
        n_targets = max(0, len(stream) - 1)
        count = math.ceil(n_targets / row_length)
        self.lengths = [min(row_length, n_targets - row * row_length) for row in range(count)]
        self.weights = [float(length) for length in self.lengths]

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> Encoded:
        """One row: the inputs and the last target."""
        start = index * self.row_length
        tokens = self.stream[start : start + self.lengths[index] + 1].tolist()
        return Encoded(tokens, [False] + [True] * self.lengths[index])

    def collate(self, indices: Sequence[int]) -> Batch:
        """Rows as a batch."""
        return collate([self.row(index) for index in indices])


class TargetRows:
    """Encoded rows (conversations), kept in memory."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = rows
        self.lengths = [len(row) - 1 for row in rows]
        self.weights = [float(sum(row.marks[1:])) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Encoded:
        """One row."""
        return self.rows[index]

    def collate(self, indices: Sequence[int]) -> Batch:
        """Rows as a batch."""
        return collate([self.rows[index] for index in indices])


class PackedConversations:
    """Bins of conversations that don't attend to each other: positions restart, attention is block-diagonal.

    `transformers` builds the block-diagonal mask from the restarting positions.
    """

    def __init__(self, rows: Sequence[Encoded], bins: Sequence[Sequence[int]]) -> None:
        self.rows, self.bins = rows, bins
        self.lengths = [sum(len(rows[number]) - 1 for number in bin_) for bin_ in bins]
        self.weights = [float(sum(sum(rows[number].marks[1:]) for number in bin_)) for bin_ in bins]

    def __len__(self) -> int:
        return len(self.bins)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Bins as a batch, each conversation with positions from 0."""
        width = max(self.lengths[index] for index in indices)
        shape = (len(indices), width)
        tokens_BT, targets_BT, positions_BT = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        select_BT = np.zeros(shape, dtype=bool)
        for row, index in enumerate(indices):
            start = 0
            for number in self.bins[index]:
                ids, marks = self.rows[number].tokens, self.rows[number].marks
                span = slice(start, start + len(ids) - 1)
                tokens_BT[row, span], targets_BT[row, span], select_BT[row, span] = ids[:-1], ids[1:], marks[1:]
                positions_BT[row, span] = np.arange(len(ids) - 1)
                start += len(ids) - 1
            positions_BT[row, start:] = np.arange(width - start)
        tokens, positions, targets = map(torch.from_numpy, (tokens_BT, positions_BT, targets_BT))
        inputs = {"input_ids": tokens, "position_ids": positions}
        return Batch(inputs, torch.from_numpy(select_BT), {"tokens": targets})


class Joined:
    """Two sets of examples as one: the first's indices, then the second's."""

    def __init__(self, first: TargetRows, second: PackedRows) -> None:
        self.first, self.second = first, second
        self.lengths = [*first.lengths, *second.lengths]
        self.weights = [*first.weights, *second.weights]

    def __len__(self) -> int:
        return len(self.lengths)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Rows of either as a batch."""
        n = len(self.first)
        return collate([self.first.row(i) if i < n else self.second.row(i - n) for i in indices])


def collate(rows: Sequence[Encoded]) -> Batch:
    """Encoded rows as a batch; `targets["tokens"]` (B, T) is the token that follows each position."""
    select_BT = pad_right([row.marks[1:] for row in rows], False, CPU).bool()
    targets_BT = pad_right([row.tokens[1:] for row in rows], 0, CPU)
    return Batch(inputs_of([row.without_last() for row in rows], CPU), select_BT, {"tokens": targets_BT})


def lm_loss(model: nn.Module, batch: Batch, z_loss: float = 0.0) -> tuple[Tensor, Sums]:
    """Next-token cross-entropy summed over targets, in nats; `z_loss` times the squared log-normaliser is added.

    z-loss: Chowdhery et al. 2022 (PaLM), section 5.
    """
    logits_NV = model(batch.inputs, batch.select)
    targets_N = batch.targets["tokens"][batch.select]
    nll = nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
    sums = {"nll": nll, "right": (logits_NV.argmax(-1) == targets_N).sum()}
    if not z_loss:
        return nll, sums
    return nll + z_loss * logits_NV.logsumexp(-1).square().sum(), sums


def describe_lm(sums: dict[str, float], denominator: float) -> dict[str, float]:
    """Per-target metrics of a step: `loss` (nats, with z-loss), `nll`, `accuracy`."""
    return {
        "loss": sums["loss"] / denominator,
        "nll": sums["nll"] / denominator,
        "accuracy": sums["right"] / denominator,
    }


@torch.no_grad()
def evaluate_lm(
    model: nn.Module, rows: PackedRows | TargetRows, accelerator: Accelerator, tokens: int
) -> dict[str, float]:
    """Mean loss over every target of `rows` (nats per token), its perplexity, and next-token accuracy."""
    totals: Sums = {}
    for group in share_of(rows.lengths, accelerator, tokens):
        loss_sum, sums = lm_loss(model, rows.collate(group).to(accelerator.device))
        add_sums(totals, {"loss": loss_sum, **sums})
    if not totals:
        totals = {name: torch.zeros((), device=accelerator.device) for name in ("loss", "nll", "right")}
    gathered = gather_sums(accelerator, totals)
    n_targets = sum(rows.weights)
    loss = gathered["nll"] / n_targets
    return {
        "validation_loss": loss,
        "validation_perplexity": math.exp(min(loss, 50.0)),
        "validation_accuracy": gathered["right"] / n_targets,
    }


def share_of(lengths: Sequence[int], accelerator: Accelerator, tokens: int) -> Iterator[list[int]]:
    """This process's micro-batches of like length over all rows, without gradients (so counts may differ)."""
    mine = list(range(accelerator.process_index, len(lengths), accelerator.num_processes))
    for group in length_batches([lengths[index] for index in mine], tokens_per_batch=tokens):
        yield [mine[index] for index in group]
