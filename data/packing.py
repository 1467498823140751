"""Packing: token lists into rows that waste little and lose nothing.

Documents (pretraining) are one stream: each followed by the end-of-text token, cut into rows of equal length, so that
a row may hold parts of several documents, as GPT-3's did [Brown et al. 2020, appendix B]; nothing is masked between
them. Examples (SFT, reward models) must not see each other: `pack_examples` only says which of them share a row, by
best-fit decreasing [Johnson 1974], and the caller keeps them apart by position ids; `length_batches` groups examples
of like length, so that padding is small. Both return indices and keep no state.

Left out: BOS-aligned packing that crops documents (nanochat), because it loses tokens.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gptlife.data.errors import UserError

LIKE = 0.75
"""Rows of one batch have at least this share of its longest row's length, where `length_batches` can have it so."""


class Packed(NamedTuple):
    """Rows of a token stream."""

    rows_NT: np.ndarray
    """(N, row_length) int32 ids; the last row is filled up with `eos`."""
    mask_NT: np.ndarray
    """(N, row_length) bool: True for tokens of the stream, False for the filling."""


def pack_documents(docs: Iterable[list[int]], eos: int, row_length: int) -> Packed:
    """One stream of all documents in order, `eos` after each, cut into rows of `row_length` tokens."""
    if row_length < 1:
        raise UserError(f"row_length: must be at least 1 token, found {row_length}; raise it")
    stream = array("i")
    for ids in docs:
        stream.extend(ids)
        stream.append(eos)
    row_count = -(-len(stream) // row_length)
    flat = np.full(row_count * row_length, eos, dtype=np.int32)
    flat[: len(stream)] = np.frombuffer(stream, dtype=np.int32) if stream else []
    mask = np.arange(flat.size) < len(stream)
    return Packed(flat.reshape(row_count, row_length), mask.reshape(row_count, row_length))


def pack_examples(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of examples that share a row of `capacity` tokens, by best-fit decreasing.

    Longest first, each into the row where the least space remains after it. Equal lengths keep their order, indices
    ascend within a row, rows stand in the order of their first index: the same lengths give the same rows.

    Raises:
        UserError: an example is longer than `capacity`.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > capacity:
            raise UserError(f"example {index}: {length} tokens, a row holds {capacity}; drop it or raise the length")
        fit = bisect_left(spaces, (length, -1))
        space, row = spaces.pop(fit) if fit < len(spaces) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(spaces, (space - length, row))
    return sorted(sorted(row) for row in rows)


def length_batches(
    lengths: Sequence[int], *, tokens_per_batch: int | None = None, max_rows: int | None = None
) -> list[list[int]]:
    """Indices of examples in batches of like length, longest batch first (so that too large a batch fails at once).

    A batch has at most `max_rows` rows, and at most `tokens_per_batch` tokens counted with padding (rows times longest
    row); an example that is longer alone makes a batch of its own. With `tokens_per_batch`, rows shorter than `LIKE`
    of the longest go to another batch, unless the batch is still small. At least one of the limits must be given.
    """
    if tokens_per_batch is None and max_rows is None:
        raise ValueError("give tokens_per_batch or max_rows")
    if min(limit for limit in (tokens_per_batch, max_rows) if limit is not None) < 1:
        raise ValueError(f"limits must be positive, found {tokens_per_batch} tokens, {max_rows} rows")
    most_rows = len(lengths) if max_rows is None else max_rows
    batches: list[list[int]] = []
    width = 0  # longest row of the last batch
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rows = len(batches[-1]) if batches else most_rows
        full = rows >= most_rows
        if tokens_per_batch is not None:
            full |= (rows + 1) * width > tokens_per_batch
            # Rather a short batch than one that is padded a lot, once it is large enough to be worth a forward pass.
            full |= lengths[index] < LIKE * width and rows * width >= tokens_per_batch / 8
        if full:
            batches.append([])
            width = max(lengths[index], 1)
        batches[-1].append(index)
    return batches
