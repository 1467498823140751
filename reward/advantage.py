"""From one score per response to rewards per token, and from rewards to advantages.

Rewards (Ziegler et al. 2019, arXiv 1909.08593, section 2; InstructGPT, arXiv 2203.02155, Eq 2): the score comes at the
response's end, and every token pays for its distance from the reference policy:

    reward_t = -kl_coef (log pi - log ref)_t  +  [t is the last real token] score

GAE (Schulman et al. 2016, arXiv 1506.02438, Eq 16), with the response's end as the episode's end:

    delta_t = r_t + gamma V_{t+1} - V_t,  A_t = sum_l (gamma lam)^l delta_{t+l},  return_t = A_t + V_t

V is 0 after the last real token: nothing is bootstrapped from padding. RLHF uses gamma 1 and lam 0.95 (Ziegler,
Stiennon, InstructGPT); with lam 1 the return is the plain sum of the rewards to come.

With k answers per prompt, of returns r_1 ... r_k with mean m and standard deviation s:

    leave one out     A_i = r_i - mean of the k - 1 others   Kool, van Hoof and Welling 2019 ("Buy 4 REINFORCE samples,
                        get a baseline for free!"); RLOO: Ahmadian et al. 2024 (arXiv 2402.14740, section 3.2). The
                        baseline doesn't depend on the answer, so the policy gradient is unbiased
    group-normalised  A_i = (r_i - m) / (s + eps)            GRPO: Shao et al. 2024 (arXiv 2402.03300, section 4.1.2)
                      A_i = r_i - m                          Dr. GRPO: Liu et al. 2025 (arXiv 2503.20783, section 3)

Whitening follows lm-human-preferences: biased variance over the real tokens of the whole batch; rewards keep their mean
(`shift_mean=False`), advantages lose it. Responses are right-padded; a mask is True from the first token up to and
including the end-of-text. Padding is removed by selection, never by multiplication: a NaN in it can't reach a sum.

Left out: scaling by running statistics (PPO-max), and scores for parts of a response.

Legend: B batch, R response, P prompts, K answers per prompt; x and mask have any, equal, shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WHITEN_EPS = 1e-8
"""Added to the variance. [lm-human-preferences]"""


def last_token(mask_BR: Tensor) -> Tensor:
    """last_BR, bool: True at the last real token of each response.

    Raises:
        ValueError: when a response has no real token, or padding before or between real ones.
    """
    next_BR = torch.nn.functional.pad(mask_BR[:, 1:], (0, 1), value=False)
    last_BR = mask_BR & ~next_BR
    # With padding on the right only, the last token is unique and lies at index length - 1.
    if not (mask_BR[:, 0].all() and (last_BR.sum(1) == 1).all()):
        raise ValueError("every response needs at least one real token, and its padding on the right only")
    return last_BR


def penalise_unfinished(scores_B: Tensor, finished_B: Tensor, penalty: float) -> Tensor:
    """scores_B less `penalty` (score units, >= 0) where the response has no end-of-text."""
    return torch.where(finished_B, scores_B, scores_B - penalty)


def clip_scores(scores_B: Tensor, limit: float) -> Tensor:
    """scores_B clipped to -limit .. limit (score units)."""
    return scores_B.clamp(-limit, limit)


def token_rewards(
    scores_B: Tensor, logprobs_BR: Tensor, ref_logprobs_BR: Tensor, mask_BR: Tensor, kl_coef: float
) -> Tensor:
    """rewards_BR: -kl_coef * k1 on every real token, plus the score on the last real one; 0 on padding.

    Raises:
        ValueError: when a response has no real token, or padding before or between real ones.
    """
    penalty_BR = kl_coef * (logprobs_BR - ref_logprobs_BR)  # k1 of kl.py: the price of the whole log ratio, per token
    score_BR = torch.where(last_token(mask_BR), scores_B.to(penalty_BR.dtype).unsqueeze(1), 0)
    return torch.where(mask_BR, score_BR - penalty_BR, 0)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`x` with variance 1 over the real tokens, and 0 on padding.

    `shift_mean=True` (advantages) makes the mean 0; `shift_mean=False` (rewards) keeps it.
    """
    x = at_least_float32(x)
    moments = masked_moments(x, mask)
    whitened = (x - moments.mean) * torch.rsqrt(moments.var + WHITEN_EPS)
    return torch.where(mask, whitened if shift_mean else whitened + moments.mean, 0)


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages_BR, returns_BR), both 0 where `mask_BR` is False; call it without gradient.

    `values_BR[b, t]` is the value of the state in which token t was chosen. The value function is trained to predict
    `returns_BR`, so advantages are whitened afterwards.
    """
    rewards_BR = torch.where(mask_BR, rewards_BR, 0)
    values_BR = torch.where(mask_BR, values_BR, 0)
    next_values_BR = torch.nn.functional.pad(values_BR[:, 1:], (0, 1))
    deltas_BR = rewards_BR + gamma * next_values_BR - values_BR
    advantage_B = torch.zeros_like(deltas_BR[:, 0])
    backwards = []
    for delta_B in reversed(deltas_BR.unbind(1)):
        advantage_B = delta_B + gamma * lam * advantage_B
        backwards.append(advantage_B)
    advantages_BR = torch.stack(backwards[::-1], dim=1)
    return advantages_BR, advantages_BR + values_BR


def leave_one_out(returns_B: Tensor, k: int) -> Tensor:
    """advantages_B: each return less the mean of the `k` - 1 others of its prompt, whose answers lie side by side.

    Raises:
        ValueError: when k is less than 2 or does not divide B.
    """
    returns_PK = _by_prompt(returns_B, k)
    others_PK = (returns_PK.sum(1, keepdim=True) - returns_PK) / (k - 1)
    return (returns_PK - others_PK).view(-1)


def group_normalised(returns_B: Tensor, k: int, *, scale: bool, eps: float, ddof: int = 1) -> Tensor:
    """advantages_B: each return less the mean of its prompt's `k`, which lie side by side.

    With `scale` it is divided by the group's standard deviation plus `eps` (units of the return). The deviation divides
    by k - `ddof`: 1, as in TRL's GRPO (1.16, with eps 1e-4); the paper does not say. Without `scale`, a prompt whose
    answers nearly agree weighs no more than the others. A group of equal returns has advantage 0 either way.

    Raises:
        ValueError: when k is less than 2 or does not divide B.
    """
    returns_PK = _by_prompt(returns_B, k)
    advantages_PK = returns_PK - returns_PK.mean(1, keepdim=True)
    if scale:
        advantages_PK = advantages_PK / (returns_PK.std(1, correction=ddof, keepdim=True) + eps)
    # Rounding may leave the mean of equal numbers apart from them, and a small eps would blow that up.
    equal_P1 = returns_PK.amax(1, keepdim=True) == returns_PK.amin(1, keepdim=True)
    return torch.where(equal_P1, 0, advantages_PK).view(-1)


def _by_prompt(returns_B: Tensor, k: int) -> Tensor:
    if k < 2 or len(returns_B) % k:
        raise ValueError(f"k must be at least 2 and divide the number of returns, got {k} and {len(returns_B)}")
    return returns_B.view(-1, k)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it was."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
