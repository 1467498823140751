"""Oracles: a double loop over answers in plain Python, TRL's formula for pairs, cases worked by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gptlife.data.errors import UserError
from gptlife.reward.ranking import normalisation, ranked_pairs, ranking_loss_flat


def loop(scores, ranks):
    """(loss, pairs, correct) of one prompt."""
    losses, correct = [], 0.0
    for (score_i, rank_i), (score_j, rank_j) in itertools.permutations(zip(scores, ranks, strict=True), 2):
        if rank_i < rank_j:  # i is better
            losses.append(math.log1p(math.exp(-(score_i - score_j))))
            correct += 1.0 if score_i > score_j else 0.5 if score_i == score_j else 0.0
    return (sum(losses) / len(losses) if losses else 0.0), len(losses), correct


def of_one_prompt(scores_K, ranks_K):
    return ranking_loss_flat(scores_K, ranks_K, torch.zeros_like(ranks_K)).loss_sum


def softplus(x):
    return math.log1p(math.exp(x))


def test_three_answers_by_hand():
    # Scores 1, 0, 3; ranks 1, 2, 3: margins of the pairs (1 over 2) 1, (1 over 3) -2, (2 over 3) -3.
    scores_K, ranks_K = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1, 2, 3])
    expected = (softplus(-1) + softplus(2) + softplus(3)) / 3
    assert of_one_prompt(scores_K, ranks_K).item() == pytest.approx(expected)
    # Twins: rank 1 taken as the worst; the sum over the pairs instead of their mean.
    assert of_one_prompt(scores_K, 4 - ranks_K).item() != pytest.approx(expected)
    assert of_one_prompt(scores_K, ranks_K).item() != pytest.approx(3 * expected)


def test_ties_are_dropped_from_sum_and_count():
    # Ranks 1, 1, 2: two pairs, not C(3, 2) = 3.
    scores_K, ranks_K = torch.tensor([2.0, -5.0, 1.0]), torch.tensor([1, 1, 2])
    assert of_one_prompt(scores_K, ranks_K).item() == pytest.approx((softplus(-1) + softplus(6)) / 2)
    assert of_one_prompt(scores_K, ranks_K).item() != pytest.approx((softplus(-1) + softplus(6)) / 3)


def test_all_tied_is_zero_with_a_zero_gradient():
    scores_K = torch.tensor([2.0, -5.0], requires_grad=True)
    loss = of_one_prompt(scores_K, torch.tensor([1, 1]))
    assert loss.item() == 0
    loss.backward()
    assert scores_K.grad.tolist() == [0, 0]
    terms = ranking_loss_flat(scores_K, torch.tensor([1, 1]), torch.tensor([0, 0]))
    assert [term.item() for term in terms] == [0, 0, 0, 0]


def test_pairs_agree_with_trl():
    chosen_B, rejected_B = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    # trl.RewardTrainer.compute_loss: -logsigmoid(rewards_chosen - rewards_rejected).mean()
    trl = -torch.nn.functional.logsigmoid(chosen_B - rejected_B).mean()
    scores_N = torch.stack([chosen_B, rejected_B], dim=1).flatten()
    terms = ranking_loss_flat(scores_N, torch.tensor([1, 2] * 16), torch.arange(16).repeat_interleave(2))
    assert_close(terms.loss_sum / terms.n_groups, trl)
    assert terms.n_groups.item() == terms.n_pairs.item() == 16
    assert_close(terms.correct_pairs / terms.n_pairs, (chosen_B > rejected_B).float().mean())
    with pytest.raises(AssertionError):
        assert_close(-torch.nn.functional.logsigmoid(rejected_B - chosen_B).mean(), terms.loss_sum / terms.n_groups)


prompts = st.lists(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 4)), min_size=1, max_size=6), min_size=1, max_size=5
)


@settings(deadline=None)
@given(prompts, st.randoms(use_true_random=False))
def test_flat_against_loop_in_any_order(prompts, random):
    expected = [loop([score / 4 for score, _ in answers], [rank for _, rank in answers]) for answers in prompts]
    # Group ids with gaps and out of order, answers of all prompts shuffled.
    flat = [(s / 4, r, 100 - 7 * g) for g, answers in enumerate(prompts) for s, r in answers]
    random.shuffle(flat)
    scores_N, ranks_N, group_N = (torch.tensor(column) for column in zip(*flat, strict=True))
    terms = ranking_loss_flat(scores_N.double(), ranks_N, group_N)
    assert terms.loss_sum.item() == pytest.approx(sum(loss for loss, _, _ in expected))
    assert terms.n_groups.item() == sum(pairs > 0 for _, pairs, _ in expected)
    assert terms.n_pairs.item() == sum(pairs for _, pairs, _ in expected)
    assert terms.correct_pairs.item() == sum(correct for _, _, correct in expected)


def test_a_prompt_weighs_the_same_whatever_its_k():
    # One prompt of 9 answers (36 pairs) and one of 2, all scores 0: log 2 each, not 37 shares.
    ranks_N, group_N = torch.tensor([*range(1, 10), 1, 2]), torch.tensor([0] * 9 + [1] * 2)
    terms = ranking_loss_flat(torch.zeros(11), ranks_N, group_N)
    assert terms.loss_sum.item() == pytest.approx(2 * math.log(2))
    assert terms.n_pairs.item() == 37
    assert terms.correct_pairs.item() == 18.5  # equal scores: a coin
    assert ranked_pairs(ranks_N, group_N)[0].shape == (37,)


def test_splitting_between_prompts_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    scores_N, ranks_N = torch.randn(12, generator=generator), torch.randint(1, 4, (12,), generator=generator)
    group_N = torch.arange(3).repeat_interleave(4)
    whole = ranking_loss_flat(scores_N, ranks_N, group_N)
    parts = [ranking_loss_flat(scores_N[s], ranks_N[s], group_N[s]) for s in (slice(0, 4), slice(4, 12))]
    for total, one, two in zip(whole, *parts, strict=True):
        assert_close(one + two, total)


def test_gradient_raises_the_better_answer():
    scores_K = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    of_one_prompt(scores_K, torch.tensor([2, 1, 3])).backward()
    # At equal scores each of the three pairs pushes by 1/2 * 1/3: the best twice up, the worst twice down.
    assert_close(scores_K.grad, torch.tensor([0.0, -1 / 3, 1 / 3], dtype=torch.float64))


def test_large_margins_stay_finite():
    assert of_one_prompt(torch.tensor([-500.0, 500.0]), torch.tensor([1, 2])).item() == pytest.approx(1000)
    half = torch.tensor([-500.0, 500.0], dtype=torch.bfloat16)
    assert of_one_prompt(half, torch.tensor([1, 2])).dtype == torch.float32


def test_an_equal_score_is_half_right():
    # Right, wrong, equal, right: 2.5 of 4; no gradient flows through it.
    scores_N = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 5.0, -5.0], requires_grad=True)
    terms = ranking_loss_flat(scores_N, torch.tensor([1, 2] * 4), torch.arange(4).repeat_interleave(2))
    assert (terms.correct_pairs.item(), terms.n_pairs.item()) == (2.5, 4)
    assert not terms.correct_pairs.requires_grad


def test_normalisation_by_hand():
    # 1, 3, 5, 7: mean 4, biased variance 5.
    gain, bias = normalisation(torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert gain == pytest.approx(1 / math.sqrt(5))
    assert bias == pytest.approx(-4 / math.sqrt(5))
    assert gain != pytest.approx(1 / math.sqrt(20 / 3))  # twin: the unbiased one


def test_normalised_scores_are_standard():
    scores = (torch.randn(500, generator=torch.Generator().manual_seed(0)) * 7 - 30).double()
    gain, bias = normalisation(scores)
    assert (gain * scores + bias).mean().item() == pytest.approx(0, abs=1e-9)
    assert (gain * scores + bias).var(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize("scores", [[], [2.0], [3.0, 3.0], [1.0, math.nan], [1.0, math.inf]])
def test_normalisation_refuses(scores):
    with pytest.raises(UserError, match="needs finite scores that differ"):
        normalisation(torch.tensor(scores))
