"""One score from several reward models that differ in seed: a policy can exploit an error of one, hardly one of all.

Coste et al. 2023 (arXiv 2310.02743) combine the M members' scores of an answer by their mean, by the worst of them, or
by mean - λ·variance (uncertainty-weighted). Here the last takes the standard deviation over the members (biased:
divided by M) in place of the variance: λ then has no unit, and a scale common to all scores changes no order.

Left out: members that differ in pretraining seed (Eisenstein et al. 2023, arXiv 2312.09244), heads on one shared trunk.

Legend: M members, N answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat

from gptlife.data.config import Config

if TYPE_CHECKING:
    from torch import Tensor


Rule = Literal["mean", "mean_std", "worst"]


class EnsembleConfig(Config):
    """How the members' scores become one; no effect on a reward model of one member."""

    rule: Rule = "mean_std"
    """mean; mean_std: mean - coef · standard deviation over the members; worst: the lowest. [Coste et al. 2023]"""
    coef: NonNegativeFloat = 1.0
    """λ of mean_std, in standard deviations; 0 is the mean."""


def combine(scores_MN: Tensor, config: EnsembleConfig) -> Tensor:
    """scores_N: one score per answer, by `config.rule`."""
    if config.rule == "worst":
        return scores_MN.amin(0)
    mean_N = scores_MN.mean(0)
    return mean_N if config.rule == "mean" else mean_N - config.coef * scores_MN.std(0, correction=0)
