"""TRL's `DPOTrainer` and `KTOTrainer` on our tokens, order, optimizer and schedule; forward and loss are TRL's.

What is set otherwise than TRL and `transformers.Trainer` do by themselves, and why:

- Rows come encoded. TRL would render the chat itself, add an end-of-text token to answers that were cut off, and read
  control tokens out of what users wrote.
- Rows come in the schedule's order and are read one after the other, so the batch of a step is the same for any number
  of processes; all micro-batches of a step are of one size, because TRL takes means of means.
- TRL's `disable_dropout` is off: models come without dropout, and it would turn off the adapters' dropout as well.
- No telemetry, model cards, progress bars or logs of TRL's own, and no deprecation warnings of the libraries.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import trl
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback

from gptlife.data.errors import UserError
from gptlife.stages.modeling.adapters import lora_config
from gptlife.stages.preferences.config import PreferenceConfig
from gptlife.stages.preferences.implicit_rewards import mismatched
from gptlife.stages.runtime.artifact import CHECKPOINTS
from gptlife.stages.runtime.device import best_device
from gptlife.stages.runtime.provenance import resume_as_begun
from gptlife.stages.training.setup import Schedule, adamw

Row = dict[str, Any]
"""A row in TRL's columns: `prompt_ids` and the answers' ids."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what TRL and transformers say about their own later versions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


class EncodedRows:
    """Mixed into a trainer of TRL: encoded rows in a schedule's order, this repository's optimizer and rates."""

    stage: ClassVar[str]
    settings: ClassVar[type]
    answers: ClassVar[dict[str, tuple[str, ...]]]
    """Prefix of TRL's batch (`KL_` or none) -> columns of the answers that stand in it, one after the other."""
    model: Any
    optimizer: Any
    lr_scheduler: Any

    @quiet()
    def __init__(
        self, config: PreferenceConfig, plan: Schedule, args: Any, model: Any, reference: Any, tokenizer: Any,
        rows: list[Row],
    ) -> None:  # fmt: skip
        self.ours, self.plan = config, plan
        share = config.batch_size // args.world_size
        args.per_device_train_batch_size = self.micro_batch(config, args.world_size, rows)
        args.gradient_accumulation_steps = share // args.per_device_train_batch_size
        args.max_steps = len(plan.sizes)
        self.lengths = [sum(_sizes(row, self.answers[""])) for row in rows]
        """Tokens that a row costs: its prompt stands before every answer."""
        order = [rows[index] for step in range(len(plan.sizes)) for index in plan.batch(step)]
        arranged = self.arranged(order, args.per_device_train_batch_size * args.world_size)
        super().__init__(
            model=model,
            ref_model=reference,
            args=args,
            train_dataset=Dataset.from_list(arranged),
            processing_class=tokenizer,
            peft_config=None if config.lora is None else lora_config(model, config.lora, "CAUSAL_LM"),
        )  # type: ignore[call-arg]
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        confirm(self, arranged[:8])

    @staticmethod
    @abstractmethod
    def micro_batch(config: Any, processes: int, rows: list[Row]) -> int:
        """Rows in one forward pass of a process."""

    @staticmethod
    def arranged(rows: list[Row], size: int) -> list[Row]:
        """The rows as TRL reads them; `size` of them are one forward pass of all processes."""
        return rows

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
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


class DPOTrainer(EncodedRows, trl.DPOTrainer):
    """Rows: `prompt_ids`, `chosen_ids`, `rejected_ids`."""

    stage, settings, answers = "dpo", trl.DPOConfig, {"": ("chosen_ids", "rejected_ids")}

    @staticmethod
    def micro_batch(config: Any, processes: int, rows: list[Row]) -> int:
        """As many pairs as `micro_batch_tokens` holds, all as long as the longest."""
        width = max(max(_sizes(row, ("chosen_ids", "rejected_ids"))) for row in rows)
        return micro_batch_size(config.batch_size // processes, width, config.micro_batch_tokens)


class KTOTrainer(EncodedRows, trl.KTOTrainer):
    """Rows: `prompt_ids`, `completion_ids`, `label`; and `KL_completion_ids`, the answer to another row's prompt."""

    stage, settings = "kto", trl.KTOConfig
    answers: ClassVar = {"": ("completion_ids",), "KL_": ("KL_completion_ids",)}

    @staticmethod
    def micro_batch(config: Any, processes: int, rows: list[Row]) -> int:
        """A process's part of the rows over which the KL is estimated; memory has no say, since it decides the result.

        Raises:
            UserError: when they can't be shared, or a process gets one alone, whose own answer would be its KL.
        """
        batch, size = config.batch_size, config.kl_batch_size or config.batch_size
        if batch % size or size % processes or size < 2 * processes:
            raise UserError(
                f"kto.kl_batch_size: {size} answers; give a divisor of batch_size ({batch}) that leaves each of "
                f"{processes} processes as many, at least 2"
            )
        return int(size // processes)

    @staticmethod
    def arranged(rows: list[Row], size: int) -> list[Row]:
        """Each row with the answer of the row before it, in a circle of `size` rows [KTO section 4]."""
        others = mismatched([(row["prompt_ids"], row["completion_ids"]) for row in rows], size, 1)
        return [row | {"KL_completion_ids": answer} for row, answer in zip(rows, others, strict=True)]


@quiet()
def settings_of(kind: type[EncodedRows], config: PreferenceConfig, output: Path, options: Mapping[str, Any]) -> Any:
    """TRL's settings, with the `options` of the loss; making them also starts the process group.

    Raises:
        UserError: for a device that TRL doesn't train on, and a batch that the processes can't share.
    """
    device = best_device(config.device)
    bf16 = config.precision == "bf16"
    if config.precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    args = kind.settings(
        output_dir=str(output / CHECKPOINTS),
        beta=config.beta,
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
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        **options,
    )
    name, batch = kind.stage, config.batch_size
    if args.n_gpu > 1:
        raise UserError(f"{name}: TRL trains on one GPU per process; use accelerate launch, or show it one GPU only")
    if args.device.type != device.type or device.index not in (None, args.device.index):
        raise UserError(f"{name}.device: TRL would train on {args.device}, not on {device}; leave `device` out")
    if batch % args.world_size:
        act = "give a multiple"
        raise UserError(f"{name}.batch_size: {args.world_size} processes can't share {batch} rows equally; {act}")
    resume_as_begun(output, config.model_dump())
    return args


def micro_batch_size(share: int, width: int, tokens: int) -> int:
    """Pairs in one forward pass: the largest divisor of `share` with which two answers of `width` each fit."""
    return max(size for size in range(1, share + 1) if share % size == 0 and (size == 1 or 2 * size * width <= tokens))


def _sizes(row: Row, columns: tuple[str, ...]) -> list[int]:
    return [len(row["prompt_ids"]) + len(row[column]) for column in columns]


def confirm(trainer: Any, rows: list[Row]) -> None:
    """Check that what TRL reads is what the stage encoded: every answer in its place, after its prompt, and marked.

    Raises:
        UserError: when the installed TRL reads the columns in another way.
    """
    batch, same = trainer.data_collator(rows), True
    for prefix, columns in trainer.answers.items():
        ids, real, marked = (batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))
        for place, (row, column) in enumerate((row, column) for column in columns for row in rows):
            same &= ids[place][real[place].bool()].tolist() == row["prompt_ids"] + row[column]
            same &= ids[place][marked[place].bool()].tolist() == row[column]
    if "label" in rows[0]:
        same &= batch["label"].tolist() == [row["label"] for row in rows]
    if not same:
        raise UserError(f"{trainer.stage}: TRL {trl.__version__} reads its rows in another way; install trl==1.16.*")
