"""From logits to the losses of PPO: log-probabilities, and the clipped policy and value losses summed over actions.

Log-probabilities are those of the distribution that was sampled from, so the logits are divided by the sampling
temperature; otherwise the measured KL rises too fast (Huang et al. 2024, "The N implementation details of RLHF with
PPO", https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo). Softmaxes are taken in float32 and
taken again in the backward pass, so that only the logits and their gradient stay in memory.

Losses: Schulman et al. 2017 (arXiv 1707.06347, Eq 7); the value is clipped like the policy, around its value at the
time of sampling (lm-human-preferences, `train_policy.py`):

    policy  max(-A ratio, -A clip(ratio, 1 - c, 1 + c_high)),  ratio = pi / pi_old
    value   0.5 max((V - return)², (clip(V, V_old - c, V_old + c) - return)²)

CISPO (MiniMax 2025, arXiv 2506.13585, Eq 4 and 5) is REINFORCE with a clipped weight that carries no gradient:

    policy  -A sg(clip(ratio, 1 - c, 1 + c_high)) log pi

The loop divides the sums by a count over all micro-batches and processes, so the loss does not depend on how a batch
was split. Only `loss_sum` carries gradient. Left out: an entropy bonus, which gains nothing over the KL penalty (Zheng
et al. 2023, "Secrets of RLHF in Large Language Models", arXiv 2307.04964).

Legend: N actions without padding, V vocabulary, B batch, R response; every field of the NamedTuples has shape ().
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gptlife.reward.advantage import at_least_float32, masked_moments, masked_sum


def selected_logprobs(logits_NV: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
    """logprobs_N: log softmax(logits / temperature) at the targets, in nats, float32.

    Raises:
        ValueError: when the temperature is not positive.
    """
    return _recomputed(_logprobs, temperature, logits_NV, targets_N)


def entropy(logits_NV: Tensor, temperature: float) -> Tensor:
    """entropy_N: entropy of softmax(logits / temperature), in nats, float32; 0 .. log V.

    Raises:
        ValueError: when the temperature is not positive.
    """
    return _recomputed(_entropy, temperature, logits_NV)


def _recomputed(function: Callable[..., Tensor], temperature: float, *tensors: Tensor) -> Tensor:
    """`function`, computed again in the backward pass instead of kept in memory."""
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    result: Tensor = checkpoint(function, temperature, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result


def _logprobs(temperature: float, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    logprobs_NV = (at_least_float32(logits_NV) / temperature).log_softmax(-1)
    return logprobs_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)


def _entropy(temperature: float, logits_NV: Tensor) -> Tensor:
    logprobs_NV = (at_least_float32(logits_NV) / temperature).log_softmax(-1)
    # A token of probability 0 has log-probability -inf and must count as 0 log 0 = 0, not as NaN.
    finite_NV = logprobs_NV.clamp(min=torch.finfo(logprobs_NV.dtype).min)
    return -(logprobs_NV.exp() * finite_NV).sum(-1)


class PolicyTerms(NamedTuple):
    """Sums over the actions."""

    loss_sum: Tensor
    """Clipped surrogate loss, times the weights: minimise it."""
    approx_kl_sum: Tensor
    """(new - old)² / 2 of the log-probabilities, nats: how far this update has moved the policy."""
    clipfrac_sum: Tensor
    """Actions whose clipped loss is the larger one, so that their gradient is 0."""
    ratio_sum: Tensor
    """pi / pi_old."""
    ratio_sq_sum: Tensor
    """(pi / pi_old)²: gives the ratio's variance, with `ratio_sum`."""
    n: Tensor
    """Actions."""


class ValueTerms(NamedTuple):
    """Sums over the actions."""

    loss_sum: Tensor
    """Half the larger of the clipped and the plain squared error: minimise it."""
    error_sum: Tensor
    """Plain squared error (V - return)²."""
    clipfrac_sum: Tensor
    """Actions whose clipped error is the larger one."""
    n: Tensor
    """Actions."""


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    weights_N: Tensor | None = None,
) -> PolicyTerms:
    """Sums of the clipped policy loss and of the statistics to watch.

    Args:
        logprobs_N: log-probabilities of the actions now, with gradient; an action is a token or a whole answer.
        old_logprobs_N: log-probabilities when the actions were sampled.
        clip_range: c; a ratio below 1 - c or above 1 + c brings no further gain.
        clip_range_high: c_high for the upper bound; None: c. [DAPO: Yu et al. 2025, arXiv 2503.14476, Eq 10]
        weights_N: weight of each action in `loss_sum`; None: 1.
    """
    logratio_N = logprobs_N - old_logprobs_N
    ratio_N = logratio_N.exp()
    high = clip_range if clip_range_high is None else clip_range_high
    plain_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip_range, 1 + high)
    loss_N = torch.maximum(plain_N, clipped_N)
    loss_sum = (loss_N if weights_N is None else weights_N * loss_N).sum()
    with torch.no_grad():
        return PolicyTerms(
            loss_sum=loss_sum,
            approx_kl_sum=(0.5 * logratio_N.square()).sum(),
            clipfrac_sum=(clipped_N > plain_N).float().sum(),
            ratio_sum=ratio_N.sum(),
            ratio_sq_sum=ratio_N.square().sum(),
            n=torch.tensor(float(ratio_N.numel()), device=ratio_N.device),
        )


def weighted_policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, clip_range: float, clip_range_high: float
) -> PolicyTerms:
    """Sums of CISPO's policy loss, and of the statistics to watch; `clipfrac_sum` counts the clipped weights.

    Args:
        logprobs_N: log-probabilities of the actions now, with gradient.
        old_logprobs_N: log-probabilities when the actions were sampled.
        clip_range: c; the weight is at least 1 - c.
        clip_range_high: c_high; the weight is at most 1 + c_high.
    """
    with torch.no_grad():
        watched = policy_loss(logprobs_N, old_logprobs_N, advantages_N, clip_range, clip_range_high)
        importance_N = (logprobs_N - old_logprobs_N).exp()
        weights_N = importance_N.clamp(1 - clip_range, 1 + clip_range_high)
        clipped = (weights_N != importance_N).float().sum()
    return watched._replace(loss_sum=-(weights_N * advantages_N * logprobs_N).sum(), clipfrac_sum=clipped)


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip_range: float) -> ValueTerms:
    """Sums of the clipped value loss; `clip_range` in units of the score."""
    clipped_values_N = old_values_N + (values_N - old_values_N).clamp(-clip_range, clip_range)
    plain_N = (values_N - returns_N).square()
    clipped_N = (clipped_values_N - returns_N).square()
    loss_sum = (0.5 * torch.maximum(plain_N, clipped_N)).sum()
    with torch.no_grad():
        return ValueTerms(
            loss_sum=loss_sum,
            clipfrac_sum=(clipped_N > plain_N).float().sum(),
            error_sum=plain_N.sum(),
            n=torch.tensor(float(values_N.numel()), device=values_N.device),
        )


def explained_variance(values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """1 - mean squared error / biased variance of the returns; shape (), NaN where all returns are equal.

    1: perfect; 0: as good as predicting their mean. Like lm-human-preferences' `val/var_explained`, and unlike
    1 - var(error) / var(returns), it counts a constant error of the value function.
    """
    moments = masked_moments(returns_BR, mask_BR)
    error = masked_sum((values_BR - returns_BR).square(), mask_BR) / moments.n
    return torch.where(moments.var > 0, 1 - error / moments.var, torch.nan)
