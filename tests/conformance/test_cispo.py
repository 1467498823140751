"""Details of CISPO (MiniMax 2025, MiniMax-M1, arXiv 2506.13585, Eq 4 and 5), one test each.

Two answers to one prompt, of two tokens and of one; the policy is a vector of three log-probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import shipped
import torch
from compare import agree
from torch import Tensor

from gptlife.data.config import decode
from gptlife.stages import cispo
from gptlife.stages.rl import episodes

MASK_BR = torch.tensor([[True, True], [True, False]])
OLD = [0.2, 0.5, 0.4]
NEW = [0.6, 0.6, 0.1]
"""Probabilities: the ratios are 3, 1.2 and 0.25."""


def algorithm(**fields: Any) -> cispo.CISPO:
    given = {"answers_per_prompt": 2, "batch_size": 2, "minibatch_size": 2, "prompts": "x", "advantage_eps": 0.5}
    return cispo.CISPO(decode(cispo.CISPOConfig, {**given, **fields}, "cispo"))


def loss_and_gradient(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[float, Tensor]:
    """Of the minibatch's loss; scores are 1 and 0."""
    chosen, rollouts = algorithm(**fields), shipped.rollouts_of(MASK_BR)
    old_BR = torch.tensor([OLD[:2], [OLD[2], 1.0]], dtype=torch.float64).log()
    scores_B = torch.tensor([1.0, 0.0], dtype=torch.float64)
    readings = shipped.readings_of(MASK_BR, logprobs_BR=old_BR, ref_logprobs_BR=old_BR, scores_B=scores_B)
    experience = chosen.experience(readings, rollouts, 0.0)
    new_N = torch.tensor(NEW, dtype=torch.float64).log().requires_grad_(True)
    monkeypatch.setattr(episodes.Minibatch, "logprobs", lambda *_: new_N)
    batch = episodes.minibatch_of(rollouts, experience, [0, 1], shipped.CPU)
    loss = chosen.losses(0, 0.0)["policy"](None, batch)["loss_sum"] / chosen.denominator(rollouts, experience, [0, 1])  # type: ignore[arg-type]
    loss.backward()
    assert new_N.grad is not None
    return loss.item(), new_N.grad


A = 0.5 / (0.5**0.5 + 0.5)
"""By hand: 1 and 0 lie ± 0.5 from their mean, their deviation is (0.25 + 0.25)^0.5, and eps is 0.5."""


def test_cispo_weight_is_clipped_and_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq 4 and 5: the weights 3, 1.2, 0.25 become 2, 1.2, 0.5, and each multiplies the gradient of log pi alone."""

    def check(low: float, high: float) -> None:
        loss, gradient = loss_and_gradient(monkeypatch, clip_range_low=low, clip_range_high=high)
        agree(gradient, [-2 * A / 3, -1.2 * A / 3, 0.5 * A / 3])
        agree(loss, -A * (2 * math.log(0.6) + 1.2 * math.log(0.6) - 0.5 * math.log(0.1)) / 3)

    check(0.5, 1.0)
    for wrong in ((1.0, 0.5), (1.0, 4.0)):
        with pytest.raises(AssertionError):
            check(*wrong)


def test_cispo_divides_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq 4: a mean over all tokens, of normalised advantages; here three tokens, not two answers."""
    _, gradient = loss_and_gradient(monkeypatch)
    agree(gradient, [-3 * A / 3, -1.2 * A / 3, 0.25 * A / 3])
    for wrong in ([-3 * A / 4, -1.2 * A / 4, 0.25 * A / 2], [-3 * 0.5 / 3, -1.2 * 0.5 / 3, 0.25 * 0.5 / 3]):
        with pytest.raises(AssertionError):
            agree(gradient, wrong)
