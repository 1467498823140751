"""Stage `pretrain`: next-token loss on full rows, the GPT-3 recipe at any scale.

Documents are packed to full rows with the end-of-text token between them and no attention mask between documents;
AdamW .9/.95, gradient norm 1, weight decay .1; linear warm-up and cosine to 10 %, both counted in tokens; the batch
grows linearly from a small one (Brown et al. 2020, section 2.3 and App. B). Left out: sparse attention.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from gptlife.data.config import BelowOne
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.stages.modeling.presets import Architecture
from gptlife.stages.runtime.stage import Metrics, Stage
from gptlife.stages.training.config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from gptlife.stages.training.setup import Schedule


class PretrainConfig(TrainingConfig):
    """Pretrain a causal language model from random weights."""

    data: Data
    """Text to learn from."""
    validation: Data
    """Text held aside, for the validation loss."""
    architecture: Architecture = Architecture(preset="gpt3-small")
    """The decoder to train."""
    learning_rate: NonNegativeFloat = 6e-4
    """Peak. [GPT-3 Small, Table 2.1]"""
    sequence_length: PositiveInt = 2048
    """Tokens per row. [GPT-3, section 2.1]"""
    tokens: PositiveInt = 300_000_000_000
    """Training length in tokens; the text is repeated, in another order each time. [GPT-3, Table D.1]"""
    batch_tokens: PositiveInt = 524_288
    """Global batch in tokens. [GPT-3 Small, Table 2.1]"""
    ramp_from_tokens: PositiveInt = 32_768
    """Global batch in tokens at the start. [GPT-3 App. B]"""
    ramp_tokens: NonNegativeInt = 4_000_000_000
    """The batch grows linearly over this many tokens; 0: full size from the start. [GPT-3 App. B]"""
    warmup_tokens: NonNegativeInt = 375_000_000
    """Tokens of linear warm-up of the learning rate. [GPT-3 App. B]"""
    decay_tokens: PositiveInt = 260_000_000_000
    """Tokens at which the cosine reaches its floor, and stays there. [GPT-3 App. B]"""
    dropout: BelowOne = 0.0
    """On embeddings, attention and residuals. [GPT-1: .1; GPT-3: none]"""
    z_loss: NonNegativeFloat = 0.0
    """Weight of the squared log-normaliser. [PaLM, section 5: 1e-4]"""
    validate_every: NonNegativeInt = 250
    """Steps between validation losses; 0: only at the end."""

    @model_validator(mode="after")
    def _one_row(self) -> PretrainConfig:
        if self.batch_tokens < self.sequence_length:
            raise ValueError(
                f"batch_tokens: {self.batch_tokens} is less than one row of {self.sequence_length}; raise it"
            )
        return self


def run(config: PretrainConfig, output: Path, *, tokenizer: Path) -> Metrics:
    """Train and save; metrics: losses in nats per token, bits per byte, tokens per second, MFU.

    Raises:
        UserError: for text or lengths that don't fit the model.
    """
    from gptlife.stages.modeling import lengths, loading
    from gptlife.stages.modeling.forward import SelectedLogits
    from gptlife.stages.runtime.device import flops_per_token, peak_flops, peak_gpu_memory_mb
    from gptlife.stages.training import lm
    from gptlife.stages.training.loop import fit
    from gptlife.stages.training.setup import accelerator_for
    from gptlife.stages.training.token_stream import token_stream

    accelerator = accelerator_for(config, output)
    vocabulary = loading.load_tokenizer(tokenizer)
    stream, _ = token_stream(config.data, "pretrain.data", vocabulary, output, accelerator, config.seed)
    held_out, held_out_bytes = token_stream(config.validation, "pretrain.validation", vocabulary, output, accelerator)
    rows = lm.PackedRows(stream, config.sequence_length)
    validation = lm.PackedRows(held_out, config.sequence_length)
    if not len(rows) or not len(validation):
        raise UserError("pretrain.data: fewer than two tokens; give more text")
    model = _fresh(config, vocabulary)
    flops, peak = flops_per_token(model, config.sequence_length), peak_flops(accelerator.device)

    def validate(current: nn.Module) -> dict[str, float]:
        losses = lm.evaluate_lm(current, validation, accelerator, config.micro_batch_tokens)
        nats = losses["validation_loss"] * sum(validation.weights)
        return {**losses, "bits_per_byte": nats / math.log(2) / held_out_bytes}

    metrics = fit(
        SelectedLogits(model),
        rows,
        schedule(config, len(rows)),
        lambda current, batch: lm.lm_loss(current, batch, config.z_loss),
        config,
        accelerator,
        output,
        "pretrain",
        describe=lm.describe_lm,
        validate=validate,
        validate_every=config.validate_every,
    )
    if accelerator.is_main_process:
        vocabulary.model_max_length = lengths.context_of(model)
        loading.save(model, vocabulary, output)
    # On a shared CPU the peak varies with what else runs: the better of two measurements.
    peak = max(peak, peak_flops(accelerator.device) or 0.0) if peak else None
    rate = metrics["tokens_per_second"] * flops / accelerator.num_processes
    return {
        **metrics,
        "parameters": model.num_parameters(),
        "corpus_tokens": len(stream),
        "mfu": rate / peak if peak else None,
        "peak_gpu_memory_mb": peak_gpu_memory_mb(accelerator.device),
    }


def _fresh(config: PretrainConfig, vocabulary: Any) -> Any:
    """A model of the architecture for this tokenizer, with random weights (`accelerator_for` has set the seed).

    Raises:
        UserError: for rows longer than its context, or a model that looks at later tokens.
    """
    from transformers import AutoModelForCausalLM

    from gptlife.stages.modeling import checks, lengths, loading

    settings = config.architecture.build(len(vocabulary), vocabulary.eos_token_id, vocabulary.pad_token_id)
    act = "lower it, or raise the context in architecture.fields"
    lengths.check_context(config.sequence_length, settings, "pretrain.sequence_length", act)
    loading.set_dropouts(settings, dict.fromkeys(loading.DROPOUTS, config.dropout))
    model = AutoModelForCausalLM.from_config(settings)
    checks.check_causal(model, "pretrain.architecture")
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def schedule(config: PretrainConfig, n_rows: int) -> Schedule:
    """Batch sizes in rows (with the ramp) and learning rates, as functions of the tokens seen."""
    from gptlife.stages.training.setup import Schedule, cosine

    width = config.sequence_length
    sizes, rates, seen = [], [], 0
    while seen < config.tokens:
        grown = min(1.0, seen / config.ramp_tokens) if config.ramp_tokens else 1.0
        first = min(config.ramp_from_tokens, config.batch_tokens)
        tokens = first + grown * (config.batch_tokens - first) if config.ramp_tokens else config.batch_tokens
        rows = max(1, int(tokens) // width)
        sizes.append(rows)
        after = min((seen + rows * width) / config.decay_tokens, 1.0)
        share = cosine(after, config.warmup_tokens / config.decay_tokens, config.min_lr_ratio)
        rates.append(config.learning_rate * share)
        seen += rows * width
    return Schedule(n_rows, sizes, rates, config.seed)


STAGE = Stage(
    "pretrain",
    PretrainConfig,
    run,
    inputs=("tokenizer",),
    title="base",
    family="base",
    about=(
        "A causal language model trained on raw text from random weights. It continues text; it does not "
        "follow instructions."
    ),
)

if __name__ == "__main__":
    STAGE.main()
