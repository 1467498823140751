"""The loss of a reward model that learns from rankings of K answers.

InstructGPT (arXiv 2203.02155, section 3.5, Eq 1), per prompt:

    loss = -1 / #pairs  sum over pairs  log sigmoid(score of the better - score of the worse)

All pairs of a prompt stand in one batch element, so that each answer is scored once and a prompt weighs the same
whatever its K. Labelers may rank answers equal: such pairs say nothing and are dropped, and #pairs counts the others
only (Eq 1's C(K, 2) less the ties). K = 2 is the usual loss on chosen and rejected. A rank is a place: lower is better.

Left out: the margin term of Llama 2 and any loss on ties.

Legend: K answers of one prompt, N answers of several prompts, M pairs, G groups (prompts).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gptlife.data.errors import UserError
from gptlife.reward.logprobs import at_least_float32


class RankingTerms(NamedTuple):
    """Sums over prompts and pairs, each of shape (): divide by the (global) counts."""

    loss_sum: Tensor
    """Sum over prompts of their mean pair loss; the one to minimise."""
    n_groups: Tensor
    """Prompts with at least one pair: what `loss_sum` is divided by."""
    correct_pairs: Tensor
    """Pairs whose better answer scores higher; an equal score counts half."""
    n_pairs: Tensor
    """Pairs that are not tied in rank."""


def ranked_pairs(ranks_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """(better_M, worse_M): indices of every pair of one group with different ranks; builds an (N, N) bool table."""
    same_group_NN = group_N.unsqueeze(1) == group_N.unsqueeze(0)
    ahead_NN = ranks_N.unsqueeze(1) < ranks_N.unsqueeze(0)
    better_M, worse_M = torch.nonzero(same_group_NN & ahead_NN, as_tuple=True)
    return better_M, worse_M


def ranking_loss(scores_K: Tensor, ranks_K: Tensor) -> Tensor:
    """Mean pair loss of one prompt, shape (), nats; 0 when all its answers are tied."""
    return ranking_loss_flat(scores_K, ranks_K, torch.zeros_like(ranks_K)).loss_sum


def ranking_loss_flat(scores_N: Tensor, ranks_N: Tensor, group_N: Tensor) -> RankingTerms:
    """`ranking_loss` summed over prompts; answers of equal `group_N` (any integers, any order) belong to one prompt.

    Split a batch between prompts, never inside one. A prompt without a pair adds to no count.
    """
    scores_N = at_least_float32(scores_N)
    better_M, worse_M = ranked_pairs(ranks_N, group_N)
    chosen_M, rejected_M = scores_N[better_M], scores_N[worse_M]
    _, group_M, pairs_of_G = torch.unique(group_N[better_M], return_inverse=True, return_counts=True)
    return RankingTerms(
        loss_sum=(-logsigmoid(chosen_M - rejected_M) / pairs_of_G[group_M]).sum(),
        n_groups=pairs_of_G.new_tensor(len(pairs_of_G)),
        correct_pairs=_correct(chosen_M, rejected_M).sum(),
        n_pairs=pairs_of_G.sum(),
    )


def pair_accuracy(chosen_M: Tensor, rejected_M: Tensor) -> Tensor:
    """Fraction of pairs, shape (), whose chosen answer scores higher; an equal score counts half, as a coin would."""
    return _correct(chosen_M, rejected_M).mean()


def _correct(chosen_M: Tensor, rejected_M: Tensor) -> Tensor:
    margin_M = (chosen_M - rejected_M).detach()
    return 0.5 * (1 + margin_M.sign())


def normalisation(scores: Tensor) -> tuple[float, float]:
    """(gain, bias) with which gain * score + bias has mean 0 and (biased) standard deviation 1 over `scores`.

    gain = 1 / std, bias = -gain * mean [lm-human-preferences]. InstructGPT moves the mean only, so that demonstrations
    score 0: that is gain 1 and this bias / gain.

    Raises:
        UserError: when the scores are not finite, all equal, or none.
    """
    scores = scores.detach().double().flatten()
    if not len(scores) or not scores.isfinite().all() or scores.max() == scores.min():
        found = f"{len(scores)} scores from {scores.min():g} to {scores.max():g}" if len(scores) else "none"
        raise UserError(f"reward normalisation: needs finite scores that differ, found {found}; check the reward model")
    gain = 1 / scores.std(correction=0).item()
    return gain, -gain * scores.mean().item()
