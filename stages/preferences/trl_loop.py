"""How `dpo` and `kto` go through `transformers.Trainer`'s loop: metric log, checkpoints by time, and resuming.

- Dropout is seeded by (seed, step, rank), as in `loop.py`; the schedule says which rows and which rate a step has.
- A checkpoint counts only with a list, written last, of its files and their sums (`checkpoints.py`): the Trainer
  doesn't write its own atomically, and resumes without a word from one that lacks its optimizer, to another result.
- A gradient that is not finite stops the stage before the optimizer moves; the Trainer would step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded
from gptlife.stages.modeling import lengths, loading
from gptlife.stages.modeling.adapters import merge_lora
from gptlife.stages.modeling.forward import SelectedLogits
from gptlife.stages.preferences.config import PreferenceConfig
from gptlife.stages.preferences.implicit_rewards import ImplicitRewards, Measure
from gptlife.stages.preferences.trl_trainer import EncodedRows, Row, quiet, settings_of
from gptlife.stages.runtime import signals
from gptlife.stages.runtime.device import peak_gpu_memory_mb
from gptlife.stages.runtime.files import sync_directory
from gptlife.stages.runtime.metric_log import MetricLog
from gptlife.stages.runtime.notices import quiet_libraries
from gptlife.stages.training.checkpoints import Checkpoints
from gptlife.stages.training.loop import seed_step
from gptlife.stages.training.setup import epochs

_NAMES = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
    "kl": "kl",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
}
"""TRL's names of what a step logs, and ours. At the first step rewards are 0, and TRL counts a tie as wrong."""


def train(
    kind: type[EncodedRows],
    config: PreferenceConfig,
    output: Path,
    policy: Path,
    options: Mapping[str, Any],
    encode: Callable[[Any, int], tuple[list[Row], dict[str, tuple[Sequence[Encoded], Measure]]]],
) -> dict[str, Any]:
    """Train a policy against itself as it was, or go on from the newest whole checkpoint, and save it.

    Args:
        options: TRL's settings of the loss.
        encode: (tokenizer, most tokens) -> rows in TRL's columns, and what is measured: `validation` during the
            training, `train` at its end.

    Returns:
        Metrics of the last step, of what was measured, and what the run cost.

    Raises:
        UserError: for lengths that don't fit the model, a batch that the processes can't share, a gradient that is not
            finite.
    """
    quiet_libraries()
    args = settings_of(kind, config, output, options)
    tokenizer, model = loading.load_tokenizer(policy), loading.load_causal(policy)
    rows, measured = encode(tokenizer, lengths.limit_of(config.max_length, model, f"{kind.stage}.max_length"))
    batch = config.batch_size
    steps = max(1, round(len(rows) * config.epochs / batch))
    plan = epochs(config, len(rows), batch, steps * batch / len(rows), config.warmup_steps)
    # The policy is still its own reference here, in a resumed run too: checkpoints are loaded later. Without
    # gradients four times the tokens fit into a forward pass.
    reader = SelectedLogits(model.to(args.device)).eval()
    measures = {
        name: ImplicitRewards(reader, config.beta, 4 * config.micro_batch_tokens, *parts)
        for name, parts in measured.items()
    }
    # With adapters the reference is the model without them; they are put inside `model`, so `reader` sees them too.
    reference = loading.load_causal(policy) if config.lora is None else None
    trainer: Any = kind(config, plan, args, model, reference, tokenizer, rows)
    metrics = _fit(trainer, output, measures["validation"], config.validate_every or max(1, round(steps / 4)))
    metrics |= measures["train"]()
    if trainer.accelerator.is_main_process:
        loading.save(merge_lora(trainer.model), tokenizer, output)
    return {**metrics, "peak_gpu_memory_mb": peak_gpu_memory_mb(args.device)}


def _fit(trainer: Any, output: Path, validate: Callable[[], dict[str, float]], validate_every: int) -> dict[str, Any]:
    config, total, main = trainer.ours, len(trainer.plan.sizes), trainer.accelerator.is_main_process
    checkpoints = TrainerCheckpoints(output, trainer.accelerator, config.checkpoint_seconds, config.checkpoints_kept)
    newest, kept = checkpoints.newest()
    state = kept or {"step": 0, "seconds": 0.0}
    journal = MetricLog(output, trainer.stage, total, start=int(state["step"]), track=config.track, main=main)
    with journal, signals.stop_after_step():
        reporter = Reporter(trainer, journal, checkpoints, validate, validate_every, state)
        trainer.add_callback(reporter)
        with quiet():
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    trainer.model.eval()
    seconds = time.monotonic() - reporter.begun
    return {
        **reporter.metrics,
        "steps": total,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(reporter.tokens / max(seconds, 1e-9), 1),
        **checkpoints.cost(),
    }


class TrainerCheckpoints(Checkpoints):
    """The Trainer's checkpoints, of which only those count that were sealed after all their files were written."""

    def path(self, step: int) -> Path:
        """Where the Trainer writes."""
        return self.folder / f"checkpoint-{step}"

    def mark(self, step: int, state: dict[str, Any]) -> None:
        """Seal the checkpoint of `step` and forget old ones; every process calls it when it has written its part."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.seal(self.path(step), step, state)
            sync_directory(self.folder)
            self.forget_old()
        self.accelerator.wait_for_everyone()


class Reporter(TrainerCallback):
    """Seeds every step, stops before a broken one, writes the metric log, and asks for checkpoints by time."""

    def __init__(
        self,
        trainer: Any,
        journal: MetricLog,
        checkpoints: TrainerCheckpoints,
        validate: Callable[[], dict[str, float]],
        validate_every: int,
        state: dict[str, Any],
    ) -> None:
        self.trainer, self.journal, self.checkpoints = trainer, journal, checkpoints
        self.validate, self.validate_every = validate, validate_every
        self.begun = self.tick = time.monotonic() - float(state["seconds"])
        self.total = len(trainer.plan.sizes)
        self.metrics: dict[str, Any] = {}
        self.tokens = sum(self._read_in(step) for step in range(int(state["step"])))

    def _read_in(self, step: int) -> int:
        return sum(self.trainer.lengths[index] for index in self.trainer.plan.batch(step))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make everything random in the step a function of (seed, step, rank)."""
        self.tick = time.monotonic()
        seed_step(self.trainer.ours.seed, state.global_step, args.process_index)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop before the optimizer steps if the gradient is not finite."""
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            place = f"{self.trainer.stage}: step {state.global_step + 1}"
            raise UserError(f"{place}: the gradient is not finite; nothing was stepped; lower learning_rate or beta")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint when it is time."""
        if state.global_step < self.total and self.checkpoints.due():
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """One line of the metric log; TRL logs every step."""
        if not logs or "loss" not in logs:
            return
        step, config, model = state.global_step, self.trainer.ours, self.trainer.model
        read = self._read_in(step - 1)
        self.tokens += read
        speed = read / (time.monotonic() - self.tick)
        self.metrics = {
            **{name: logs[key] for key, name in _NAMES.items() if key in logs},
            "learning_rate": self.trainer.plan.rates[step - 1],
            "tokens": self.tokens,
            "tokens_per_second": speed,
        }
        validated = step == self.total or step % self.validate_every == 0
        if validated:
            model.eval()
            self.metrics |= self.validate()
            model.train()
        if step % config.log_every == 0 or validated:
            self.journal.log(step, self.metrics, f"loss {self.metrics['loss']:.3f} {speed:,.0f} tokens/s")
        self.saving_since = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just written."""
        self.checkpoints.mark(state.global_step, {"seconds": time.monotonic() - self.begun})
        self.checkpoints.account(self.saving_since)
        if self.checkpoints.stopping:
            raise KeyboardInterrupt
