"""The two forward passes of the project: a language model and a scalar head, read at selected positions.

`SelectedLogits` gives vocabulary logits and `SelectedScores` the head's outputs only where a mask says that a loss, a
log-probability or a value is read, so no (B, T, V) tensor is ever built. Batches are padded on the right and need no
attention mask: a causal model's real tokens never look right.

Legend: B rows, T tokens, N selected positions in row-major order, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def unwrapped(model: Any) -> Any:
    """The transformers model inside a LoRA wrapper, adapters still active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class SelectedLogits(nn.Module):
    """A causal LM read at selected positions: inputs of B rows -> (N, V) logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.direct = _head_is_plain(unwrapped(model))

    def forward(self, inputs: Mapping[str, Tensor], select_BT: Tensor) -> Tensor:
        """Logits, in fp32, for the token that follows each selected position, row-major.

        Args:
            inputs: the arguments of the model's forward: `input_ids` (B, T), and what else it takes.
            select_BT: bool.
        """
        inner = unwrapped(self.model)
        if not self.direct:
            return inner(**inputs, use_cache=False).logits[select_BT].float()
        hidden_BTD = _trunk(inner)(**inputs, use_cache=False).last_hidden_state
        return inner.get_output_embeddings()(hidden_BTD[select_BT]).float()


class SelectedScores(nn.Module):
    """A scalar-head model read at selected positions: inputs of B rows -> (N,) scores."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor], select_BT: Tensor) -> Tensor:
        """The head's output, in fp32, at each selected position, row-major; arguments as in `SelectedLogits`."""
        inner = unwrapped(self.model)
        hidden_BTD = _trunk(inner)(**inputs, use_cache=False).last_hidden_state
        return inner.score(hidden_BTD[select_BT]).squeeze(-1).float() + getattr(inner.config, "reward_bias", 0.0)


def _trunk(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    """Whether the logits are the output embedding of the trunk's last state and nothing more.

    Some families scale or cap their logits; for those the model's own forward is used.
    """
    was_training, head = model.training, model.get_output_embeddings()
    if head is None or not hasattr(model, model.base_model_prefix):
        return False
    device = next(model.parameters()).device
    probe = torch.arange(1, 5, device=device).unsqueeze(0) % model.config.vocab_size
    model.eval()
    direct = head(_trunk(model)(input_ids=probe, use_cache=False).last_hidden_state)
    same = torch.allclose(direct, model(input_ids=probe, use_cache=False).logits, atol=1e-5)
    model.train(was_training)
    return bool(same)
