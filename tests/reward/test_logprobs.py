"""Oracles: torch.distributions.Categorical, logarithms worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gptlife.reward.logprobs import entropy, masked_mean, masked_moments, masked_sum, one_process, token_logprobs


def random_batch(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = 3 * torch.randn(3, 5, 11, generator=generator, dtype=dtype)
    return logits_BTV, torch.randint(11, (3, 5), generator=generator)


def test_by_hand():
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8. At temperature 1/2 the weights are squared: 1, 4, 25.
    logits_BTV = torch.tensor([[[1.0, 2.0, 5.0]] * 2]).log()
    tokens_BT = torch.tensor([[1, 2]])
    assert_close(token_logprobs(logits_BTV, tokens_BT, 1.0), torch.tensor([[2 / 8, 5 / 8]]).log())
    assert_close(token_logprobs(logits_BTV, tokens_BT, 0.5), torch.tensor([[4 / 30, 25 / 30]]).log())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_agrees_with_categorical(temperature):
    logits_BTV, tokens_BT = random_batch(dtype=torch.float64)
    oracle = torch.distributions.Categorical(logits=logits_BTV / temperature)
    assert_close(token_logprobs(logits_BTV, tokens_BT, temperature), oracle.log_prob(tokens_BT))
    assert_close(entropy(logits_BTV, temperature), oracle.entropy())
    # Twin: the temperature left out is seen by the same tolerance.
    if temperature != 1.0:
        with pytest.raises(AssertionError):
            assert_close(token_logprobs(logits_BTV, tokens_BT, 1.0), oracle.log_prob(tokens_BT))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_gradient(temperature):
    logits_BTV, tokens_BT = random_batch(dtype=torch.float64)
    logits_BTV.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, tokens_BT, temperature), logits_BTV)
    assert torch.autograd.gradcheck(lambda x: entropy(x, temperature), logits_BTV)


def test_half_precision_logits_give_float32():
    logits_BTV, tokens_BT = random_batch()
    half_BTV = logits_BTV.bfloat16().requires_grad_()
    logprobs_BT = token_logprobs(half_BTV, tokens_BT, 0.7)
    assert logprobs_BT.dtype == torch.float32
    oracle = torch.distributions.Categorical(logits=half_BTV.detach().double() / 0.7)
    assert_close(logprobs_BT.double(), oracle.log_prob(tokens_BT), rtol=0, atol=1e-5)
    # Twin: a softmax in bfloat16 is much further off.
    coarse_BTV = (half_BTV.detach() / 0.7).log_softmax(-1)
    coarse_BT = coarse_BTV.gather(-1, tokens_BT.unsqueeze(-1)).squeeze(-1)
    with pytest.raises(AssertionError):
        assert_close(coarse_BT.double(), oracle.log_prob(tokens_BT), rtol=0, atol=1e-5)
    logprobs_BT.sum().backward()
    assert half_BTV.grad.dtype == torch.bfloat16


def test_same_number_with_and_without_gradient_and_in_any_batch():
    """What makes the first minibatch's ratio 1 exactly."""
    logits_BTV, tokens_BT = random_batch()
    with torch.inference_mode():
        rollout_BT = token_logprobs(logits_BTV, tokens_BT, 0.7)
    training_BT = token_logprobs(logits_BTV.clone().requires_grad_(), tokens_BT, 0.7)
    assert torch.equal(rollout_BT, training_BT)
    assert torch.equal(rollout_BT[1:2], token_logprobs(logits_BTV[1:2], tokens_BT[1:2], 0.7))


def test_float32_copies_of_the_logits_are_not_kept_for_backward():
    logits_BTV = torch.randn(4, 8, 1000, dtype=torch.bfloat16, requires_grad=True)
    tokens_BT = torch.zeros(4, 8, dtype=torch.long)

    def kept_float32_numbers(function):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            function()
        return sum(x.numel() for x in kept if x.dtype == torch.float32)

    assert kept_float32_numbers(lambda: token_logprobs(logits_BTV, tokens_BT, 1.0)) < 1000
    # Twin: the plain way keeps them all.
    assert kept_float32_numbers(lambda: logits_BTV.float().log_softmax(-1)) >= 4 * 8 * 1000


def test_forbidden_tokens_have_no_entropy_and_no_nan_gradient():
    # Two tokens of equal weight, one impossible: entropy log 2.
    logits_BTV = torch.tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
    result_BT = entropy(logits_BTV, 0.7)
    assert result_BT.item() == pytest.approx(math.log(2))
    result_BT.sum().backward()
    assert torch.isfinite(logits_BTV.grad).all()
    assert token_logprobs(logits_BTV, torch.tensor([[2]]), 1.0).item() == -math.inf


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_refuses_temperature(temperature):
    logits_BTV, tokens_BT = random_batch()
    with pytest.raises(ValueError, match="temperature must be > 0"):
        token_logprobs(logits_BTV, tokens_BT, temperature)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        entropy(logits_BTV, temperature)


def test_masked_sum_and_mean_by_hand():
    x = torch.tensor([[1.0, 2.0, torch.nan], [4.0, torch.inf, torch.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(x, mask).item() == 7
    assert masked_mean(x, mask).item() == pytest.approx(7 / 3)
    assert masked_sum(x, mask, 1).tolist() == [3, 4]
    assert masked_mean(x, mask, 1).tolist() == [1.5, 4]
    assert masked_sum(mask, mask).item() == 3  # bool counts
    assert math.isnan(masked_mean(x, torch.zeros_like(mask)).item())


def test_masked_sum_sends_no_nan_into_the_gradient():
    x = torch.tensor([2.0, torch.nan], requires_grad=True)
    masked_sum(x, torch.tensor([True, False])).backward()
    assert x.grad.tolist() == [1, 0]


def test_masked_moments_by_hand():
    # 1, 2, 6: mean 3, deviations -2, -1, 3, biased variance 14/3 (the unbiased one would be 7).
    moments = masked_moments(torch.tensor([1.0, 2.0, 6.0, 99.0]), torch.tensor([True, True, True, False]))
    assert [x.item() for x in moments] == pytest.approx([3, 3, 14 / 3])
    assert one_process(moments.mean) is moments.mean


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8), st.floats(0.2, 5), st.floats(-50, 50))
def test_properties(logits, temperature, shift):
    logits_BTV = torch.tensor(logits, dtype=torch.float64).expand(1, len(logits), len(logits))
    tokens_BT = torch.arange(len(logits)).unsqueeze(0)
    logprobs_BT = token_logprobs(logits_BTV, tokens_BT, temperature)  # one token each: the whole distribution
    assert logprobs_BT.exp().sum().item() == pytest.approx(1)
    assert_close(token_logprobs(logits_BTV + shift, tokens_BT, temperature), logprobs_BT, rtol=1e-9, atol=1e-9)
    assert_close(entropy(logits_BTV, temperature)[0, 0], -(logprobs_BT.exp() * logprobs_BT).sum())
    assert -1e-9 <= entropy(logits_BTV, temperature).max() <= math.log(len(logits)) + 1e-9
