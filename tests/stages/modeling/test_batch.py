"""A batch of examples."""

from __future__ import annotations

import torch

from gptlife.stages.modeling.batch import Batch


def test_a_batch_moves_whole() -> None:
    tokens = torch.zeros(2, 3)
    batch = Batch({"input_ids": tokens, "pixels": tokens}, tokens.bool(), {"tokens": tokens})
    moved = batch.to(torch.device("meta"))
    everything = [*moved.inputs.values(), moved.select, *moved.targets.values()]
    assert {tensor.device.type for tensor in everything} == {"meta"}
    assert (list(moved.inputs), list(moved.targets)) == (["input_ids", "pixels"], ["tokens"])
    assert batch.select.device.type == "cpu"
