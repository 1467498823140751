"""The loss of a reward model that learns from rankings of K answers.

InstructGPT (arXiv 2203.02155, section 3.5, Eq 1), per prompt:

    loss = -1 / #pairs  sum over pairs  log sigmoid(score of the better - score of the worse)

All pairs of a prompt are one batch element, so each answer is scored once and a prompt weighs the same whatever its K.
Pairs of equal rank are dropped, and #pairs counts the others only (Eq 1's C(K, 2) less the ties). K = 2 is the usual
loss on chosen and rejected. Rank 1 is the best.

Left out: the margin term of Llama 2 and any loss on ties.

Legend: K answers of one prompt, N answers of several prompts, M pairs, G groups (prompts).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gptlife.data.errors import UserError
from gptlife.reward.advantage import at_least_float32


class RankingTerms(NamedTuple):
    """Sums over prompts and pairs, each of shape ()."""

    loss_sum: Tensor
    """Sum over prompts of their mean pair loss, nats: minimise it."""
    n_groups: Tensor
    """Prompts with at least one pair: the denominator of `loss_sum`."""
    correct_pairs: Tensor
    """Pairs whose better answer scores higher; equal scores count half."""
    n_pairs: Tensor
    """Pairs that are not tied in rank."""


def ranked_pairs(ranks_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """(better_M, worse_M): indices of every pair of one group with different ranks; builds an (N, N) bool table."""
    same_group_NN = group_N.unsqueeze(1) == group_N.unsqueeze(0)
    ahead_NN = ranks_N.unsqueeze(1) < ranks_N.unsqueeze(0)
    better_M, worse_M = torch.nonzero(same_group_NN & ahead_NN, as_tuple=True)
    return better_M, worse_M


def ranking_loss_flat(scores_N: Tensor, ranks_N: Tensor, group_N: Tensor) -> RankingTerms:
    """Sums over the prompts; answers of equal `group_N` (any integers, any order) belong to one prompt.

    Split a batch between prompts, never within one. A prompt whose answers are all tied adds to no count.
    """
    scores_N = at_least_float32(scores_N)
    better_M, worse_M = ranked_pairs(ranks_N, group_N)
    chosen_M, rejected_M = scores_N[better_M], scores_N[worse_M]
    _, group_M, pairs_of_G = torch.unique(group_N[better_M], return_inverse=True, return_counts=True)
    return RankingTerms(
        loss_sum=(-logsigmoid(chosen_M - rejected_M) / pairs_of_G[group_M]).sum(),
        n_groups=pairs_of_G.new_tensor(len(pairs_of_G)),
        correct_pairs=(0.5 * (1 + (chosen_M - rejected_M).detach().sign())).sum(),
        n_pairs=pairs_of_G.sum(),
    )


def normalisation(scores: Tensor) -> tuple[float, float]:
    """(gain, bias) with which gain * score + bias has mean 0 and (biased) standard deviation 1 over `scores`.

    gain = 1 / std, bias = -gain * mean [lm-human-preferences]. InstructGPT moves only the mean, so that demonstrations
    score 0: gain 1, and this bias divided by this gain.

    Raises:
        UserError: when the scores are not finite, all equal, or none.
    """
    scores = scores.detach().double().flatten()
    if not len(scores) or not scores.isfinite().all() or scores.max() == scores.min():
        given = f"{len(scores)} scores from {scores.min():g} to {scores.max():g}" if len(scores) else "none"
        raise UserError(f"reward normalisation: needs finite scores that differ, got {given}; check the reward model")
    gain = 1 / scores.std(correction=0).item()
    return gain, -gain * scores.mean().item()
