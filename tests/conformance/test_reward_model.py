"""Details of the reward model, one test each.

Ouyang et al. 2022 (arXiv 2203.02155, InstructGPT), section 3.5; N: the blog post "The N Implementation Details of RLHF
with PPO"; Ziegler et al. 2019 (arXiv 1909.08593).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import loss_oracles
import oracles
import pytest
import torch
from compare import agree, joined
from torch import Tensor

from gptlife.data.tokens import Encoded
from gptlife.reward.ensemble import EnsembleConfig, combine
from gptlife.reward.ranking import normalisation, ranked_pairs, ranking_loss_flat
from gptlife.reward.statistics.accuracy import accuracy
from gptlife.stages import reward_model
from gptlife.stages.modeling.forward import CPU, SelectedScores, inputs_of
from gptlife.stages.modeling.scorer import fold_normalisation, score
from gptlife.stages.preferences.metrics import margins

SCORES = [[0.5, -1.25, 2.0, 0.1], [1.0, 0.25], [0.0, 0.7, -0.7], [0.3, 0.2]]
RANKS = [[2, 4, 1, 3], [2, 1], [1, 2, 2], [1, 1]]


def flat(scores: list[list[float]] = SCORES, ranks: list[list[int]] = RANKS) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_N, ranks_N, group_N), the groups numbered with gaps."""
    group_N = torch.tensor([3 * place for place, row in enumerate(ranks) for _ in row])
    return torch.tensor(joined(scores), dtype=torch.float64), torch.tensor(joined(ranks)), group_N


def refused(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    with pytest.raises(AssertionError):
        agree(found, expected, tolerance)


def test_k_way_loss_is_the_mean_of_its_pairs() -> None:
    """InstructGPT Eq 1: -1 / C(K, 2) times the sum over a prompt's pairs of log sigmoid(better - worse)."""
    found = ranking_loss_flat(*flat(SCORES[:1], RANKS[:1])).loss_sum
    losses, _ = loss_oracles.pair_losses(SCORES[0], RANKS[0])
    assert len(losses) == 6
    agree(found, sum(losses) / 6)
    refused(found, sum(losses))
    worst_first, _ = loss_oracles.pair_losses(SCORES[0], RANKS[0], worst_first=True)
    refused(found, sum(worst_first) / 6)


def test_a_prompt_weighs_the_same_whatever_its_k() -> None:
    """InstructGPT 3.5: all pairs of a prompt are one batch element; the batch's loss is a mean over prompts."""
    terms = ranking_loss_flat(*flat())
    agree(terms.loss_sum / terms.n_groups, loss_oracles.ranking_loss(SCORES, RANKS)["loss"])
    for wrong in ("pairs_pooled", "sum_over_pairs", "ties_counted", "worst_first"):
        refused(terms.loss_sum / terms.n_groups, loss_oracles.ranking_loss(SCORES, RANKS, wrong)["loss"])


def test_ties_are_dropped() -> None:
    """InstructGPT C.2: pairs ranked equal say nothing, and count neither in the sum nor in the number of pairs."""
    better, worse = ranked_pairs(torch.tensor(RANKS[2]), torch.zeros(3))
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == [(0, 1), (0, 2)]
    found = ranking_loss_flat(*flat(SCORES[2:3], RANKS[2:3])).loss_sum
    losses, _ = loss_oracles.pair_losses(SCORES[2], RANKS[2])
    agree(found, sum(losses) / 2)
    refused(found, sum(losses) / 3)
    terms = ranking_loss_flat(*flat())
    assert (int(terms.n_groups), int(terms.n_pairs)) == (3, 6 + 1 + 2)  # the last prompt has no pair at all


def prompts_with_answers() -> list[list[list[int]]]:
    return [
        [[5, 6, 7, 0], [5, 6, 8, 9, 0], [5, 6, 0], [5, 6, 9, 9, 9]],
        [[7, 0], [7, 8, 0]],
        [[9, 5, 0], [9, 6, 0], [9]],
    ]


def loss_in_one_pass(model: Any, rows: list[list[list[int]]]) -> Tensor:
    """K rows a prompt, all prompts in one batch."""
    tokens = joined(rows)
    last = torch.tensor([[place == len(row) - 1 for place in range(5)] for row in tokens])
    scores_N = SelectedScores(model)(inputs_of([Encoded.prompt(row) for row in tokens], CPU), last)
    _, ranks_N, group_N = flat([[0.0] * len(row) for row in rows], RANKS[:3])
    terms = ranking_loss_flat(scores_N, ranks_N, group_N)
    return terms.loss_sum / terms.n_groups


def loss_pair_by_pair(model: Any, rows: list[list[list[int]]], pooled: bool = False) -> Tensor:
    """Both answers of every untied pair through plain transformers, each pair by itself."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for answers, ranks in zip(rows, RANKS[:3], strict=True):
        own = []
        for i, j in combinations(range(len(answers)), 2):
            if ranks[i] != ranks[j]:
                better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
                margin = of_row(model, answers[better]) - of_row(model, answers[worse])
                own.append(torch.log1p(torch.exp(-margin)))
        total, count = total + sum(own) / (1 if pooled else len(own)), count + (len(own) if pooled else 1)
    return total / count


def of_row(model: Any, row: list[int]) -> Tensor:
    return model.score(model.transformer(torch.tensor([row])).last_hidden_state)[0, -1, 0]


def test_k_way_gradient_is_that_of_pairwise_training(scorer: Any) -> None:
    """InstructGPT 3.5: K forward passes instead of 2 C(K, 2), and the same gradient of every weight."""

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(scorer.parameters())))

    rows = prompts_with_answers()
    together, apart = loss_in_one_pass(scorer, rows), loss_pair_by_pair(scorer, rows)
    agree(together.detach(), apart.detach(), 1e-6)
    # The score is handed over in float32.
    found = gradients(together)
    for one, two in zip(found, gradients(apart), strict=True):
        agree(one, two, 1e-5)
    # Twin: all pairs shuffled into one heap.
    refused(found[-1], gradients(loss_pair_by_pair(scorer, rows, pooled=True))[-1], 1e-5)


def test_gradient_by_the_scores() -> None:
    """The same in closed form: every pair pushes its two scores apart by sigmoid(worse - better) over its weight."""
    scores_N, ranks_N, group_N = flat()
    terms = ranking_loss_flat(scores_N.requires_grad_(), ranks_N, group_N)
    (gradient_N,) = torch.autograd.grad(terms.loss_sum / terms.n_groups, scores_N)
    agree(gradient_N, joined(loss_oracles.ranking_loss(SCORES, RANKS)["gradient"]))
    refused(gradient_N, joined(loss_oracles.ranking_loss(SCORES, RANKS, "worst_first")["gradient"]))


def test_accuracy_counts_a_tie_half() -> None:
    """An equal score is a coin: a model that says nothing reaches 50 %."""
    chosen, rejected = [1.0, 0.0, 2.0, 5.0], [0.0, 1.0, 2.0, -5.0]
    scores = [list(pair) for pair in zip(chosen, rejected, strict=True)]
    rows = [{"answers": ["better", "worse"], "ranks": [1, 2]}] * 4
    # As a step logs it, and as held-out rankings are reported.
    terms = ranking_loss_flat(*flat(scores, [[1, 2]] * 4))
    reported = accuracy(joined(margins(joined(scores), rows)))
    for found in (terms.correct_pairs / terms.n_pairs, reported):
        agree(found, loss_oracles.accuracy(chosen, rejected))
        for wrong in ("ties_right", "ties_wrong"):
            refused(found, loss_oracles.accuracy(chosen, rejected, wrong))


def test_normalisation() -> None:
    """N, Ziegler: gain 1 / std (biased) and bias -gain mean, so that the scores have mean 0 and variance 1."""
    scores = [1.0, 3.0, 5.0, 7.5]
    found = dict(zip(("gain", "bias"), normalisation(torch.tensor(scores)), strict=True))
    agree(found, loss_oracles.normalisation(scores))
    for wrong in ("unbiased_variance", "bias_not_scaled"):
        refused(found, loss_oracles.normalisation(scores, wrong))


def test_normalisation_is_in_the_weights(scorer: Any) -> None:
    """N: reward * gain + bias, here folded into the weights: plain transformers give the same score."""
    import copy

    rows = joined(prompts_with_answers())
    before, model = score(SelectedScores(scorer), [Encoded.prompt(row) for row in rows]), copy.deepcopy(scorer)
    fold_normalisation(model, 2.5, -0.75)
    with torch.no_grad():
        plain = [float(of_row(model, row)) for row in rows]
    agree(plain, 2.5 * before - 0.75, 1e-5)
    refused(plain, 2.5 * (before - 0.75), 1e-5)  # twin: the bias before the gain


@pytest.fixture(scope="module")
def trained(world: Any, run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of one step, with demonstrations."""
    output = tmp_path_factory.mktemp("reward") / "one"
    fields = {"data": str(world.pairs), "validation": 0.2, "learning_rate": 1e-3, "batch_size": 16,
              "demonstrations": str(world.demonstrations)}  # fmt: skip
    run(reward_model.STAGE, fields, output, base=world.policy)
    return output


@torch.no_grad()
def of_demonstrations(world: Any, path: Path) -> float:
    """Mean score of the demonstrations by plain transformers, encoded by hand: user 3, assistant 4, letters from 5."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(str(path)).eval()
    found = []
    for line in world.demonstrations.read_text(encoding="utf-8").splitlines():
        asked, said = ([5 + "abcdefgh".index(c) for c in json.loads(line)[k]] for k in ("prompt", "completion"))
        found.append(float(of_row(model, [3, *asked, 4, *said, 0])))
    return sum(found) / len(found)


def test_reward_bias(world: Any, trained: Path) -> None:
    """InstructGPT 3.5 (N+: the SFT references): a bias so that the labelers' demonstrations score 0 on average."""
    agree(of_demonstrations(world, trained), 0.0, 1e-5)
    refused(of_demonstrations(world, world.reward), 0.0, 1e-2)


def test_head_initialisation(world: Any) -> None:
    """N: the head begins as N(0, 1 / sqrt(width + 1)), which for width 16 is a deviation of 0.243."""
    model = torch.nn.Module()
    model.score = torch.nn.Linear(4000, 1, bias=False)
    reward_model.initialise_head(model, seed=0)

    def check(weight: Tensor) -> None:
        numbers = weight.flatten().tolist()
        mean, variance = oracles.moments([numbers], [[1] * 4000])
        assert abs(mean) < 4.5 * (1 / 4001) ** 0.5 / 4000**0.5
        assert abs(variance * 4001 - 1) < 4.5 * (2 / 4000) ** 0.5

    check(model.score.weight.detach())
    with pytest.raises(AssertionError):  # twin: torch's own, uniform
        check(torch.nn.Linear(4000, 1).weight.detach())


def test_one_epoch_of_64_prompts() -> None:
    """InstructGPT C.2: one epoch (more overfits), 64 prompts a batch, 9e-6, cosine to a tenth."""
    config = reward_model.RewardModelConfig()
    found = [config.epochs, config.batch_size, config.learning_rate, config.min_lr_ratio]
    agree(found, [1, 64, 9e-6, 0.1], 0.0)
    refused([*found[:2], 1e-5, 0.1], [1, 64, 9e-6, 0.1], 0.0)


def test_ensemble() -> None:
    """Coste et al. 2023 (arXiv 2310.02743): where the members disagree, the score is lowered."""
    scores = [[1.0, -2.0, 0.5], [2.0, -2.5, 0.5], [0.0, 1.0, 0.5]]
    for rule in ("mean", "mean_std", "worst"):
        found = combine(torch.tensor(scores, dtype=torch.float64), EnsembleConfig(rule=rule, coef=0.5))
        agree(found, loss_oracles.ensemble(scores, rule, 0.5))
        if rule == "mean_std":
            for wrong in ("bonus", "unbiased_variance"):
                refused(found, loss_oracles.ensemble(scores, rule, 0.5, wrong))
