"""From one score per response to one reward per token, and whitening.

The reward model gives one score at the response's end, and every token pays for its distance from the reference policy
(Ziegler et al. 2019, arXiv 1909.08593, section 2; InstructGPT, arXiv 2203.02155, Eq 2):

    reward_t = -kl_coef (log pi - log ref)_t  +  [t is the last real token] score

Responses are right-padded; a mask is True from the first token up to and including the end-of-text. Whitening follows
lm-human-preferences: biased variance over the real tokens of the whole batch; rewards keep their mean
(`shift_mean=False`), advantages lose it.

Left out: scaling by running statistics (PPO-max), and scores for parts of a response.

Legend: B batch, R response.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptlife.reward.kl import k1
from gptlife.reward.logprobs import at_least_float32, masked_moments

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
    penalty_BR = kl_coef * k1(logprobs_BR, ref_logprobs_BR)
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
