"""Oracle: the exact KL of two small categorical distributions, as an expectation over all their tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptlife.reward.kl import adapt, k1, k2, k3

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REF = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
# .5 log(.5/.2) + .3 log(.3/.2) + .2 log(.2/.6)
EXACT = 0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.2 * math.log(1 / 3)


def expectation(estimator, under=PI):
    return (under * estimator(PI.log(), REF.log())).sum().item()


def test_by_hand():
    # pi 0.5, ref 0.25: logratio log 2; k3 = 1/2 - 1 + log 2.
    logprobs, ref_logprobs = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert k1(logprobs, ref_logprobs).item() == pytest.approx(math.log(2))
    assert k2(logprobs, ref_logprobs).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(logprobs, ref_logprobs).item() == pytest.approx(math.log(2) - 0.5)


def test_k1_and_k3_are_unbiased_under_samples_from_pi():
    assert expectation(k1) == pytest.approx(EXACT, rel=1e-12)
    assert expectation(k3) == pytest.approx(EXACT, rel=1e-12)


def test_twins_that_are_not_the_kl():
    assert expectation(k2) != pytest.approx(EXACT, rel=1e-2)  # biased
    assert expectation(lambda p, q: k1(q, p)) != pytest.approx(EXACT, rel=1e-2)  # wrong sign
    assert expectation(lambda p, q: k3(q, p)) != pytest.approx(EXACT, rel=1e-2)  # exp(+logratio) - 1 - logratio
    assert expectation(k3, under=REF) != pytest.approx(EXACT, rel=1e-2)  # samples from another policy


def test_zero_for_equal_policies():
    for estimator in (k1, k2, k3):
        assert torch.equal(estimator(PI.log(), PI.log()), torch.zeros_like(PI))


@given(st.floats(-15, 0), st.floats(-15, 0))
def test_k2_and_k3_are_never_negative(logprob, ref_logprob):
    logprobs, ref_logprobs = torch.tensor([logprob]), torch.tensor([ref_logprob])
    assert k2(logprobs, ref_logprobs).item() >= 0
    assert k3(logprobs, ref_logprobs).item() >= 0


def test_k3_is_precise_for_nearly_equal_policies():
    # logratio d = 1e-3: k3 = d²/2 - d³/6 = 5e-7 - 1.7e-10.
    logprobs, ref_logprobs = torch.tensor([1e-3]), torch.tensor([0.0])
    assert k3(logprobs, ref_logprobs).item() == pytest.approx(4.99833e-7, rel=1e-3)
    assert (torch.exp(-logprobs) - 1 + logprobs).item() != pytest.approx(4.99833e-7, rel=1e-3)  # twin: plain exp


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.15 * (1 + 0.1 * 0.0512)),  # 10 % above: e = 0.1
        (5.4, 0.15 * (1 - 0.1 * 0.0512)),
        (60.0, 0.15 * (1 + 0.2 * 0.0512)),  # held at 0.2
        (0.0, 0.15 * (1 - 0.2 * 0.0512)),
        (6.0, 0.15),
    ],
)
def test_adapt_by_hand(kl, expected):
    # Ziegler's style task: coefficient 0.15, target 6, 512 episodes of a horizon of 10,000.
    assert adapt(0.15, kl, 6.0, 512, 10_000) == pytest.approx(expected, rel=1e-12)


def test_adapt_pays_more_for_more_kl():
    assert adapt(0.15, 7.0, 6.0, 512, 10_000) > 0.15 > adapt(0.15, 5.0, 6.0, 512, 10_000)


@pytest.mark.parametrize(("target", "horizon"), [(0.0, 10), (-1.0, 10), (6.0, 0)])
def test_adapt_refuses(target, horizon):
    with pytest.raises(ValueError, match="must be > 0"):
        adapt(0.15, 1.0, target, 8, horizon)
