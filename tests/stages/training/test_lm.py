"""Rows, their loss and validation, against plain transformers on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gptlife.data.tokens import Encoded
from gptlife.stages.modeling.forward import SelectedLogits
from gptlife.stages.training import lm

ROWS = [
    Encoded([5, 6, 7, 8, 9, 10], [False, False, True, True, False, True]),
    Encoded([11, 12, 13], [False, True, True]),
    Encoded([14, 15, 16, 17], [False, False, False, True]),
]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 200), width=st.integers(1, 50), size=st.integers(1, 5))
def test_every_token_but_the_first_is_a_target_once(n: int, width: int, size: int) -> None:
    rows = lm.PackedRows(np.arange(1, n + 1, dtype=np.int32), width)
    seen: list[int] = []
    for start in range(0, len(rows), size):
        batch = rows.collate(range(start, min(start + size, len(rows))))
        found = batch.targets["tokens"][batch.select]
        # The stream counts up, so the token before a target is the target less one.
        assert_close(batch.inputs["input_ids"][batch.select], found - 1)
        seen += found.tolist()
    assert seen == list(range(2, n + 1))
    assert sum(rows.weights) == n - 1
    assert max(rows.lengths) <= width


def test_no_row_without_a_target() -> None:
    assert len(lm.PackedRows(np.asarray([3], dtype=np.int32), 4)) == 0


def test_targets_are_what_the_marks_say() -> None:
    rows = lm.TargetRows(ROWS)
    batch = rows.collate([0, 1])
    assert rows.weights == [3.0, 2.0, 1.0]
    assert rows.lengths == [5, 2, 3]
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9], [11, 12, 0, 0, 0]]
    assert batch.targets["tokens"][batch.select].tolist() == [7, 8, 10, 12, 13]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_loss_is_that_of_transformers(kind: str, small: Callable[..., Any]) -> None:
    model = small(kind)
    ids = torch.arange(5, 25).unsqueeze(0)
    theirs = model(input_ids=ids, labels=ids).loss
    rows = lm.PackedRows(ids[0].numpy().astype(np.int32), 64)
    total, sums = lm.lm_loss(SelectedLogits(model), rows.collate([0]))
    assert_close(total / 19, theirs, rtol=0, atol=1e-5)
    assert_close(sums["nll"], total)
    with pytest.raises(AssertionError):  # twin: the sum over one target more
        assert_close(total / 20, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_masked_loss_is_that_of_transformers(small: Callable[..., Any]) -> None:
    model = small()
    total, sums = lm.lm_loss(SelectedLogits(model), lm.TargetRows(ROWS).collate([0, 1, 2]))
    expected, right = 0.0, 0
    for ids, marks in ((row.tokens, row.marks) for row in ROWS):
        labels = [token if mark else -100 for token, mark in zip(ids, marks, strict=True)]
        answer = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
        expected += float(answer.loss) * sum(marks)
        best = answer.logits[0].argmax(-1).tolist()
        right += sum(mark and best[place - 1] == ids[place] for place, mark in enumerate(marks))
    assert float(total) == pytest.approx(expected, abs=1e-4)
    assert float(sums["right"]) == right


@torch.no_grad()
def test_z_loss(small: Callable[..., Any]) -> None:
    model = small()
    ids = torch.tensor([[5, 6, 7, 8]])
    log_z = model(input_ids=ids[:, :-1]).logits.double().exp().sum(-1).log()
    rows = lm.PackedRows(ids[0].numpy().astype(np.int32), 8)
    plain, _ = lm.lm_loss(SelectedLogits(model), rows.collate([0]))
    with_z, sums = lm.lm_loss(SelectedLogits(model), rows.collate([0]), 0.01)
    assert float(with_z - plain) == pytest.approx(0.01 * float(log_z.square().sum()), rel=1e-4)
    assert_close(sums["nll"], plain)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("training", [False, True])
def test_packed_conversations_do_not_see_each_other(kind: str, training: bool, small: Callable[..., Any]) -> None:
    reader = SelectedLogits(small(kind)).train(training)
    packed = lm.PackedConversations(ROWS, [[0, 1], [2]])
    batch = packed.collate([0, 1])
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 0, 1, 2, 3]]
    alone = []
    for row in range(3):
        one = lm.TargetRows(ROWS).collate([row])
        alone.append(reader(one.inputs, one.select))
    together = reader(batch.inputs, batch.select)
    assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):  # twin: without positions they do
        assert_close(
            reader({"input_ids": batch.inputs["input_ids"]}, batch.select), torch.cat(alone), rtol=0, atol=1e-5
        )
    assert (packed.lengths, packed.weights) == ([7, 3], [5.0, 1.0])


def test_joined_rows() -> None:
    joined = lm.Joined(lm.TargetRows(ROWS), lm.PackedRows(np.arange(20, 31, dtype=np.int32), 4))
    assert len(joined) == 3 + 3
    assert joined.lengths == [5, 2, 3, 4, 4, 2]
    batch = joined.collate([1, 4])
    assert batch.targets["tokens"][batch.select].tolist() == [12, 13, 25, 26, 27, 28]


@pytest.mark.parametrize("tokens", [1, 12, 1000])
def test_validation_is_a_mean_over_targets(tokens: int, small: Callable[..., Any]) -> None:
    model = small()
    rows = lm.TargetRows(ROWS)
    found = lm.evaluate_lm(SelectedLogits(model), rows, Accelerator(cpu=True), tokens)
    total = 0.0
    for ids, marks in ((row.tokens, row.marks) for row in ROWS):
        labels = [token if mark else -100 for token, mark in zip(ids, marks, strict=True)]
        total += float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.detach()) * sum(marks)
    assert found["validation_loss"] == pytest.approx(total / 6, abs=1e-5)
    assert found["validation_perplexity"] == pytest.approx(math.exp(total / 6), rel=1e-4)
