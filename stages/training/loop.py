"""The supervised training loop of `pretrain`, `sft` and `reward_model`, and the accumulation that PPO shares.

One optimizer step:

    rows     <- the schedule's batch of this step (global: every process knows all of it)
    share    <- this process's rows, cut into micro-batches of like length
    loss     <- sum over real targets / the global batch's count of them     ("sums before means")
    clip, stop if not finite, AdamW at the schedule's learning rate

Because the denominator is the whole batch's count, known before any forward pass, the update doesn't depend on
micro-batch, accumulation, packing or world size. Because rows and dropout are functions of (seed, step, rank),
resuming is exact.

Left out: `transformers.Trainer`, whose accumulation is fixed (no batch ramp), whose checkpoints aren't atomic and
whose data path can't hold a prompt's K answers in one batch element. A test holds our losses equal to TRL's.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gptlife.data.errors import UserError
from gptlife.data.packing import length_batches
from gptlife.stages.modeling.forward import Batch
from gptlife.stages.runtime import signals
from gptlife.stages.runtime.artifact import CHECKPOINTS
from gptlife.stages.runtime.metric_log import MetricLog
from gptlife.stages.training.checkpoints import Checkpoints
from gptlife.stages.training.config import TrainingConfig
from gptlife.stages.training.setup import Examples, Schedule, adamw

Sums = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Sums]]
Describe = Callable[[dict[str, float], float], dict[str, float]]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make everything random in a step a function of (seed, step, rank)."""
    torch.manual_seed(random.Random(f"{seed} {step} {rank}").getrandbits(63))


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], accelerator: Accelerator, tokens: int
) -> list[list[int]]:
    """This process's share of a global batch in micro-batches of like length.

    Every process gets the same number (gradients are exchanged at the last one), filled up with empty ones.
    """

    def cut(rank: int) -> list[list[int]]:
        mine = batch[rank :: accelerator.num_processes]
        groups = length_batches([lengths[index] for index in mine], tokens_per_batch=tokens)
        return [[mine[index] for index in group] for group in groups]

    most = max(len(cut(rank)) for rank in range(accelerator.num_processes))
    mine = cut(accelerator.process_index)
    return mine + [[] for _ in range(most - len(mine))]


def add_sums(totals: Sums, sums: Sums) -> None:
    """Add detached `sums` into `totals`, key by key."""
    for name, value in sums.items():
        totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value.detach().float()


def gather_sums(accelerator: Accelerator, totals: Sums) -> dict[str, float]:
    """Totals over all processes as plain numbers (one transfer)."""
    names = list(totals)
    stacked = torch.stack([totals[name] for name in names])
    return dict(zip(names, accelerator.reduce(stacked, reduction="sum").tolist(), strict=True))


def backward_over(
    accelerator: Accelerator,
    model: nn.Module,
    groups: Sequence[Sequence[int]],
    loss: Callable[[Sequence[int]], tuple[Tensor, Sums]],
    denominator: float,
    last: bool = True,
) -> Sums:
    """Accumulate the gradient of (sum of losses / denominator) over micro-batches; the sums of their statistics.

    Gradients cross processes at the last micro-batch only, and not at all with `last=False` (the caller accumulates
    more). The factor `num_processes` undoes the mean that data-parallel training takes over processes.
    """
    totals: Sums = {}
    for number, group in enumerate(groups):
        if last and number == len(groups) - 1:
            loss_sum, sums = loss(group)
            accelerator.backward(loss_sum * (accelerator.num_processes / denominator))
        else:
            with accelerator.no_sync(model):
                loss_sum, sums = loss(group)
                accelerator.backward(loss_sum * (accelerator.num_processes / denominator))
        add_sums(totals, {"loss": loss_sum, **sums})
    return totals


def finite_norm(accelerator: Accelerator, model: nn.Module, max_norm: float, place: str) -> float:
    """Clip the gradient; its norm before clipping.

    Raises:
        UserError: when the norm is not finite. The caller steps no optimizer before all its norms are known.
    """
    norm = float(accelerator.clip_grad_norm_(model.parameters(), max_norm))
    if not math.isfinite(norm):
        raise UserError(f"{place}: gradient norm is {norm}; nothing was stepped; lower learning_rate, or see its rows")
    return norm


def step_with(optimizer: Any) -> None:
    """Step, and free the gradients."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def finite_step(accelerator: Accelerator, model: nn.Module, optimizer: Any, max_norm: float, place: str) -> float:
    """Clip and step; the gradient norm before clipping.

    Raises:
        UserError: before the optimizer moves, when the norm is not finite.
    """
    norm = finite_norm(accelerator, model, max_norm, place)
    step_with(optimizer)
    return norm


class Best:
    """The weights with the lowest value of one validation metric so far, kept on disk beside the checkpoints."""

    def __init__(self, output: Path, accelerator: Accelerator, metric: str | None) -> None:
        self.path, self.accelerator, self.metric = output / CHECKPOINTS / "best.safetensors", accelerator, metric
        self.kept: dict[str, Any] | None = None
        """The best so far: its `step` and its validation `metrics`."""

    def consider(self, model: nn.Module, validated: dict[str, float], step: int) -> None:
        """Keep these weights when they are the best."""
        if self.metric is None:
            return
        if self.kept is not None and validated[self.metric] >= self.kept["metrics"][self.metric]:
            return
        self.kept = {"step": step, "metrics": validated}
        state = self.accelerator.get_state_dict(model)
        if self.accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".partial")
            save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}, str(beside))
            beside.rename(self.path)
        self.accelerator.wait_for_everyone()

    def restore(self, model: nn.Module, steps: int) -> dict[str, Any]:
        """Put the best weights back into `model`, unless they are the last; their validation metrics, `best_step`."""
        if self.kept is None:
            return {}
        if self.kept["step"] != steps:
            self.accelerator.unwrap_model(model).load_state_dict(load_file(str(self.path)))
        return {**self.kept["metrics"], "best_step": self.kept["step"]}


@dataclass(frozen=True)
class _Descent:
    """Takes optimizer steps; the rows and the random draws of a step are a function of its number."""

    model: nn.Module
    optimizer: Any
    examples: Examples
    schedule: Schedule
    loss: Loss
    describe: Describe
    config: TrainingConfig
    accelerator: Accelerator
    name: str

    def take(self, step: int) -> tuple[dict[str, float], int]:
        """Step number `step` (from 0) on its global batch; its metrics, and the tokens that it read."""
        tick, batch = time.monotonic(), self.schedule.batch(step)
        seed_step(self.config.seed, step, self.accelerator.process_index)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rates[step]
        denominator = sum(self.examples.weights[index] for index in batch)
        groups = micro_batches(batch, self.examples.lengths, self.accelerator, self.config.micro_batch_tokens)
        group_loss = partial(self._group_loss, batch[0])
        totals = backward_over(self.accelerator, self.model, groups, group_loss, denominator)
        sums, place = gather_sums(self.accelerator, totals), f"{self.name}: step {step + 1}"
        if not math.isfinite(sums["loss"]):
            raise UserError(f"{place}: loss is {sums['loss']} on rows {batch[:8]}; lower learning_rate")
        norm = finite_step(self.accelerator, self.model, self.optimizer, self.config.max_grad_norm, place)
        read = sum(self.examples.lengths[index] for index in batch)
        metrics = {
            **self.describe(sums, denominator),
            "grad_norm": norm,
            "learning_rate": self.schedule.rates[step],
            "tokens_per_second": read / (time.monotonic() - tick),
        }
        return metrics, read

    def _group_loss(self, spare: int, group: Sequence[int]) -> tuple[Tensor, Sums]:
        """The loss of one micro-batch; an empty one costs a forward pass on `spare` and counts nothing."""
        batch = self.examples.collate(group or [spare]).to(self.accelerator.device)
        loss_sum, sums = self.loss(self.model, batch)
        return (loss_sum, sums) if group else (loss_sum * 0.0, {name: value * 0.0 for name, value in sums.items()})


def fit(
    model: nn.Module,
    examples: Examples,
    schedule: Schedule,
    loss: Loss,
    config: TrainingConfig,
    accelerator: Accelerator,
    output: Path,
    name: str,
    *,
    describe: Describe,
    validate: Callable[[nn.Module], dict[str, float]],
    validate_every: int,
    keep_best: str | None = None,
) -> dict[str, Any]:
    """Train `model` in place; metrics of the last step, validation of the final weights, cost of the run.

    Args:
        loss: (model, batch) -> (loss summed over targets, further sums); divided by the batch's summed weights here.
        describe: (sums over the step, denominator) -> metrics for the log.
        validate: metrics of the model on held-out data, every `validate_every` steps (0: never) and at the end.
        keep_best: the validation metric (lower is better) by which the final weights are chosen; None: the last.
            The validation metrics returned are then those of the chosen weights, and `best_step` says which they are.

    Raises:
        UserError: when a loss or gradient is not finite; nothing was stepped, the last checkpoint stays.
    """
    model, optimizer = accelerator.prepare(model, adamw(model, config))
    descent = _Descent(model, optimizer, examples, schedule, loss, describe, config, accelerator, name)
    best = Best(output, accelerator, keep_best)
    every, keep = config.checkpoint_seconds, config.checkpoints_kept
    checkpoints = Checkpoints(output, accelerator, every, keep, files=[best.path])
    state = checkpoints.restore() or {"step": 0, "tokens": 0, "seconds": 0.0, "best": None}
    start, tokens, total = int(state["step"]), int(state["tokens"]), len(schedule.sizes)
    best.kept, begun = state["best"], time.monotonic() - float(state["seconds"])
    metrics: dict[str, Any] = {}
    log = MetricLog(output, name, total, start=start, track=config.track, main=accelerator.is_main_process)
    with log, signals.stop_after_step():
        for step in range(start + 1, total + 1):
            taken, read = descent.take(step - 1)
            tokens += read
            metrics = {**taken, "tokens": tokens}
            validating = step == total or bool(validate_every and step % validate_every == 0)
            if validating:
                held_out = validate(model.eval())
                metrics |= held_out
                best.consider(model, held_out, step)
            if validating or step % config.log_every == 0:
                log.log(step, metrics, f"loss {metrics['loss']:.3f} {metrics['tokens_per_second']:,.0f} tokens/s")
            if step < total:
                kept = {"tokens": tokens, "seconds": time.monotonic() - begun, "best": best.kept}
                checkpoints.keep_up(step, kept)
    metrics |= best.restore(model, total)
    seconds = time.monotonic() - begun
    rate = round(tokens / max(seconds, 1e-9), 1)
    cost = {"steps": total, "seconds": round(seconds, 2), "tokens_per_second": rate, **checkpoints.cost()}
    return {**metrics, **cost}
