"""Packing: which examples share a row or a batch, so that little is padded and nothing is lost.

Examples of SFT and of reward models must not attend to each other. `pack_examples` says which of them share a row, by
best-fit decreasing [Johnson 1974], and the caller separates them by position ids. `length_batches` groups examples of
similar length. Both return indices and keep no state. Pretraining reads one stream of documents in rows instead
(`stages/training/lm.py: PackedRows`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from gptlife.data.errors import UserError

LIKE = 0.75
"""Rows of one batch have at least this share of its longest row's length, if `length_batches` can arrange it."""


def pack_examples(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of examples that share a row of `capacity` tokens, by best-fit decreasing.

    Longest first, each into the row that it leaves the least space in. Equal lengths keep their order, indices ascend
    within a row, and rows are sorted by their first index: the same lengths give the same rows.

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


def length_batches(lengths: Sequence[int], *, tokens_per_batch: int) -> list[list[int]]:
    """Indices of examples in batches of similar length, longest batch first (so that too large a batch fails early).

    A batch has at most `tokens_per_batch` tokens, padding included (rows times longest row); a longer example is a
    batch of its own. Rows shorter than `LIKE` of the longest go to another batch, unless the batch is still small.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be positive, found {tokens_per_batch}")
    batches: list[list[int]] = []
    width = 0  # longest row of the last batch
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rows = len(batches[-1]) if batches else 0
        full = not batches or (rows + 1) * width > tokens_per_batch
        # A short batch wastes less than much padding, once it is large enough to be worth a forward pass.
        full |= lengths[index] < LIKE * width and rows * width >= tokens_per_batch / 8
        if full:
            batches.append([])
            width = max(lengths[index], 1)
        batches[-1].append(index)
    return batches
