"""Stage `sft`: fine-tune on demonstrations, with a loss on the assistant's tokens only.

Every assistant turn of a conversation is a target, its end-of-text included. InstructGPT (Ouyang et al. 2022):
section 3.5 and App. C.1 for the SFT baseline (16 epochs, 9.65e-6, batch 32, residual dropout .2, cosine to 10 %), C.3
for the model that PPO starts from (2 epochs with 10 % pretraining data). The paper selects by reward-model score; at
this point of the life no reward model exists, so selection here is by validation loss.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from gptlife.data.config import BelowOne, Share
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.stages.runtime.stage import Metrics, Stage
from gptlife.stages.training.config import FinetuningConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gptlife.data.tokens import Encoded
    from gptlife.stages.training.lm import PackedRows

log = logging.getLogger(__name__)


class SFTConfig(FinetuningConfig):
    """Fine-tune a base model on conversations."""

    data: Data
    """Conversations: one `messages` list per row, or any other format that is recognised."""
    validation: Data | Share = 0.1
    """Conversations held aside, or the share of `data` to hold aside."""
    learning_rate: NonNegativeFloat = 9.65e-6
    """Peak. [InstructGPT C.1]"""
    epochs: PositiveFloat = 16
    """Passes over the demonstrations. [InstructGPT C.1; 2 in C.3]"""
    batch_size: PositiveInt = 32
    """Global batch in conversations. [InstructGPT C.1]"""
    max_length: PositiveInt | None = None
    """Conversations of more tokens are refused, or skipped (`too_long`); None: the model's context."""
    too_long: Literal["refuse", "skip"] = "refuse"
    """What to do with a conversation of more than `max_length` tokens: `refuse` or `skip`."""
    residual_dropout: BelowOne = 0.2
    """[InstructGPT C.1]"""
    packing: bool = False
    """Fill rows of `max_length` with several conversations that don't attend to each other (faster on a GPU); not
    together with `pretraining`."""
    pretraining: Data | None = None
    """Text mixed in as plain next-token rows. [InstructGPT C.3]"""
    pretraining_share: BelowOne = 0.1
    """Share of the examples that are pretraining rows. [InstructGPT C.3]"""
    pretraining_length: PositiveInt | None = None
    """Tokens of such a row; None: 128, or the model's context where that is less."""
    select: bool = True
    """Keep the weights with the lowest validation loss, not the last ones."""

    @model_validator(mode="after")
    def _rows(self) -> SFTConfig:
        if self.packing and self.pretraining is not None:
            raise ValueError("packing: true can't go with `pretraining`; set packing: false, or leave pretraining out")
        return self


def run(config: SFTConfig, output: Path, *, base: Path) -> Metrics:
    """Fine-tune and save; metrics: losses in nats per assistant token, before and after.

    Raises:
        UserError: for data or lengths that don't fit the model.
    """
    from gptlife.data.packing import pack_examples
    from gptlife.stages.modeling import adapters, lengths, loading
    from gptlife.stages.modeling.forward import SelectedLogits
    from gptlife.stages.runtime.device import peak_gpu_memory_mb
    from gptlife.stages.training import lm
    from gptlife.stages.training.loop import fit
    from gptlife.stages.training.setup import accelerator_for, epochs

    accelerator = accelerator_for(config, output)
    tokenizer = loading.load_tokenizer(base)
    model = loading.load_causal(base, tokenizer, {"resid_pdrop": config.residual_dropout})
    limit = lengths.limit_of(config.max_length, model, "sft.max_length")
    rows, held_out = _train_and_held_out(config, tokenizer, limit)
    examples: Any = lm.TargetRows(rows)
    if config.packing:
        bins = pack_examples([len(row) - 1 for row in rows], limit)
        examples = lm.PackedConversations(rows, bins)
    elif config.pretraining is not None:
        examples = lm.Joined(examples, _text_rows(config, model, tokenizer, len(rows), output, accelerator))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.lora is not None:
        model = adapters.add_lora(model, config.lora, "CAUSAL_LM")
    reader = SelectedLogits(model).to(accelerator.device)
    plan = epochs(config, len(examples), config.batch_size, config.epochs, config.warmup_steps)
    validation, tokens = lm.TargetRows(held_out), config.micro_batch_tokens
    validate = partial(lm.evaluate_lm, rows=validation, accelerator=accelerator, tokens=tokens)
    before = validate(reader.eval())
    metrics = fit(
        reader,
        examples,
        plan,
        lm.lm_loss,
        config,
        accelerator,
        output,
        "sft",
        describe=lm.describe_lm,
        validate=validate,
        validate_every=config.validation_interval(len(plan.sizes)),
        keep_best="validation_loss" if config.select else None,
    )
    if accelerator.is_main_process:
        loading.save(adapters.merge_lora(model), tokenizer, output)
    return {
        **metrics,
        "validation_loss_before": before["validation_loss"],
        "conversations": len(rows),
        "validation_conversations": len(held_out),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(accelerator.device),
    }


def _train_and_held_out(config: SFTConfig, tokenizer: Any, limit: int) -> tuple[list[Encoded], list[Encoded]]:
    """Conversations to train on, and those of `validation`, as tokens.

    Raises:
        UserError: for one of more than `limit` tokens (with `too_long: refuse`), or where none is left.
    """
    from gptlife.data.forms import conversations
    from gptlife.data.splits import split

    rows = _rows(conversations(config.data, config.seed), tokenizer, limit, config, "sft.data")
    if isinstance(config.validation, float):
        return split(rows, config.validation, "sft.validation")
    return rows, _rows(conversations(config.validation), tokenizer, limit, config, "sft.validation")


def _text_rows(
    config: SFTConfig, model: Any, tokenizer: Any, n_conversations: int, output: Path, accelerator: Accelerator
) -> PackedRows:
    """Rows of text to mix with `n_conversations`: `pretraining_share` of all rows, or as many as the text has."""
    from gptlife.stages.modeling import lengths
    from gptlife.stages.training.lm import PackedRows
    from gptlife.stages.training.token_stream import token_stream

    assert config.pretraining is not None
    length = lengths.row_length(config.pretraining_length, model, "sft.pretraining_length")
    stream, _ = token_stream(config.pretraining, "sft.pretraining", tokenizer, output, accelerator, config.seed)
    share = config.pretraining_share
    wanted = round(n_conversations * share / (1 - share)) * length + 1
    if len(stream) < wanted and accelerator.is_main_process:
        log.warning(
            "sft.pretraining: the text has %d tokens, pretraining_share %s wants %d; all of it is used, once an epoch",
            len(stream),
            share,
            wanted,
        )
    return PackedRows(stream[:wanted], length)


def _rows(given: list[dict[str, Any]], tokenizer: Any, limit: int, config: SFTConfig, place: str) -> list[Encoded]:
    from gptlife.data.tokens import encode_conversation

    rows, skipped = [], 0
    for number, conversation in enumerate(given, 1):
        row = encode_conversation(tokenizer, conversation["messages"])
        if len(row) <= limit:
            rows.append(row)
        elif config.too_long == "skip":
            skipped += 1
        else:
            raise UserError(
                f"{place}: conversation {number} has {len(row)} tokens, the limit is {limit}; "
                "shorten it, raise max_length, or set too_long: skip"
            )
    if skipped:
        log.warning("%s: %d of %d conversations left out (over %d tokens)", place, skipped, len(given), limit)
    if not rows:
        raise UserError(f"{place}: no conversation fits in {limit} tokens; raise max_length")
    return rows


STAGE = Stage(
    "sft",
    SFTConfig,
    run,
    inputs=("base",),
    title="SFT",
    family="chat",
    about="A language model fine-tuned on demonstrations, with a loss on the assistant's tokens only.",
)

if __name__ == "__main__":
    STAGE.main()
