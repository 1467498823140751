"""Oracle: the definition as a double loop in float64 over each response's own tokens, without any padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gptlife.reward.advantage import gae, group_normalised, leave_one_out

LENGTHS = [7, 3, 1, 5]


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards_BR, values_BR = torch.randn(2, len(LENGTHS), 7, generator=generator, dtype=torch.float64)
    return rewards_BR, values_BR, torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(1)


def definition(rewards_BR, values_BR, mask_BR, gamma, lam):
    advantages_BR = torch.zeros_like(rewards_BR)
    for b in range(len(rewards_BR)):
        rewards, values = rewards_BR[b][mask_BR[b]].tolist(), [*values_BR[b][mask_BR[b]].tolist(), 0.0]
        for t in range(len(rewards)):
            for step in range(len(rewards) - t):
                delta = rewards[t + step] + gamma * values[t + step + 1] - values[t + step]
                advantages_BR[b, t] += (gamma * lam) ** step * delta
    return advantages_BR


def test_by_hand():
    # gamma 1, lam 1/2; rewards 0, 2; values 1, 3, then the end. delta_1 = 2 - 3 = -1; delta_0 = 0 + 3 - 1 = 2.
    # A_1 = -1, A_0 = 2 + 1/2 (-1) = 1.5; returns 2.5, 2. Padding holds rubbish.
    rewards_BR, values_BR = torch.tensor([[0.0, 2.0, 50.0]]), torch.tensor([[1.0, 3.0, 70.0]])
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, torch.tensor([[True, True, False]]), 1.0, 0.5)
    assert advantages_BR.tolist() == [[1.5, -1, 0]]
    assert returns_BR.tolist() == [[2.5, 2, 0]]


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_against_definition(gamma, lam):
    rewards_BR, values_BR, mask_BR = ragged()
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, gamma, lam)
    expected_BR = definition(rewards_BR, values_BR, mask_BR, gamma, lam)
    assert_close(advantages_BR, expected_BR, rtol=1e-12, atol=1e-12)
    assert_close(returns_BR, expected_BR + values_BR * mask_BR, rtol=1e-12, atol=1e-12)
    # Twin: padding counted in. (Its values alone would not do: at lam 1 they cancel, whatever they are.)
    leaky_BR, _ = gae(rewards_BR, values_BR, torch.ones_like(mask_BR), gamma, lam)
    with pytest.raises(AssertionError):
        assert_close(leaky_BR * mask_BR, expected_BR, rtol=1e-12, atol=1e-12)


def test_lam_one_is_reward_to_go_and_lam_zero_one_step():
    rewards_BR, values_BR, mask_BR = ragged()
    _, returns_BR = gae(rewards_BR, values_BR, mask_BR, 1.0, 1.0)
    to_go_BR = (rewards_BR * mask_BR).flip(1).cumsum(1).flip(1)
    assert_close(returns_BR, to_go_BR * mask_BR)
    advantages_BR, _ = gae(rewards_BR, values_BR, mask_BR, 1.0, 0.0)
    assert advantages_BR[2, 0].item() == pytest.approx((rewards_BR[2, 0] - values_BR[2, 0]).item())  # length 1


def test_a_perfect_value_function_leaves_no_advantage():
    rewards_BR, _, mask_BR = ragged()
    to_go_BR = (rewards_BR * mask_BR).flip(1).cumsum(1).flip(1)
    for lam in (0.0, 0.95, 1.0):
        advantages_BR, _ = gae(rewards_BR, to_go_BR, mask_BR, 1.0, lam)
        assert advantages_BR.abs().max() < 1e-12


def test_blind_to_padding_and_batch():
    rewards_BR, values_BR, mask_BR = ragged()
    expected = gae(rewards_BR, values_BR, mask_BR, 1.0, 0.95)
    wide = gae(
        torch.nn.functional.pad(rewards_BR, (0, 3), value=torch.nan),
        torch.nn.functional.pad(values_BR, (0, 3), value=torch.nan),
        torch.nn.functional.pad(mask_BR, (0, 3), value=False),
        1.0,
        0.95,
    )
    alone = gae(rewards_BR[1:2], values_BR[1:2], mask_BR[1:2], 1.0, 0.95)
    for all_BR, wide_BR, one_BR in zip(expected, wide, alone, strict=True):
        assert torch.equal(wide_BR[:, :7], all_BR)
        assert torch.equal(wide_BR[:, 7:], torch.zeros_like(wide_BR[:, 7:]))
        assert torch.equal(one_BR, all_BR[1:2])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_property_against_definition(seed, gamma, lam, lengths):
    generator = torch.Generator().manual_seed(seed)
    rewards_BR, values_BR = torch.randn(2, len(lengths), 6, generator=generator, dtype=torch.float64)
    mask_BR = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    advantages_BR, _ = gae(rewards_BR, values_BR, mask_BR, gamma, lam)
    assert_close(advantages_BR, definition(rewards_BR, values_BR, mask_BR, gamma, lam), rtol=1e-10, atol=1e-10)


def test_leave_one_out_by_hand():
    # Two prompts of three answers. 1 - (4 + 7) / 2, 4 - (1 + 7) / 2, 7 - (1 + 4) / 2; then equal answers: nothing.
    assert leave_one_out(torch.tensor([1.0, 4.0, 7.0, 5.0, 5.0, 5.0]), 3).tolist() == [-4.5, 0, 4.5, 0, 0, 0]
    assert leave_one_out(torch.tensor([2.0, 5.0]), 2).tolist() == [-3, 3]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=4, max_size=4), min_size=1, max_size=5), st.sampled_from([2, 4])
)
def test_leave_one_out_against_loops(prompts, k):
    returns = [value for prompt in prompts for value in prompt]
    expected, with_itself = [], []
    for i, value in enumerate(returns):
        group = range(i - i % k, i - i % k + k)
        expected.append(value - sum(returns[j] for j in group if j != i) / (k - 1))
        with_itself.append(value - sum(returns[j] for j in group) / k)
    found = leave_one_out(torch.tensor(returns, dtype=torch.float64), k)
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    if max(map(abs, expected)) > 1e-6:  # twin: a baseline that depends on the answer itself
        with pytest.raises(AssertionError):
            assert_close(found, torch.tensor(with_itself, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [0, 1, 4])
def test_leave_one_out_refuses(k):
    with pytest.raises(ValueError, match=f"at least 2 and divide the number of returns, got {k} and 6"):
        leave_one_out(torch.zeros(6), k)


def test_group_normalised_by_hand():
    # 1, 4, 7: mean 4, deviations -3, 0, 3; sum of squares 18, so the standard deviation is 3 with k - 1 = 2.
    # 2, 2, 8: mean 4, deviations -2, -2, 4; sum of squares 24, so it is sqrt 12.
    returns_B = torch.tensor([1.0, 4.0, 7.0, 2.0, 2.0, 8.0], dtype=torch.float64)
    root = 12**0.5
    expected = [-1, 0, 1, -2 / root, -2 / root, 4 / root]
    found = group_normalised(returns_B, 3, scale=True, eps=0.0)
    assert found.tolist() == pytest.approx(expected)
    assert group_normalised(returns_B, 3, scale=False, eps=1.0).tolist() == [-3, 0, 3, -2, -2, 4]
    # eps is added to the deviation: 3 / (3 + 1).
    assert group_normalised(returns_B[:3], 3, scale=True, eps=1.0).tolist() == [-0.75, 0, 0.75]
    # Twins: the deviation that divides by k (sqrt 6), groups that do not lie side by side, eps under the root.
    biased = group_normalised(returns_B, 3, scale=True, eps=0.0, ddof=0)
    assert biased[:3].tolist() == pytest.approx([-3 / 6**0.5, 0, 3 / 6**0.5])
    assert group_normalised(returns_B[[0, 3, 1, 4, 2, 5]], 3, scale=True, eps=0.0).tolist() != pytest.approx(expected)
    assert group_normalised(returns_B[:3], 3, scale=True, eps=1.0)[2].item() != pytest.approx(3 / 10**0.5)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_group_of_equal_returns_has_no_advantage(scale, eps):
    # Seven times 0.1 in float32: their mean is not 0.1, and divided by a tiny eps the rest would be large.
    equal = [0.1] * 7
    found = group_normalised(torch.tensor([*equal, *range(7)]), 7, scale=scale, eps=eps)
    assert found[:7].tolist() == [0.0] * 7
    assert found[7:].abs().max() > 1
    assert torch.tensor(equal).mean() != torch.tensor(0.1)


def test_group_normalised_agrees_with_trl():
    """trl 1.16, GRPOTrainer: (reward - mean of the group) / (nanstd of the group + 1e-4)."""
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    returns_B = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    returns_PK = returns_B.view(-1, 8)
    oracle_PK = (returns_PK - returns_PK.mean(1, keepdim=True)) / (nanstd(returns_PK, dim=1, keepdim=True) + 1e-4)
    advantages_B, biased_B = (group_normalised(returns_B, 8, scale=True, eps=1e-4, ddof=ddof) for ddof in (1, 0))
    # Its k / (k - 1) is a float32.
    assert_close(advantages_B.view(-1, 8), oracle_PK, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(biased_B.view(-1, 8), oracle_PK, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 4])
def test_group_normalised_refuses(k):
    with pytest.raises(ValueError, match=f"at least 2 and divide the number of returns, got {k} and 6"):
        group_normalised(torch.zeros(6), k, scale=True, eps=0.0)
