"""Details of KL and rewards, one test each.

Ziegler et al. 2019 (arXiv 1909.08593) and its code lm-human-preferences; N: the blog post "The N Implementation
Details of RLHF with PPO"; Ouyang et al. 2022 (arXiv 2203.02155, InstructGPT).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import shipped
import torch
from compare import agree
from shipped import lists
from torch import Tensor

from gptlife.reward import kl
from gptlife.reward.advantage import last_token, token_rewards
from gptlife.stages.rl import episodes


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(scores_B, logprobs_BR, ref_logprobs_BR, mask_BR) of four answers of 7, 3, 1 and 5 tokens, in float64."""
    generator = torch.Generator().manual_seed(seed)
    logprobs_BR, ref_logprobs_BR = -3 * torch.rand(2, 4, 7, generator=generator, dtype=torch.float64)
    scores_B = torch.randn(4, generator=generator, dtype=torch.float64)
    return scores_B, logprobs_BR, ref_logprobs_BR, torch.arange(7) < torch.tensor([7, 3, 1, 5]).unsqueeze(1)


def refused(check: Callable[..., None], *arguments: Any) -> None:
    with pytest.raises(AssertionError):
        check(*arguments)


def test_kl_per_token() -> None:
    """N: log pi - log ref at every token, by the double loop; estimators k1 and k3 (Schulman 2020)."""
    _, logprobs_BR, ref_logprobs_BR, mask_BR = ragged()

    def check(estimator: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
        agree(estimator(logprobs_BR, ref_logprobs_BR), oracles.kl(*lists(logprobs_BR, ref_logprobs_BR, mask_BR), name))

    check(kl.k1, "k1")
    check(kl.k3, "k3")
    refused(check, kl.k1, "k3")
    refused(check, kl.k3, "k2")


def test_kl_sign() -> None:
    """N; "bugs can optimize for bad behavior" (Ziegler): k1 is positive where the policy likes its token better."""

    def check(estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
        agree(estimator(torch.tensor([-1.0, -3.0]), torch.tensor([-2.5, -2.0])), [1.5, -1.0])

    check(kl.k1)
    refused(check, lambda pi, ref: kl.k1(ref, pi))


def distribution() -> tuple[Tensor, Tensor]:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    return p.log(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()


def test_k1_and_k3_are_unbiased() -> None:
    """Schulman 2020: under the policy both have the mean KL(pi || ref), exactly; k2 and k3 turned round don't."""
    log_p, log_q = distribution()
    exact = sum(math.exp(p) * (p - q) for p, q in zip(*lists(log_p, log_q), strict=True))

    def check(estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
        agree(float((log_p.exp() * estimator(log_p, log_q)).sum()), exact)

    check(kl.k1)
    check(kl.k3)
    refused(check, lambda pi, ref: 0.5 * (pi - ref).square())
    refused(check, lambda pi, ref: kl.k3(ref, pi))


def test_k3_is_never_negative() -> None:
    """Schulman 2020: k3 >= 0 token by token, and keeps its digits where the policies nearly agree (float32)."""
    delta = torch.tensor([3e-4, -3e-4, 1e-3, -2.0, 2.0])
    expected = [math.exp(-d) - 1 + d for d in delta.double().tolist()]

    def check(estimator: Callable[[Tensor, Tensor], Tensor], steady: bool = True) -> None:
        found = estimator(delta, torch.zeros(5))
        assert bool((found >= 0).all())
        for own, e in zip(found.tolist(), expected, strict=True):
            assert not steady or own == pytest.approx(e, rel=1e-3)

    check(kl.k3)
    refused(check, kl.k1)
    refused(check, lambda pi, ref: (ref - pi).exp() - 1 + (pi - ref))  # exp loses the digits that expm1 keeps


def test_kl_of_equal_policies_is_zero() -> None:
    """lm-human-preferences, objective/kl: starts at exactly 0."""
    _, logprobs_BR, _, _ = ragged()

    def check(ref_BR: Tensor) -> None:
        for estimator in (kl.k1, kl.k3):
            assert bool((estimator(logprobs_BR.float(), ref_BR.float()) == 0).all())

    check(logprobs_BR)
    refused(check, logprobs_BR + 1e-4)


def rewards(**changes: Any) -> Any:
    scores_B, logprobs_BR, ref_logprobs_BR, mask_BR = ragged()
    arguments = {"scores_B": scores_B, "logprobs_BR": logprobs_BR, "ref_logprobs_BR": ref_logprobs_BR,
                 "mask_BR": mask_BR, "kl_coef": 0.3, **changes}  # fmt: skip
    return token_rewards(**arguments)


def expected_rewards(wrong: str = "") -> Any:
    return oracles.token_rewards(*lists(*ragged()), 0.3, wrong)


def test_kl_penalty_at_every_token() -> None:
    """N; InstructGPT 3.5 (per-token KL penalty): -beta (log pi - log ref) at each real token, nothing on padding."""
    agree(rewards(), expected_rewards())
    mask_BR = ragged()[3]
    assert bool((rewards()[~mask_BR] == 0).all())
    for wrong in ("kl_sign", "kl_once"):
        refused(agree, rewards(), expected_rewards(wrong))
    refused(agree, rewards(kl_coef=-0.3), expected_rewards())


def test_score_at_the_last_token_only() -> None:
    """N; Ziegler: the score is added once, at the last real token."""
    scores_B, _, _, mask_BR = ragged()
    at_once = rewards() - rewards(scores_B=torch.zeros(4))
    by_hand = torch.zeros(4, 7, dtype=torch.float64)
    for row, place in enumerate((6, 2, 0, 4)):
        by_hand[row, place] = scores_B[row]
    agree(at_once, by_hand)
    agree(last_token(mask_BR).int(), (by_hand != 0).int())
    for wrong in ("score_everywhere", "score_at_first", "score_in_last_column"):
        refused(agree, rewards(), expected_rewards(wrong))


def test_rewards_sum_to_the_objective() -> None:
    """InstructGPT Eq 2: an answer's rewards sum to r - beta log(pi / ref) of the whole answer."""
    scores_B, logprobs_BR, ref_logprobs_BR, mask_BR = ragged()
    expected = [
        score - 0.3 * sum(p - q for p, q, real in zip(*rows, strict=True) if real)
        for score, *rows in zip(*lists(scores_B, logprobs_BR, ref_logprobs_BR, mask_BR), strict=True)
    ]
    agree(rewards().sum(1), expected)
    refused(agree, rewards(kl_coef=0.0).sum(1), expected)


def test_padding_reaches_no_reward() -> None:
    """N+ code masks both log-probabilities alike after the end; here padding isn't looked at, even if it is NaN."""
    _, logprobs_BR, _, mask_BR = ragged()
    holes = rewards(logprobs_BR=logprobs_BR.masked_fill(~mask_BR, torch.nan))
    agree(holes, rewards())
    # Sums over an answer (a return, what is logged) are taken over padding too.
    assert bool((holes[~mask_BR] == 0).all())
    refused(agree, rewards(logprobs_BR=logprobs_BR.masked_fill(mask_BR, torch.nan)), rewards())


def test_score_clip() -> None:
    """Zheng et al. 2023 (PPO-max): scores held within a bound on either side."""
    mask_BR = torch.ones(3, 2).bool()
    readings = shipped.readings_of(mask_BR, scores_B=torch.tensor([2.0, -3.0, 0.5]))

    def clipped(limit: float | None) -> Tensor:
        return episodes.rewards(readings, shipped.rollouts_of(mask_BR), 0.1, 1.0, limit)

    agree(clipped(1.5), [[0.0, 1.5], [0.0, -1.5], [0.0, 0.5]])
    for other in (3.0, None):
        refused(agree, clipped(other), clipped(1.5))


@pytest.mark.parametrize("measured", [0.5, 4.8, 6.0, 6.6, 7.3, 60.0])
def test_adaptive_kl_update(measured: float) -> None:
    """Ziegler 2.2 and code: e = clip(KL / target - 1, ±0.2), coefficient times 1 + e episodes / horizon."""
    found = kl.adapt(0.15, measured, 6.0, 512, 10_000)
    agree(found, oracles.adapted(0.15, measured, 6.0, 512, 10_000))
    if measured == 60.0:  # by hand: the error is held at 0.2
        agree(found, 0.15 * (1 + 0.2 * 0.0512))
    if measured == 0.5:
        agree(found, 0.15 * (1 - 0.2 * 0.0512))
        refused(agree, found, oracles.adapted(0.15, measured, 6.0, 512, 10_000, "not_clipped"))
    if measured != 6.0:
        for wrong in ("other_way", "no_horizon"):
            refused(agree, found, oracles.adapted(0.15, measured, 6.0, 512, 10_000, wrong))
