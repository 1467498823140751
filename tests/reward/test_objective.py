"""Oracles: PPO's two losses token by token in plain Python floats, and cases worked by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from gptlife.reward.objective import explained_variance, policy_loss, value_loss


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    one_BR, two_BR, three_BR = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return one_BR, two_BR, three_BR, torch.arange(6) < torch.tensor([6, 2, 1, 4]).unsqueeze(1)


def padded(*tensors, width=2):
    """The same batch with columns of NaN to the right."""
    return [
        torch.nn.functional.pad(x, (0, width), value=False if x.dtype == torch.bool else torch.nan) for x in tensors
    ]


def test_policy_loss_by_hand():
    # Ratios 1.5, 1.5, 0.5, 0.5, 1.1 with advantages 1, -1, 1, -1, 2 and clip range 0.2:
    #   A=1,  r=1.5: -min(1.5, 1.2)  = -1.2  clipped        A=-1, r=1.5: max(1.5, 1.2)  =  1.5  not
    #   A=1,  r=0.5: -min(0.5, 0.8)  = -0.5  not            A=-1, r=0.5: max(0.5, 0.8)  =  0.8  clipped
    #   A=2,  r=1.1: -2.2                    not            sum -1.6, two clipped, ratios 5.1, squares 6.21
    ratio_BR = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]], dtype=torch.float64)
    advantages_BR = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]], dtype=torch.float64)
    terms = policy_loss(ratio_BR.log(), torch.zeros_like(ratio_BR), advantages_BR, torch.ones(1, 5).bool(), 0.2)
    assert terms.loss_sum.item() == pytest.approx(-1.6)
    assert terms.clipfrac_sum.item() == 2
    assert terms.ratio_sum.item() == pytest.approx(5.1)
    assert terms.ratio_sq_sum.item() == pytest.approx(6.21)
    expected_kl = 0.5 * (2 * math.log(1.5) ** 2 + 2 * math.log(0.5) ** 2 + math.log(1.1) ** 2)
    assert terms.approx_kl_sum.item() == pytest.approx(expected_kl)
    assert terms.n_tokens.item() == 5


def policy_oracle(new_BR, old_BR, advantages_BR, mask_BR, clip_range, sign=-1.0):
    total = 0.0
    for new, old, advantage, real in zip(
        new_BR.flatten().tolist(),
        old_BR.flatten().tolist(),
        advantages_BR.flatten().tolist(),
        mask_BR.flatten().tolist(),
        strict=True,
    ):
        ratio = math.exp(new - old)
        total += sign * min(ratio * advantage, min(max(ratio, 1 - clip_range), 1 + clip_range) * advantage) * real
    return total


def test_policy_loss_against_loop():
    new_BR, old_BR, advantages_BR, mask_BR = ragged()
    loss = policy_loss(new_BR, old_BR, advantages_BR, mask_BR, 0.2).loss_sum.item()
    assert loss == pytest.approx(policy_oracle(new_BR, old_BR, advantages_BR, mask_BR, 0.2), rel=1e-12)
    # Twins: the sign, the padding counted in, another clip range.
    assert loss != pytest.approx(policy_oracle(new_BR, old_BR, advantages_BR, mask_BR, 0.2, sign=1.0), rel=1e-12)
    everywhere_BR = torch.ones_like(mask_BR)
    assert loss != pytest.approx(policy_oracle(new_BR, old_BR, advantages_BR, everywhere_BR, 0.2), rel=1e-12)
    assert loss != pytest.approx(policy_oracle(new_BR, old_BR, advantages_BR, mask_BR, 0.3), rel=1e-12)


def test_first_minibatch_is_exactly_on_policy():
    logprobs_BR, _, advantages_BR, mask_BR = ragged()
    terms = policy_loss(logprobs_BR.float(), logprobs_BR.float(), advantages_BR.float(), mask_BR, 0.2)
    assert terms.ratio_sum.item() == terms.ratio_sq_sum.item() == terms.n_tokens.item() == 13
    assert terms.approx_kl_sum.item() == 0
    assert terms.clipfrac_sum.item() == 0


def test_policy_gradient_points_uphill_and_stops_at_the_clip():
    # At ratio 1 the gradient of the loss is -A; past the clip, in the direction that the advantage wants, it is 0.
    logprobs_BR = torch.tensor([[0.0, 0.0, math.log(1.5), math.log(0.5), math.log(0.5)]], requires_grad=True)
    advantages_BR = torch.tensor([[3.0, -2.0, 1.0, -1.0, 1.0]])
    terms = policy_loss(logprobs_BR, torch.zeros(1, 5), advantages_BR, torch.ones(1, 5).bool(), 0.2)
    terms.loss_sum.backward()
    assert_close(logprobs_BR.grad, torch.tensor([[-3.0, 2.0, 0.0, 0.0, -0.5]]))
    assert not any(term.requires_grad for term in terms[1:])


def test_rubbish_in_padding_reaches_neither_loss_nor_gradient():
    logprobs_BR = torch.tensor([[0.1, 900.0, torch.nan]], requires_grad=True)  # exp(900) is infinite
    mask_BR = torch.tensor([[True, False, False]])
    policy_loss(logprobs_BR, torch.zeros(1, 3), torch.ones(1, 3), mask_BR, 0.2).loss_sum.backward()
    assert logprobs_BR.grad[0, 0] != 0
    assert logprobs_BR.grad[0, 1:].tolist() == [0, 0]
    values_BR = torch.tensor([[0.1, torch.inf, torch.nan]], requires_grad=True)
    value_loss(values_BR, torch.zeros(1, 3), torch.ones(1, 3), mask_BR, 0.2).loss_sum.backward()
    assert torch.isfinite(values_BR.grad[0, 0])


def test_value_loss_by_hand():
    # Old value 0, clip range 0.2. Value 1, return 2: clipped to 0.2; errors 1 and 3.24, the clipped is larger.
    # Value 1, return 0: errors 1 and 0.04, the plain is larger. Value 0.1, return 1: not clipped, both 0.81.
    values_BR, returns_BR = torch.tensor([[1.0, 1.0, 0.1]]), torch.tensor([[2.0, 0.0, 1.0]])
    terms = value_loss(values_BR, torch.zeros(1, 3), returns_BR, torch.ones(1, 3).bool(), 0.2)
    assert terms.loss_sum.item() == pytest.approx(0.5 * (3.24 + 1 + 0.81))
    assert terms.clipfrac_sum.item() == 1
    assert terms.error_sum.item() == pytest.approx(1 + 1 + 0.81)
    assert terms.n_tokens.item() == 3
    # Twin: the smaller of the two errors.
    assert terms.loss_sum.item() != pytest.approx(0.5 * (1 + 0.04 + 0.81))


def test_value_loss_against_loop():
    values_BR, old_BR, returns_BR, mask_BR = ragged()
    total = 0.0
    for b in range(4):
        for t in range(6):
            if mask_BR[b, t]:
                value, old, target = (x[b, t].item() for x in (values_BR, old_BR, returns_BR))
                clipped = min(max(value, old - 0.2), old + 0.2)
                total += 0.5 * max((value - target) ** 2, (clipped - target) ** 2)
    loss = value_loss(values_BR, old_BR, returns_BR, mask_BR, 0.2).loss_sum.item()
    assert loss == pytest.approx(total, rel=1e-12)
    assert loss != pytest.approx(2 * total, rel=1e-12)  # twin: the half left out


@pytest.mark.parametrize("function", [policy_loss, value_loss])
def test_splitting_the_batch_and_padding_change_nothing(function):
    batch = ragged()
    whole = function(*batch, 0.2)
    halves = [function(*(x[rows] for x in batch), 0.2) for rows in (slice(0, 1), slice(1, 4))]
    wide = function(*padded(*batch), 0.2)
    for all_of_it, first, second, with_padding in zip(whole, *halves, wide, strict=True):
        assert_close(first + second, all_of_it)
        assert_close(with_padding, all_of_it)
    # Twin: a mean of means isn't the mean, which is why these are sums.
    mean_of_means = sum(half.loss_sum / half.n_tokens for half in halves) / 2
    with pytest.raises(AssertionError):
        assert_close(mean_of_means, whole.loss_sum / whole.n_tokens)


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
