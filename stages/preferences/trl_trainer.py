"""TRL's `DPOTrainer` as the stage `dpo` uses it: our tokens, order, optimizer and schedule; its forward and loss.

What is set against TRL's and `transformers.Trainer`'s ways, and why:

- Rows come encoded. TRL would render the chat itself, add an end-of-text to answers that were cut off, and read
  control tokens out of what users wrote.
- Rows come in the schedule's order and are read one after the other, so the batch of a step is the same for every
  micro-batch and number of processes; all micro-batches of a step are of one size, because TRL takes means of means.
- TRL's `disable_dropout` is off: models come without dropout, and it would turn off the adapters' as well.
- No telemetry, model cards, progress bars or logs of TRL's own, and none of the warnings with which the two libraries
  tell each other what they deprecated.

Label smoothing s: with TRL's `sigmoid` L(m) = -log σ(m) and `robust` R = ((1-s) L(m) - s L(-m)) / (1-2s), the loss
of conservative DPO (1-s) L(m) + s L(-m) is 2(1-s) L(m) - (1-2s) R. TRL 1.16 ignores `label_smoothing` in `sigmoid`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback

from gptlife.data.errors import UserError
from gptlife.stages.dpo import DPOConfig
from gptlife.stages.modeling.adapters import add_lora
from gptlife.stages.runtime.artifact import CHECKPOINTS
from gptlife.stages.runtime.device import best_device
from gptlife.stages.training.setup import Schedule, adamw

PairRow = dict[str, list[int]]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what TRL and transformers will drop in later versions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@quiet()
def settings_of(config: DPOConfig, output: Path) -> trl.DPOConfig:
    """TRL's settings; making them also starts the process group.

    Raises:
        UserError: for a device that TRL doesn't train on, and a batch that the processes can't share.
    """
    device = best_device(config.device)
    bf16 = config.precision == "bf16"
    if config.precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    smoothing = config.label_smoothing
    settings = trl.DPOConfig(
        output_dir=str(output / CHECKPOINTS),
        beta=config.beta,
        loss_type=["sigmoid", "robust"] if smoothing else ["sigmoid"],
        loss_weights=[2 * (1 - smoothing), -(1 - 2 * smoothing)] if smoothing else None,
        label_smoothing=smoothing,
        max_length=None,
        disable_dropout=False,
        seed=config.seed,
        max_grad_norm=config.max_grad_norm,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=config.gradient_checkpointing,
        train_sampling_strategy="sequential",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device.type == "cuda",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
    if settings.n_gpu > 1:
        raise UserError("dpo: TRL trains on one GPU a process; start it by accelerate launch, or show it one GPU only")
    if settings.device.type != device.type or device.index not in (None, settings.device.index):
        raise UserError(f"dpo.device: TRL would train on {settings.device}, not on {device}; leave `device` out")
    if config.batch_size % settings.world_size:
        raise UserError(
            f"dpo.batch_size: {config.batch_size} pairs can't be shared equally by {settings.world_size} processes; "
            "give a multiple"
        )
    return settings


def micro_batch_size(share: int, width: int, tokens: int) -> int:
    """Pairs in one forward pass: the largest divisor of `share` with which two answers of `width` each fit."""
    return max(size for size in range(1, share + 1) if share % size == 0 and (size == 1 or 2 * size * width <= tokens))


class PairTrainer(trl.DPOTrainer):
    """`trl.DPOTrainer` on encoded pairs, in the order of a schedule, with this repository's optimizer and rates."""

    model: Any
    optimizer: Any

    @quiet()
    def __init__(
        self,
        config: DPOConfig,
        plan: Schedule,
        settings: trl.DPOConfig,
        model: Any,
        reference: Any | None,
        tokenizer: Any,
        rows: list[PairRow],
    ) -> None:
        self.ours, self.plan = config, plan
        self.lengths = [sum(map(len, row.values())) + len(row["prompt_ids"]) for row in rows]
        """Tokens that a pair costs: its prompt stands before both answers."""
        width = max(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows)
        share = config.batch_size // settings.world_size
        settings.per_device_train_batch_size = micro_batch_size(share, width, config.micro_batch_tokens)
        settings.gradient_accumulation_steps = share // settings.per_device_train_batch_size
        settings.max_steps = len(plan.sizes)
        adapters = _adapters(model, config)
        order = [index for step in range(len(plan.sizes)) for index in plan.batch(step)]
        super().__init__(
            model=model,
            ref_model=reference,
            args=settings,
            train_dataset=Dataset.from_list(rows).select(order),
            processing_class=tokenizer,
            peft_config=adapters,
        )
        self.remove_callback(PrinterCallback)
        _confirm(self.data_collator, rows[:8])

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """The rows as they are: they have TRL's columns already."""
        return dataset

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: the stage writes its own."""

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """AdamW of all training stages; the schedule gives its rate."""
        if self.optimizer is None:
            self.optimizer = adamw(model or self.model, self.ours, rate=1.0)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """The schedule's rate of every step."""
        if self.lr_scheduler is None:
            rates, last = self.plan.rates, len(self.plan.rates) - 1
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: rates[min(step, last)])
        return self.lr_scheduler


def _adapters(model: Any, config: DPOConfig) -> Any:
    """The adapters' config: TRL adds them by itself, and then takes the model without them for the reference."""
    if config.lora is None:
        return None
    wrapped = add_lora(model, config.lora, "CAUSAL_LM")
    adapters = wrapped.peft_config["default"]
    wrapped.unload()
    return adapters


def _confirm(collate: Any, rows: list[PairRow]) -> None:
    """Check that what TRL reads is what the stage encoded: both sides, chosen first, the answer marked.

    Raises:
        UserError: when an installed TRL reads the columns in another way.
    """
    batch = collate(rows)
    sides = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    for place, (prompt, answer) in enumerate(sides):
        ids, real = batch["input_ids"][place], batch["attention_mask"][place].bool()
        if ids[real].tolist() != prompt + answer or ids[batch["completion_mask"][place].bool()].tolist() != answer:
            raise UserError(f"dpo: TRL {trl.__version__} reads pairs in another way; install trl==1.16.*")
