"""The pretraining term of PPO-ptx: ptx_coef times the language-model loss on text (Ouyang et al. 2022, Eq 2 and C.4).

Its gradient is accumulated onto the policy's own, so both make one optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from gptlife.stages.modeling.lengths import row_length
from gptlife.stages.rl.config import OnlineConfig
from gptlife.stages.training.lm import PackedRows, lm_loss
from gptlife.stages.training.loop import Sums, backward_over, gather_sums, micro_batches
from gptlife.stages.training.setup import Schedule
from gptlife.stages.training.token_stream import token_stream


class PretrainingTerm:
    """Rows of text in a seeded order, some for each optimizer step."""

    def __init__(
        self, config: OnlineConfig, name: str, model: Any, tokenizer: Any, output: Path, accelerator: Accelerator
    ) -> None:
        assert config.pretraining is not None
        self.config, self.accelerator = config, accelerator
        length = row_length(config.ptx_length, model, f"{name}.ptx_length")
        stream, _ = token_stream(config.pretraining, f"{name}.pretraining", tokenizer, output, accelerator, config.seed)
        self.rows = PackedRows(stream, length)
        count = max(1, round(config.minibatch_size * config.ptx_rows_per_episode))
        updates = config.steps * config.inner_epochs * (config.batch_size // config.minibatch_size)
        self.order = Schedule(len(self.rows), [count] * updates, [], config.seed + 1)

    def backward(self, policy: nn.Module, update: int) -> float:
        """Accumulate the gradient of ptx_coef times the mean loss on the rows of optimizer step `update` (from 0).

        Returns:
            That loss in nats per token.
        """
        batch = self.order.batch(update)
        n_targets = sum(self.rows.weights[index] for index in batch)
        groups = micro_batches(batch, self.rows.lengths, self.accelerator, self.config.micro_batch_tokens)

        def loss(group: Sequence[int]) -> tuple[Tensor, Sums]:
            collated = self.rows.collate(group or batch[:1]).to(self.accelerator.device)
            nll, _ = lm_loss(policy, collated)
            counted = 1.0 if group else 0.0
            return counted * self.config.ptx_coef * nll, {"nll": counted * nll}

        sums = backward_over(self.accelerator, policy, groups, loss, n_targets)
        return gather_sums(self.accelerator, sums)["nll"] / n_targets
