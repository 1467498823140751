"""Schedules by hand, micro-batches over processes, decay groups, and a step that is not taken."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.stages.training import loop, setup
from gptlife.stages.training.config import TrainingConfig


def config(**fields: Any) -> TrainingConfig:
    return decode(TrainingConfig, {"learning_rate": 1.0, **fields}, "test")


@pytest.mark.parametrize(
    ("progress", "share"),
    # Warm-up over a fifth; then 0.1 + 0.9 (1 + cos(pi x)) / 2 with x = 0, 1/4, 1/2, 3/4, 1.
    [(0.05, 0.25), (0.2, 1.0), (0.4, 0.8681980515), (0.6, 0.55), (0.8, 0.2318019485), (1.0, 0.1), (7.0, 0.1)],
)
def test_cosine(progress: float, share: float) -> None:
    assert setup.cosine(progress, 0.2, 0.1) == pytest.approx(share, abs=1e-9)
    assert setup.cosine(progress, 0.2, 0.1) != pytest.approx(share + 1e-3, abs=1e-9)


def test_epochs() -> None:
    plan = setup.epochs(config(), 10, 4, 1.5, 0)
    assert plan.sizes == [4, 4, 4, 3]
    # Steps 0 to 3 of 4, no warm-up: x = 0, 1/4, 1/2, 3/4.
    assert plan.rates == pytest.approx([1.0, 0.8681980515, 0.55, 0.2318019485])


def test_epochs_with_warmup() -> None:
    plan = setup.epochs(config(learning_rate=2.0), 80, 8, 1, 4)
    assert plan.rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert plan.rates[5] < 2.0


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 20), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=10), seed=st.integers(0, 5))
def test_every_epoch_has_every_example_once(n: int, sizes: list[int], seed: int) -> None:
    plan = setup.Schedule(n, sizes, [0.0] * len(sizes), seed)
    stream = [row for step in range(len(sizes)) for row in plan.batch(step)]
    assert [len(plan.batch(step)) for step in range(len(sizes))] == sizes
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))
    # A function of the step alone: backwards it gives the same batches.
    again = setup.Schedule(n, sizes, [0.0] * len(sizes), seed)
    backwards = [again.batch(step) for step in reversed(range(len(sizes)))]
    assert [row for batch in reversed(backwards) for row in batch] == stream


def test_epochs_differ_in_order() -> None:
    plan = setup.Schedule(50, [50, 50], [0.0, 0.0], 0)
    assert plan.batch(0) != plan.batch(1)
    assert plan.batch(0) != setup.Schedule(50, [50], [0.0], 1).batch(0)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=25),
    processes=st.integers(1, 5),
    tokens=st.integers(1, 90),
)
def test_micro_batches_share_a_batch(lengths: list[int], processes: int, tokens: int) -> None:
    batch = list(reversed(range(len(lengths))))
    shares = [
        loop.micro_batches(batch, lengths, SimpleNamespace(num_processes=processes, process_index=rank), tokens)
        for rank in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(index for share in shares for group in share for index in group) == sorted(batch)
    for group in (group for share in shares for group in share if len(group) > 1):
        assert max(lengths[index] for index in group) * len(group) <= tokens


def test_seeds_of_steps_and_ranks_differ() -> None:
    def draw(*where: int) -> float:
        loop.seed_step(*where)
        return float(torch.rand(()))

    places = [(seed, step, rank) for seed in (0, 1) for step in (0, 1, 11) for rank in (0, 1)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(0, 1, 1) == draw(0, 1, 1)


def test_accumulated_gradient_is_that_of_the_whole_batch() -> None:
    accelerator = Accelerator(cpu=True)
    inputs, model = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]), torch.nn.Linear(2, 1, bias=False)

    def loss(group: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = model(inputs[group]).sum()
        return total, {"rows": torch.tensor(float(len(group)))}

    for groups in ([[0, 1, 2]], [[0], [1, 2]], [[2], [0], [1]]):
        model.zero_grad()
        sums = loop.backward_over(accelerator, model, groups, loss, 3.0)
        # d/dw of the mean of w.x is the mean of x: (4.5, 5) / 3.
        assert_close(model.weight.grad, torch.tensor([[1.5, 5.0 / 3.0]]))
        assert float(sums["rows"]) == 3.0


def test_gradient_norm_and_clipping() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    norm = loop.finite_step(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), lr=1.0), 1.0, "here")
    assert norm == pytest.approx(5.0)
    assert_close(model.weight.detach(), before - torch.tensor([[0.6, 0.8]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_step_on_a_gradient_that_is_not_finite(bad: float) -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[1.0, bad]])
    with pytest.raises(UserError, match=r"^sft: step 3: gradient norm is (nan|inf); nothing was stepped"):
        loop.finite_step(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), lr=1.0), 1.0, "sft: step 3")
    assert torch.equal(model.weight, before)


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    decayed, plain = setup.adamw(model, config(weight_decay=0.5)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert [p.ndim for p in plain["params"]] == [1, 1, 1]
    assert decayed["betas"] == (0.9, 0.95)
