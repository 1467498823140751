"""Oracles: PPO's two losses action by action in plain Python floats, and cases worked by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from gptlife.reward.objective import explained_variance, policy_loss, value_loss, weighted_policy_loss


def three_tensors(n=13):
    return torch.randn(3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def of_ratios(ratios, advantages, *ranges, **options):
    ratio_N = torch.tensor(ratios, dtype=torch.float64)
    return policy_loss(
        ratio_N.log(), torch.zeros_like(ratio_N), torch.tensor(advantages, dtype=torch.float64), *ranges, **options
    )


def test_policy_loss_by_hand():
    # Ratios 1.5, 1.5, 0.5, 0.5, 1.1 with advantages 1, -1, 1, -1, 2 and clip range 0.2:
    #   A=1,  r=1.5: -min(1.5, 1.2)  = -1.2  clipped        A=-1, r=1.5: max(1.5, 1.2)  =  1.5  not
    #   A=1,  r=0.5: -min(0.5, 0.8)  = -0.5  not            A=-1, r=0.5: max(0.5, 0.8)  =  0.8  clipped
    #   A=2,  r=1.1: -2.2                    not            sum -1.6, two clipped, ratios 5.1, squares 6.21
    terms = of_ratios([1.5, 1.5, 0.5, 0.5, 1.1], [1.0, -1.0, 1.0, -1.0, 2.0], 0.2)
    assert terms.loss_sum.item() == pytest.approx(-1.6)
    assert terms.clipfrac_sum.item() == 2
    assert terms.ratio_sum.item() == pytest.approx(5.1)
    assert terms.ratio_sq_sum.item() == pytest.approx(6.21)
    expected_kl = 0.5 * (2 * math.log(1.5) ** 2 + 2 * math.log(0.5) ** 2 + math.log(1.1) ** 2)
    assert terms.approx_kl_sum.item() == pytest.approx(expected_kl)
    assert terms.n.item() == 5


def test_a_higher_upper_clip_by_hand():
    # Ranges 0.2 and 0.28. A=1: r=1.25 is now inside (-1.25), r=1.5 is clipped to 1.28, r=0.5 stays (-0.5).
    # A=-1: r=0.5 is still clipped to 0.8. Sum -1.25 - 1.28 - 0.5 + 0.8 = -2.23, two clipped.
    ratios, advantages = [1.25, 1.5, 0.5, 0.5], [1.0, 1.0, 1.0, -1.0]
    terms = of_ratios(ratios, advantages, 0.2, 0.28)
    assert terms.loss_sum.item() == pytest.approx(-2.23)
    assert terms.clipfrac_sum.item() == 2
    # None is the same range on both sides: -1.2 - 1.2 - 0.5 + 0.8.
    assert of_ratios(ratios, advantages, 0.2).loss_sum.item() == pytest.approx(-2.1)
    # Twins: the two ranges exchanged (-1.2 - 1.2 - 0.5 + 0.72), and the higher one on both sides.
    assert of_ratios(ratios, advantages, 0.28, 0.2).loss_sum.item() == pytest.approx(-2.18)
    assert of_ratios(ratios, advantages, 0.28).loss_sum.item() == pytest.approx(-2.31)


def test_a_weight_enters_the_loss_alone():
    # Losses -1.2, 0.8 and -1.1 with weights 1, 0.5 and 2: -1.2 + 0.4 - 2.2 = -3.0.
    plain = of_ratios([1.5, 0.5, 1.1], [1.0, -1.0, 1.0], 0.2)
    weighted = of_ratios([1.5, 0.5, 1.1], [1.0, -1.0, 1.0], 0.2, weights_N=torch.tensor([1.0, 0.5, 2.0]))
    assert plain.loss_sum.item() == pytest.approx(-1.5)
    assert weighted.loss_sum.item() == pytest.approx(-3.0)
    assert weighted[1:] == plain[1:]


def policy_oracle(new_N, old_N, advantages_N, clip_range, sign=-1.0):
    total = 0.0
    for new, old, advantage in zip(new_N.tolist(), old_N.tolist(), advantages_N.tolist(), strict=True):
        ratio = math.exp(new - old)
        total += sign * min(ratio * advantage, min(max(ratio, 1 - clip_range), 1 + clip_range) * advantage)
    return total


def test_policy_loss_against_loop():
    new_N, old_N, advantages_N = three_tensors()
    loss = policy_loss(new_N, old_N, advantages_N, 0.2).loss_sum.item()
    assert loss == pytest.approx(policy_oracle(new_N, old_N, advantages_N, 0.2), rel=1e-12)
    # Twins: the sign, another clip range.
    assert loss != pytest.approx(policy_oracle(new_N, old_N, advantages_N, 0.2, sign=1.0), rel=1e-12)
    assert loss != pytest.approx(policy_oracle(new_N, old_N, advantages_N, 0.3), rel=1e-12)


def test_first_minibatch_is_exactly_on_policy():
    logprobs_N, _, advantages_N = three_tensors().float()
    terms = policy_loss(logprobs_N, logprobs_N, advantages_N, 0.2)
    assert terms.ratio_sum.item() == terms.ratio_sq_sum.item() == terms.n.item() == 13
    assert terms.approx_kl_sum.item() == 0
    assert terms.clipfrac_sum.item() == 0


def test_policy_gradient_points_uphill_and_stops_at_the_clip():
    # At ratio 1 the gradient of the loss is -A; past the clip, in the direction that the advantage wants, it is 0.
    logprobs_N = torch.tensor([0.0, 0.0, math.log(1.5), math.log(0.5), math.log(0.5)], requires_grad=True)
    terms = policy_loss(logprobs_N, torch.zeros(5), torch.tensor([3.0, -2.0, 1.0, -1.0, 1.0]), 0.2)
    terms.loss_sum.backward()
    assert_close(logprobs_N.grad, torch.tensor([-3.0, 2.0, 0.0, 0.0, -0.5]))
    assert not any(term.requires_grad for term in terms[1:])
    # Twin: with the upper clip at 0.6 the third action, of ratio 1.5, goes on learning.
    logprobs_N.grad = None
    policy_loss(logprobs_N, torch.zeros(5), torch.ones(5), 0.2, 0.6).loss_sum.backward()
    assert logprobs_N.grad[2].item() == pytest.approx(-1.5)


def test_weighted_policy_loss_by_hand():
    # Probabilities now 0.6, 0.6, 0.1, 0.2 after 0.2, 0.5, 0.4, 0.2: ratios 3, 1.2, 0.25, 1. Ranges 0.5 and 1:
    # weights 2 (clipped), 1.2, 0.5 (clipped), 1. With advantages 1, -1, 2, 3 the gradient of the loss, which is
    # -weight A for each log-probability, is -2, 1.2, -1, -3: a clipped weight still teaches.
    new_N, old_N = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.6, 0.6, 0.1, 0.2], [0.2, 0.5, 0.4, 0.2]))
    new_N.requires_grad_(True)
    advantages_N = torch.tensor([1.0, -1.0, 2.0, 3.0], dtype=torch.float64)
    terms = weighted_policy_loss(new_N, old_N, advantages_N, 0.5, 1.0)
    expected = -2 * math.log(0.6) + 1.2 * math.log(0.6) - math.log(0.1) - 3 * math.log(0.2)
    assert terms.loss_sum.item() == pytest.approx(expected)
    assert (terms.clipfrac_sum.item(), terms.n.item()) == (2, 4)
    assert terms.ratio_sum.item() == pytest.approx(5.45)
    assert terms.ratio_sq_sum.item() == pytest.approx(9 + 1.44 + 0.0625 + 1)
    terms.loss_sum.backward()
    expected_N = torch.tensor([-2.0, 1.2, -1.0, -3.0], dtype=torch.float64)
    assert_close(new_N.grad, expected_N)
    assert not any(term.requires_grad for term in terms[1:])
    # Twins: the ranges exchanged; PPO, whose clip stops the first action; a weight that carries gradient.
    exchanged = weighted_policy_loss(new_N, old_N, advantages_N, 1.0, 0.5).loss_sum
    assert exchanged.item() != pytest.approx(expected)
    probe_N = new_N.detach().requires_grad_(True)
    policy_loss(probe_N, old_N, advantages_N, 0.5, 1.0).loss_sum.backward()
    with pytest.raises(AssertionError):
        assert_close(probe_N.grad, expected_N)
    attached_N = new_N.detach().requires_grad_(True)
    (-(attached_N - old_N).exp().clamp(0.5, 2) * advantages_N * attached_N).sum().backward()
    with pytest.raises(AssertionError):
        assert_close(attached_N.grad, expected_N)


def test_value_loss_by_hand():
    # Old value 0, clip range 0.2. Value 1, return 2: clipped to 0.2; errors 1 and 3.24, the clipped is larger.
    # Value 1, return 0: errors 1 and 0.04, the plain is larger. Value 0.1, return 1: not clipped, both 0.81.
    values_N, returns_N = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([2.0, 0.0, 1.0])
    terms = value_loss(values_N, torch.zeros(3), returns_N, 0.2)
    assert terms.loss_sum.item() == pytest.approx(0.5 * (3.24 + 1 + 0.81))
    assert terms.clipfrac_sum.item() == 1
    assert terms.error_sum.item() == pytest.approx(1 + 1 + 0.81)
    assert terms.n.item() == 3
    # Twin: the smaller of the two errors.
    assert terms.loss_sum.item() != pytest.approx(0.5 * (1 + 0.04 + 0.81))


def test_value_loss_against_loop():
    values_N, old_N, returns_N = three_tensors()
    total = 0.0
    for value, old, target in zip(values_N.tolist(), old_N.tolist(), returns_N.tolist(), strict=True):
        clipped = min(max(value, old - 0.2), old + 0.2)
        total += 0.5 * max((value - target) ** 2, (clipped - target) ** 2)
    loss = value_loss(values_N, old_N, returns_N, 0.2).loss_sum.item()
    assert loss == pytest.approx(total, rel=1e-12)
    assert loss != pytest.approx(2 * total, rel=1e-12)  # twin: the half left out


@pytest.mark.parametrize("function", [policy_loss, value_loss])
def test_splitting_the_batch_changes_nothing(function):
    batch = three_tensors()
    whole = function(*batch, 0.2)
    parts = [function(*batch[:, part], 0.2) for part in (slice(0, 4), slice(4, 13))]
    for total, first, second in zip(whole, *parts, strict=True):
        assert_close(first + second, total)
    # Twin: a mean of means isn't the mean, which is why these are sums.
    mean_of_means = sum(part.loss_sum / part.n for part in parts) / 2
    with pytest.raises(AssertionError):
        assert_close(mean_of_means, whole.loss_sum / whole.n)


def test_explained_variance_by_hand():
    # Returns 0, 2, 4: mean 2, variance 8/3.
    returns_BR, mask_BR = torch.tensor([[0.0, 2.0, 4.0, 99.0]]), torch.tensor([[True, True, True, False]])

    def of(*values):
        return explained_variance(torch.tensor([[*values, -99.0]]), returns_BR, mask_BR).item()

    assert of(0.0, 2.0, 4.0) == 1
    assert of(2.0, 2.0, 2.0) == pytest.approx(0, abs=1e-6)
    assert of(1.0, 3.0, 5.0) == pytest.approx(1 - 1 / (8 / 3))  # off by a constant 1 is charged
    assert of(4.0, 2.0, 0.0) == pytest.approx(1 - (32 / 3) / (8 / 3))
    assert math.isnan(explained_variance(mask_BR.float(), torch.ones(1, 4), mask_BR).item())
