"""Stage `tokenizer`: a byte-level BPE, its special tokens and the chat template, as a HF fast tokenizer.

Byte-level BPE with merges kept within character categories: Radford et al. 2019, section 2.2. PAD is a separate
token (with PAD = EOS a model can't learn to stop: Huang et al. 2024, detail 3).
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import Field, PositiveInt

from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.data.tokens import SMALLEST_VOCABULARY
from gptlife.stages.runtime.metric_log import MetricLog
from gptlife.stages.runtime.stage import Metrics, Stage, StageConfig

UNBOUNDED = 1_000_000
"""Longest row in tokens, until a model sets its context."""


class TokenizerConfig(StageConfig):
    """Train a byte-level BPE tokenizer."""

    data: Data
    """Text to learn the merges from."""
    vocabulary: int = Field(50304, ge=SMALLEST_VOCABULARY)
    """Entries, the 256 bytes and the special tokens included. [GPT-2: 50257; here a multiple of 64]"""
    sample_documents: PositiveInt | None = None
    """Learn from this many documents, the first ones; None: all."""
    chat_template: str | None = None
    """A Jinja template with generation markers; None: the built-in one."""


def run(config: TokenizerConfig, output: Path) -> Metrics:
    """Train and save; metrics: the vocabulary, and bytes per token on a sample.

    Raises:
        UserError: when the text is empty, or several processes were started.
    """
    import os
    from itertools import islice

    from gptlife.data.forms import texts
    from gptlife.data.tokens import encode_texts, train_tokenizer

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("tokenizer.launcher: runs in one process; leave the launcher out for this stage")
    started = time.monotonic()
    with MetricLog(output, "tokenizer", 1, track=None) as metric_log:
        documents = islice(texts(config.data, config.seed), config.sample_documents)
        tokenizer = train_tokenizer(documents, config.vocabulary, UNBOUNDED)
        if config.chat_template is not None:
            tokenizer.chat_template = config.chat_template
        sample = list(islice(texts(config.data, config.seed), 2000))
        n_tokens = sum(len(ids) for ids in encode_texts(tokenizer, sample))
        n_bytes = sum(len(text.encode("utf-8")) for text in sample)
        if not n_tokens:
            raise UserError("tokenizer.data: the text is empty; give a source with text in it")
        metrics = {"vocabulary": len(tokenizer), "bytes_per_token": n_bytes / n_tokens}
        metric_log.log(1, metrics, f"{len(tokenizer)} entries, {n_bytes / n_tokens:.2f} bytes per token")
    tokenizer.save_pretrained(str(output))
    return {**metrics, "seconds": round(time.monotonic() - started, 2)}


STAGE = Stage(
    "tokenizer",
    TokenizerConfig,
    run,
    title="tokenizer",
    family="tokenizer",
    about="A byte-level BPE tokenizer with its special tokens and chat template.",
)

if __name__ == "__main__":
    STAGE.main()
