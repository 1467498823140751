"""Log-probabilities of tokens, and sums over the real tokens of a padded batch.

Log-probabilities are those of the distribution that was sampled from, so the logits are divided by the sampling
temperature; otherwise the measured KL rises too fast (Huang et al. 2024, "The N implementation details of RLHF with
PPO", https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo). Softmaxes are taken in float32 and
taken again in the backward pass, so that only the logits and their gradient stay in memory.

Padding is removed by selection, never by multiplication: a NaN or an infinity in it can't reach a sum.

Legend: N tokens, V vocabulary; x and mask have any, equal, shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it was."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` where `mask` (bool), shape (); in float32 or better."""
    return torch.where(mask, at_least_float32(x), 0).sum()


class Moments(NamedTuple):
    """Number, mean and biased variance of the real entries; each of shape ()."""

    n: Tensor
    mean: Tensor
    var: Tensor


def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Moments of `x` where `mask` (bool); the variance is taken in a second pass, from squared deviations."""
    total = masked_sum(x, mask)
    count = mask.sum().to(total.dtype)
    mean = total / count
    return Moments(count, mean, masked_sum((x - mean).square(), mask) / count)
