"""Task `lm_loss`: the language-model loss on held-out text, in nats per token.

Taken before and after alignment it is the alignment tax on language modelling (Ouyang et al. 2022, section 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from gptlife.data.sources import Data
from gptlife.stages.evals.tasks.task import Task
from gptlife.stages.runtime.stage import Metrics

if TYPE_CHECKING:
    from gptlife.stages.evals.candidates import Candidate


class LMLoss(Task):
    """Task `lm_loss`: the loss on held-out text."""

    name: ClassVar[str] = "lm_loss"
    validation: Data
    """Text that no stage has seen."""
    validation_length: PositiveInt | None = None
    """Tokens per row of it; None: 128, or the model's context where that is less."""

    def run(self, candidate: Candidate) -> Metrics:
        """`validation_loss` in nats per token, its perplexity, and next-token accuracy.

        Raises:
            UserError: when `validation_length` is above the model's context, or there is no text.
        """
        from gptlife.stages.modeling.lengths import row_length
        from gptlife.stages.training.lm import PackedRows, evaluate_lm
        from gptlife.stages.training.token_stream import token_stream

        length = row_length(self.validation_length, candidate.model, "evaluation.validation_length")
        stream, _ = token_stream(
            self.validation, "evaluation.validation", candidate.tokenizer, candidate.scratch, candidate.accelerator
        )
        rows = PackedRows(stream, length)
        return dict(evaluate_lm(candidate.reader, rows, candidate.accelerator, candidate.micro_batch_tokens))
