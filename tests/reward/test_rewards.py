"""Oracles: rewards worked by hand, numpy's mean and biased variance, double loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gptlife.reward.advantage import clip_scores, last_token, penalise_unfinished, token_rewards, whiten


def test_the_last_token_by_hand():
    mask_BR = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert last_token(mask_BR).int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_token_rewards_by_hand():
    # KL coefficient 0.5; log ratios 1, 2, (9) and 3, -1, 4.
    logprobs_BR = torch.tensor([[-1.0, -1.0, 0.0], [-1.0, -3.0, 0.0]])
    ref_logprobs_BR = torch.tensor([[-2.0, -3.0, -9.0], [-4.0, -2.0, -4.0]])
    mask_BR = torch.tensor([[True, True, False], [True, True, True]])
    rewards_BR = token_rewards(torch.tensor([10.0, -20.0]), logprobs_BR, ref_logprobs_BR, mask_BR, 0.5)
    expected_BR = torch.tensor([[-0.5, -1 + 10.0, 0], [-1.5, 0.5, -2 - 20.0]])
    assert_close(rewards_BR, expected_BR)
    # Twins: the sign of the KL, and of the score ("bugs can optimize for bad behavior").
    with pytest.raises(AssertionError):
        assert_close(
            token_rewards(torch.tensor([10.0, -20.0]), logprobs_BR, ref_logprobs_BR, mask_BR, -0.5), expected_BR
        )
    with pytest.raises(AssertionError):
        assert_close(
            token_rewards(torch.tensor([-10.0, 20.0]), logprobs_BR, ref_logprobs_BR, mask_BR, 0.5), expected_BR
        )


def test_drifting_from_the_reference_costs():
    mask_BR = torch.ones(1, 2, dtype=torch.bool)
    near_BR = token_rewards(torch.ones(1), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.1, -1.1]]), mask_BR, 0.1)
    far_BR = token_rewards(torch.ones(1), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-5.0, -5.0]]), mask_BR, 0.1)
    assert far_BR.sum() < near_BR.sum() < 1


def test_token_rewards_are_blind_to_padding():
    logprobs_BR, ref_logprobs_BR = torch.randn(2, 2, 3)
    mask_BR = torch.tensor([[True, False, False], [True, True, True]])
    scores_B = torch.tensor([1.0, 2.0])
    expected_BR = token_rewards(scores_B, logprobs_BR, ref_logprobs_BR, mask_BR, 0.1)
    wide = [torch.nn.functional.pad(x, (0, 2), value=torch.nan) for x in (logprobs_BR, ref_logprobs_BR)]
    wide_mask_BR = torch.nn.functional.pad(mask_BR, (0, 2), value=False)
    wide_BR = token_rewards(scores_B, *wide, wide_mask_BR, 0.1)
    assert torch.equal(wide_BR[:, :3], expected_BR)
    assert torch.equal(wide_BR[:, 3:], torch.zeros(2, 2))
    # Summed over its tokens the reward is the paper's: score - coefficient * log ratio of the response.
    logratio_B = ((logprobs_BR - ref_logprobs_BR) * mask_BR).sum(1)
    assert_close(expected_BR.sum(1), scores_B - 0.1 * logratio_B)


@pytest.mark.parametrize("row", [[False, False, False], [True, False, True], [False, True, True]])
def test_refuses_empty_or_holed_responses(row):
    mask_BR = torch.tensor([[True, True, True], row])
    with pytest.raises(ValueError, match="at least one real token"):
        token_rewards(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 3), mask_BR, 0.1)


def test_scores_by_hand():
    scores_B = torch.tensor([2.0, -3.0, 0.5])
    assert penalise_unfinished(scores_B, torch.tensor([True, False, False]), 1.0).tolist() == [2, -4, -0.5]
    assert clip_scores(scores_B, 1.0).tolist() == [1, -1, 0.5]


def ragged(seed=0, offset=3.0):
    generator = torch.Generator().manual_seed(seed)
    x_BR = offset + 2 * torch.randn(6, 7, generator=generator, dtype=torch.float64)
    mask_BR = torch.arange(7) < torch.tensor([7, 3, 1, 5, 2, 6]).unsqueeze(1)
    return x_BR, mask_BR


def test_whiten_by_hand():
    # 1, 3, 5: mean 3, biased variance 8/3; padding 100 is not looked at.
    x_BR = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
    mask_BR = torch.tensor([[True, True, False], [True, False, False]])
    unit = 2 / (8 / 3) ** 0.5
    assert_close(whiten(x_BR, mask_BR), torch.tensor([[-unit, 0, 0], [unit, 0, 0]]))
    assert_close(whiten(x_BR, mask_BR, shift_mean=False), torch.tensor([[3 - unit, 3, 0], [3 + unit, 0, 0]]))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_has_the_moments_it_says(shift_mean):
    x_BR, mask_BR = ragged()

    def check(whitened_BR, mean):
        real = whitened_BR[mask_BR].numpy()
        assert np.mean(real) == pytest.approx(mean, abs=1e-9)
        assert np.var(real) == pytest.approx(1, abs=1e-6)  # numpy's default is the biased one

    mean = 0.0 if shift_mean else np.mean(x_BR[mask_BR].numpy())
    check(whiten(x_BR, mask_BR, shift_mean), mean)
    # Twins: the mean added back when it should not be (or the reverse), and the unbiased variance.
    with pytest.raises(AssertionError):
        check(whiten(x_BR, mask_BR, not shift_mean), mean)
    real = x_BR[mask_BR]
    unbiased_BR = (x_BR - real.mean()) / real.std(correction=1)
    with pytest.raises(AssertionError):
        check(unbiased_BR if shift_mean else unbiased_BR + real.mean(), mean)


def test_whiten_survives_constants_and_nothing():
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert torch.equal(whiten(torch.full((2, 2), 3.0), ~nothing), torch.zeros(2, 2))
    assert torch.equal(whiten(torch.full((2, 2), 3.0), nothing), torch.zeros(2, 2))


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=10), st.floats(0.5, 10), st.floats(-10, 10))
def test_whitened_advantages_forget_scale_and_offset(values, scale, offset):
    x_BR = torch.tensor([values], dtype=torch.float64)
    mask_BR = torch.ones_like(x_BR, dtype=torch.bool)
    if x_BR.std() > 0.1:  # below, the epsilon is felt
        assert_close(whiten(scale * x_BR + offset, mask_BR), whiten(x_BR, mask_BR), rtol=1e-5, atol=1e-5)
