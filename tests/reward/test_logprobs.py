"""Oracles: torch.distributions.Categorical, logarithms worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gptlife.reward.advantage import masked_moments, masked_sum
from gptlife.reward.objective import entropy, selected_logprobs


def random_batch(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits_NV = 3 * torch.randn(15, 11, generator=generator, dtype=dtype)
    return logits_NV, torch.randint(11, (15,), generator=generator)


def test_by_hand():
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8. At temperature 1/2 the weights are squared: 1, 4, 25.
    logits_NV = torch.tensor([[1.0, 2.0, 5.0]] * 2).log()
    targets_N = torch.tensor([1, 2])
    assert_close(selected_logprobs(logits_NV, targets_N, 1.0), torch.tensor([2 / 8, 5 / 8]).log())
    assert_close(selected_logprobs(logits_NV, targets_N, 0.5), torch.tensor([4 / 30, 25 / 30]).log())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_agrees_with_categorical(temperature):
    logits_NV, targets_N = random_batch(dtype=torch.float64)
    oracle = torch.distributions.Categorical(logits=logits_NV / temperature)
    assert_close(selected_logprobs(logits_NV, targets_N, temperature), oracle.log_prob(targets_N))
    assert_close(entropy(logits_NV, temperature), oracle.entropy())
    # Twin: the temperature left out is seen by the same tolerance.
    if temperature != 1.0:
        with pytest.raises(AssertionError):
            assert_close(selected_logprobs(logits_NV, targets_N, 1.0), oracle.log_prob(targets_N))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_gradient(temperature):
    logits_NV, targets_N = random_batch(dtype=torch.float64)
    logits_NV.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: selected_logprobs(x, targets_N, temperature), logits_NV)
    assert torch.autograd.gradcheck(lambda x: entropy(x, temperature), logits_NV)


def test_half_precision_logits_give_float32():
    logits_NV, targets_N = random_batch()
    half_NV = logits_NV.bfloat16().requires_grad_()
    logprobs_N = selected_logprobs(half_NV, targets_N, 0.7)
    assert logprobs_N.dtype == torch.float32
    oracle = torch.distributions.Categorical(logits=half_NV.detach().double() / 0.7)
    assert_close(logprobs_N.double(), oracle.log_prob(targets_N), rtol=0, atol=1e-5)
    # Twin: a softmax in bfloat16 is much further off.
    coarse_NV = (half_NV.detach() / 0.7).log_softmax(-1)
    coarse_N = coarse_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    with pytest.raises(AssertionError):
        assert_close(coarse_N.double(), oracle.log_prob(targets_N), rtol=0, atol=1e-5)
    logprobs_N.sum().backward()
    assert half_NV.grad.dtype == torch.bfloat16


def test_same_number_with_and_without_gradient_and_in_any_batch():
    """What makes the first minibatch's ratio 1 exactly."""
    logits_NV, targets_N = random_batch()
    with torch.inference_mode():
        rollout_N = selected_logprobs(logits_NV, targets_N, 0.7)
    training_N = selected_logprobs(logits_NV.clone().requires_grad_(), targets_N, 0.7)
    assert torch.equal(rollout_N, training_N)
    assert torch.equal(rollout_N[3:9], selected_logprobs(logits_NV[3:9], targets_N[3:9], 0.7))


def test_float32_copies_of_the_logits_are_not_kept_for_backward():
    logits_NV = torch.randn(32, 1000, dtype=torch.bfloat16, requires_grad=True)
    targets_N = torch.zeros(32, dtype=torch.long)

    def kept_float32_numbers(function):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            function()
        return sum(x.numel() for x in kept if x.dtype == torch.float32)

    assert kept_float32_numbers(lambda: selected_logprobs(logits_NV, targets_N, 1.0)) < 1000
    # Twin: the plain way keeps them all.
    assert kept_float32_numbers(lambda: logits_NV.float().log_softmax(-1)) >= 32 * 1000


def test_forbidden_tokens_have_no_entropy_and_no_nan_gradient():
    # Two tokens of equal weight, one impossible: entropy log 2.
    logits_NV = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    result_N = entropy(logits_NV, 0.7)
    assert result_N.item() == pytest.approx(math.log(2))
    result_N.sum().backward()
    assert torch.isfinite(logits_NV.grad).all()
    assert selected_logprobs(logits_NV, torch.tensor([2]), 1.0).item() == -math.inf


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_temperature(temperature):
    logits_NV, targets_N = random_batch()
    with pytest.raises(ValueError, match="temperature must be > 0"):
        selected_logprobs(logits_NV, targets_N, temperature)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        entropy(logits_NV, temperature)


def test_masked_sum_by_hand():
    x = torch.tensor([[1.0, 2.0, torch.nan], [4.0, torch.inf, torch.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(x, mask).item() == 7
    assert masked_sum(mask, mask).item() == 3  # bool counts
    half = torch.full((3000,), 1.0, dtype=torch.bfloat16)
    assert masked_sum(half, half.bool()).item() == 3000  # in bfloat16 it would be 2992 or 3008


def test_masked_sum_sends_no_nan_into_the_gradient():
    x = torch.tensor([2.0, torch.nan], requires_grad=True)
    masked_sum(x, torch.tensor([True, False])).backward()
    assert x.grad.tolist() == [1, 0]


def test_masked_moments_by_hand():
    # 1, 2, 6: mean 3, deviations -2, -1, 3, biased variance 14/3 (the unbiased one would be 7).
    moments = masked_moments(torch.tensor([1.0, 2.0, 6.0, 99.0]), torch.tensor([True, True, True, False]))
    assert [x.item() for x in moments] == pytest.approx([3, 3, 14 / 3])


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8), st.floats(0.2, 5), st.floats(-50, 50))
def test_properties(logits, temperature, shift):
    logits_NV = torch.tensor(logits, dtype=torch.float64).expand(len(logits), len(logits))
    targets_N = torch.arange(len(logits))
    logprobs_N = selected_logprobs(logits_NV, targets_N, temperature)  # one token each: the whole distribution
    assert logprobs_N.exp().sum().item() == pytest.approx(1)
    assert_close(selected_logprobs(logits_NV + shift, targets_N, temperature), logprobs_N, rtol=1e-9, atol=1e-9)
    assert_close(entropy(logits_NV, temperature)[0], -(logprobs_N.exp() * logprobs_N).sum())
    assert -1e-9 <= entropy(logits_NV, temperature).max() <= math.log(len(logits)) + 1e-9
