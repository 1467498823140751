"""A batch of examples."""

from __future__ import annotations

import torch

from gptlife.data.tokens import Encoded
from gptlife.stages.modeling.forward import (
    CPU,
    Batch,
    inputs_of,
    last_positions,
    marks_of,
    pad_right,
    prompt_inputs,
    shared_inputs,
)

ROWS = [Encoded.prompt([5, 6]).followed_by([7, 8, 9]), Encoded.prompt([5]), Encoded([3, 4, 2], [False, True, False])]


def test_a_batch_moves_whole() -> None:
    tokens = torch.zeros(2, 3)
    batch = Batch({"input_ids": tokens, "pixels": tokens}, tokens.bool(), {"tokens": tokens})
    moved = batch.to(torch.device("meta"))
    everything = [*moved.inputs.values(), moved.select, *moved.targets.values()]
    assert {tensor.device.type for tensor in everything} == {"meta"}
    assert (list(moved.inputs), list(moved.targets)) == (["input_ids", "pixels"], ["tokens"])
    assert batch.select.device.type == "cpu"


def test_padding() -> None:
    assert pad_right([[3], [4, 5]], 9, CPU).tolist() == [[3, 9], [4, 5]]
    assert pad_right([[]], 9, CPU).shape == (1, 0)


def test_last_positions() -> None:
    assert last_positions(ROWS, CPU).int().tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]


def test_rows_and_their_marks_lie_alike() -> None:
    inputs = inputs_of(ROWS, CPU)
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        "input_ids": [[5, 6, 7, 8, 9], [5, 0, 0, 0, 0], [3, 4, 2, 0, 0]]
    }
    assert inputs["input_ids"].dtype == torch.int64
    assert marks_of(ROWS, CPU).dtype == torch.bool
    assert inputs["input_ids"][marks_of(ROWS, CPU)].tolist() == [7, 8, 9, 4]


def test_prompts_are_padded_on_the_left() -> None:
    inputs = prompt_inputs([Encoded.prompt([5, 6, 7]), Encoded.prompt([8])], 9, CPU)
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        "input_ids": [[5, 6, 7], [9, 9, 8]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
        "position_ids": [[0, 1, 2], [0, 0, 0]],
    }
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}


def test_a_prompt_once_for_its_answers() -> None:
    """[5 6] with 7 and 8 9 behind it, beside [3] with 4 and 2."""
    groups = [[Encoded.prompt([5, 6]).followed_by(answer) for answer in ([7], [8, 9])],
              [Encoded.prompt([3]).followed_by(answer) for answer in ([4], [2])]]  # fmt: skip
    inputs, select = shared_inputs(groups, CPU)
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9], [3, 4, 2, 0, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 2, 3], [0, 1, 1, 0, 0]]
    assert select.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 1, 0, 0]]
    seen = inputs["attention_mask"][0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
