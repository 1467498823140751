"""The reward model: one score per sequence, read at its last real token, and its normalisation.

A trunk with a scalar head in place of the unembedding (Stiennon et al. 2020; Ouyang et al. 2022, section 3.5). The
score is read at the end-of-text token where the answer has one (Huang et al. 2024: scores elsewhere mean nothing).
After training, the score is shifted so that demonstrations have mean 0 and scaled to unit standard deviation; both are
folded into the weights where the architecture allows, so that plain `AutoModelForSequenceClassification` gives the
same score as PPO uses.

Legend: S sequences, T tokens, B rows, N selected positions, M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptlife.data.packing import length_batches
from gptlife.data.tokens import Encoded
from gptlife.reward.ensemble import EnsembleConfig, combine
from gptlife.stages.modeling.forward import SelectedScores, inputs_of, last_positions, unwrapped

_FINAL_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm")


class EnsembleScores(nn.Module):
    """Several scalar-head models read at selected positions: inputs of B rows -> (N,) combined scores."""

    def __init__(self, members: Sequence[SelectedScores], config: EnsembleConfig) -> None:
        super().__init__()
        self.members, self.config = nn.ModuleList(members), config

    def forward(self, inputs: Mapping[str, Tensor], select_BT: Tensor) -> Tensor:
        """The combined score at each selected position, row-major."""
        return combine(self.member_scores(inputs, select_BT), self.config)

    def member_scores(self, inputs: Mapping[str, Tensor], select_BT: Tensor) -> Tensor:
        """scores_MN: the score of each member at each selected position."""
        return torch.stack([member(inputs, select_BT) for member in self.members])


@torch.no_grad()
def score(model: nn.Module, rows: Sequence[Encoded], tokens_per_batch: int = 16384) -> Tensor:
    """scores_S, fp32 on the CPU: the score of each row (prompt, answer, end-of-text) at its last token.

    `model` is a `SelectedScores` or an `EnsembleScores`.
    """
    device = next(model.parameters()).device
    scores_S = torch.empty(len(rows))
    for group in length_batches([len(row) for row in rows], tokens_per_batch=tokens_per_batch):
        batch = [rows[index] for index in group]
        scores_S[group] = model(inputs_of(batch, device), last_positions(batch, device)).cpu()
    return scores_S


@torch.no_grad()
def fold_normalisation(model: Any, gain: float, bias: float) -> None:
    """Make every score s of a scalar-head model become `gain * s + bias`, in place.

    The gain scales the head. The head has no bias in `transformers`, so the bias is folded into the final norm's own
    bias along the head's direction: w·(h + d) = w·h + bias for d = bias·w / |w|². A trunk whose final norm has no bias
    (RMSNorm) gets `config.reward_bias`, which `SelectedScores` adds and plain transformers doesn't.
    """
    inner = unwrapped(model)
    weight = inner.score.weight
    weight.mul_(gain)
    trunk = getattr(inner, inner.base_model_prefix)
    norm = next((getattr(trunk, name) for name in _FINAL_NORMS if hasattr(trunk, name)), None)
    square = float(weight.double().square().sum())
    if norm is None or getattr(norm, "bias", None) is None or square == 0.0:
        inner.config.reward_bias = gain * getattr(inner.config, "reward_bias", 0.0) + bias
        return
    norm.bias.add_((bias / square) * weight.squeeze(0))
