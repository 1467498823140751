"""PPO's clipped policy and value losses as sums over real tokens.

Schulman et al. 2017 (arXiv 1707.06347, Eq 7), tokens as actions; the value is clipped like the policy, around its
value at the time of sampling (lm-human-preferences, `train_policy.py`):

    policy  max(-A ratio, -A clip(ratio, 1 - c, 1 + c)),  ratio = pi / pi_old
    value   0.5 max((V - return)², (clip(V, V_old - c, V_old + c) - return)²)

Sums, not means: the loop divides by the count of real tokens over all micro-batches and processes, so the loss does not
depend on how a batch was split. Only `loss_sum` carries gradient. Left out: an entropy bonus, which gains nothing
over the KL penalty (Zheng et al. 2023, "Secrets of RLHF in Large Language Models", arXiv 2307.04964).

Legend: B batch, R response; every field of the NamedTuples has shape ().
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gptlife.reward.logprobs import Reduce, masked_moments, masked_sum, one_process


class PolicyTerms(NamedTuple):
    """Sums over the real tokens; divide each by the (global) count."""

    loss_sum: Tensor
    """Clipped surrogate loss; the one to minimise."""
    approx_kl_sum: Tensor
    """(new - old)² / 2 of the log-probabilities, nats: how far this update has moved the policy."""
    clipfrac_sum: Tensor
    """Tokens where the clipped loss is the larger one, and the gradient therefore 0."""
    ratio_sum: Tensor
    """pi / pi_old."""
    ratio_sq_sum: Tensor
    """(pi / pi_old)²: with ratio_sum, the ratio's variance."""
    n_tokens: Tensor
    """Real tokens."""


class ValueTerms(NamedTuple):
    """Sums over the real tokens; divide each by the (global) count."""

    loss_sum: Tensor
    """Half the larger of the clipped and the plain squared error; the one to minimise."""
    clipfrac_sum: Tensor
    """Tokens where the clipped error is the larger one."""
    error_sum: Tensor
    """Plain squared error (V - return)²."""
    n_tokens: Tensor
    """Real tokens."""


def policy_loss(
    logprobs_BR: Tensor, old_logprobs_BR: Tensor, advantages_BR: Tensor, mask_BR: Tensor, clip_range: float
) -> PolicyTerms:
    """Sums of PPO's policy loss and its health over real tokens; ratios beyond 1 ± `clip_range` earn nothing more."""
    # Padding is silenced before exp: selecting afterwards would still send 0 * inf = NaN into the gradient.
    logratio_BR = torch.where(mask_BR, logprobs_BR - old_logprobs_BR, 0)
    ratio_BR = logratio_BR.exp()
    plain_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * ratio_BR.clamp(1 - clip_range, 1 + clip_range)
    loss_sum = masked_sum(torch.maximum(plain_BR, clipped_BR), mask_BR)
    with torch.no_grad():
        return PolicyTerms(
            loss_sum=loss_sum,
            approx_kl_sum=masked_sum(0.5 * logratio_BR.square(), mask_BR),
            clipfrac_sum=masked_sum(clipped_BR > plain_BR, mask_BR),
            ratio_sum=masked_sum(ratio_BR, mask_BR),
            ratio_sq_sum=masked_sum(ratio_BR.square(), mask_BR),
            n_tokens=mask_BR.sum(),
        )


def value_loss(
    values_BR: Tensor, old_values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor, clip_range: float
) -> ValueTerms:
    """Sums of the clipped value loss over real tokens; `clip_range` in units of the score."""
    clipped_values_BR = old_values_BR + (values_BR - old_values_BR).clamp(-clip_range, clip_range)
    plain_BR = (values_BR - returns_BR).square()
    clipped_BR = (clipped_values_BR - returns_BR).square()
    loss_sum = masked_sum(0.5 * torch.maximum(plain_BR, clipped_BR), mask_BR)
    with torch.no_grad():
        return ValueTerms(
            loss_sum=loss_sum,
            clipfrac_sum=masked_sum(clipped_BR > plain_BR, mask_BR),
            error_sum=masked_sum(plain_BR, mask_BR),
            n_tokens=mask_BR.sum(),
        )


def explained_variance(values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor, reduce: Reduce = one_process) -> Tensor:
    """1 - mean squared error / biased variance of the returns; shape (), NaN where all returns are equal.

    1 is perfect, 0 as good as their mean. As lm-human-preferences' `val/var_explained`, and unlike var(error) /
    var(returns), it charges a value function that is off by a constant.
    """
    moments = masked_moments(returns_BR, mask_BR, reduce)
    error = reduce(masked_sum((values_BR - returns_BR).square(), mask_BR)) / moments.n
    return torch.where(moments.var > 0, 1 - error / moments.var, torch.nan)
