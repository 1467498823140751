"""KL(pi || ref), estimated from tokens that pi itself sampled, and the controller of its coefficient.

With logratio = log pi(token) - log ref(token) for a token drawn from pi (Schulman 2020, "Approximating KL Divergence",
http://joschu.net/blog/kl-approx.html; there r = ref/pi, so log r = -logratio):

    k1 = logratio                          unbiased, can be negative, high variance
    k2 = logratio² / 2                     biased, >= 0, low variance
    k3 = exp(-logratio) - 1 + logratio     unbiased, >= 0, low variance

The reward's KL penalty is k1: its sum over a response is the log ratio of the whole response. k3 is logged beside it,
since it varies less. None of these holds for tokens that another policy sampled.

The controller is that of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2). Left out: the exact KL over the whole
vocabulary, which needs the reference's logits at every step.

The tensors of a call have any, equal, shape.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Per token, in nats: log pi - log ref. Unbiased under samples from pi; single tokens can be negative."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Per token, in nats: half the squared log ratio. Never negative, biased, small variance."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Per token, in nats: ref/pi - 1 - log(ref/pi). Never negative, and unbiased under samples from pi."""
    logratio = logprobs - ref_logprobs
    # expm1 keeps the digits where the two policies nearly agree: there k3 is about logratio² / 2.
    return torch.expm1(-logratio) + logratio


def adapt(kl_coef: float, kl: float, target: float, n_episodes: int, horizon: int) -> float:
    """The KL coefficient after a batch: up when the measured KL is above the target, down when below.

    e = clip(kl / target - 1, -0.2, 0.2);  kl_coef <- kl_coef (1 + e n_episodes / horizon)

    `kl` and `target` are in nats per response (summed over its tokens), `horizon` in responses; `n_episodes` counts the
    responses of the batch over all processes. Ziegler's style tasks: first coefficient 0.15, target 6, horizon 10,000.

    Raises:
        ValueError: when target or horizon is not positive.
    """
    if not (target > 0 and horizon > 0):
        raise ValueError(f"KL target and horizon must be > 0, got {target} and {horizon}")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * n_episodes / horizon)
