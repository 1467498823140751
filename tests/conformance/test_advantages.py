"""Details of advantages, one test each: GAE, whitening, leave-one-out.

Schulman et al. 2016 (arXiv 1506.02438); N: the blog post "The N Implementation Details of RLHF with PPO".
"""

from __future__ import annotations

import oracles
import pytest
import shipped
import torch
from compare import agree
from shipped import lists
from torch import Tensor

from gptlife.reward.advantage import gae, leave_one_out, whiten
from gptlife.stages.rl import episodes


def ragged(seed: int = 0, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(rewards_BR, values_BR, mask_BR) of answers of 6, 2, 1 and 4 tokens, padding filled with numbers; float64."""
    generator = torch.Generator().manual_seed(seed)
    rewards_BR, values_BR = offset + torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    return rewards_BR, values_BR, torch.arange(6) < torch.tensor([6, 2, 1, 4]).unsqueeze(1)


def found_gae(gamma: float, lam: float) -> dict[str, Tensor]:
    return dict(zip(("advantages", "returns"), gae(*ragged(), gamma, lam), strict=True))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.0), (1.0, 0.95), (1.0, 1.0), (0.9, 0.5)])
def test_gae_against_the_definition(gamma: float, lam: float) -> None:
    """Eq 16 as a double sum over an answer's tokens; gamma 1 in RLHF, lambda 0, 0.95 and 1."""
    found = found_gae(gamma, lam)
    agree(found, oracles.gae(*lists(*ragged()), gamma, lam))
    wrongs = ["no_next_value"] + ["lambda_forgotten"] * (lam < 1) + ["gamma_forgotten"] * (gamma < 1)
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            agree(found, oracles.gae(*lists(*ragged()), gamma, lam, wrong))


def test_gae_by_hand() -> None:
    """Rewards 1, 2; values 0.5, 3; gamma 1: deltas 3.5 and -1. Lambda 0, 0.5, 1: first advantage 3.5, 3, 2.5."""
    for lam, first in ((0.0, 3.5), (0.5, 3.0), (1.0, 2.5)):
        rewards_BR, values_BR = (torch.tensor([row]) for row in ([1.0, 2.0], [0.5, 3.0]))
        advantages_BR, returns_BR = gae(rewards_BR, values_BR, torch.ones(1, 2).bool(), 1.0, lam)
        agree(advantages_BR, [[first, -1.0]])
        agree(returns_BR, [[first + 0.5, 2.0]])
        with pytest.raises(AssertionError):  # twin: another lambda
            agree(gae(rewards_BR, values_BR, torch.ones(1, 2).bool(), 1.0, lam + 0.1)[0], [[first, -1.0]])


def test_nothing_is_bootstrapped_from_padding() -> None:
    """The answer's end is the episode's: the value after the last real token is 0, whatever the table says there."""
    rewards_BR, values_BR, mask_BR = ragged()
    found = found_gae(1.0, 0.95)
    agree(found, oracles.gae(*lists(*ragged()), 1.0, 0.95))
    with pytest.raises(AssertionError):
        agree(found, oracles.gae(*lists(*ragged()), 1.0, 0.95, "bootstraps_from_padding"))
    holes = [x.masked_fill(~mask_BR, torch.nan) for x in (rewards_BR, values_BR)]
    for one, two in zip(gae(*holes, mask_BR, 1.0, 0.95), found.values(), strict=True):
        agree(one, two)
        assert bool((one[~mask_BR] == 0).all())


def test_return_is_what_is_still_to_come() -> None:
    """Lambda 1 and gamma 1: the return is the plain sum of the rewards to come, whatever the values say."""
    rewards_BR, _, mask_BR = ragged()
    expected = [
        [sum(row[t:n]) if t < n else None for t in range(6)]
        for row, n in zip(rewards_BR.tolist(), mask_BR.sum(1).tolist(), strict=True)
    ]
    agree(found_gae(1.0, 1.0)["returns"], expected)
    with pytest.raises(AssertionError):
        agree(found_gae(1.0, 0.95)["returns"], expected)


def test_whitening_of_advantages() -> None:
    """N: mean 0 and (biased) variance 1 over all real tokens. The mean is truly 0: torchtune 0.6.1 adds it back."""
    x_BR, _, mask_BR = ragged(offset=3.0)
    found = whiten(x_BR, mask_BR)
    numbers = found[mask_BR].tolist()
    agree([sum(numbers) / 13, sum(x * x for x in numbers) / 13], [0.0, 1.0], 1e-6)
    agree(found, oracles.whiten(*lists(x_BR, mask_BR), True), 1e-6)
    assert bool((found[~mask_BR] == 0).all())
    for wrong in ("mean_added_back", "unbiased_variance", "padding_counted", "row_by_row"):
        # One token alone has no variance.
        rows = (x_BR[[0, 1, 3]], mask_BR[[0, 1, 3]]) if wrong == "row_by_row" else (x_BR, mask_BR)
        with pytest.raises(AssertionError):
            agree(whiten(*rows), oracles.whiten(*lists(*rows), True, wrong), 1e-6)


def test_whitening_of_rewards_keeps_the_mean() -> None:
    """N (`shift_mean=False`): rewards get variance 1 and keep their mean."""
    x_BR, _, mask_BR = ragged(offset=3.0)
    found = whiten(x_BR, mask_BR, shift_mean=False)
    mean = sum(x_BR[mask_BR].tolist()) / 13
    numbers = found[mask_BR].tolist()
    agree([sum(numbers) / 13, sum((x - mean) ** 2 for x in numbers) / 13], [mean, 1.0], 1e-6)
    agree(found, oracles.whiten(*lists(x_BR, mask_BR), False), 1e-6)
    for wrong in ("mean_removed", "unbiased_variance", "padding_counted"):
        with pytest.raises(AssertionError):
            agree(found, oracles.whiten(*lists(x_BR, mask_BR), False, wrong), 1e-6)


def test_returns_are_not_whitened() -> None:
    """N: advantages are whitened after the returns are taken; rewards, where wanted, before."""
    _, values_BR, mask_BR = ragged()
    scores_B = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    rollouts, readings = (
        shipped.rollouts_of(mask_BR),
        shipped.readings_of(mask_BR, values_BR=values_BR, scores_B=scores_B),
    )
    score = oracles.token_rewards([1.0, -2.0, 0.5, 3.0], *lists(values_BR * 0, values_BR * 0, mask_BR), 0.1)
    rewards = [[x or 0.0 for x in row] for row in score]

    def check(experience: episodes.Experience, white_advantages: bool, white_rewards: bool) -> None:
        used = oracles.whiten(rewards, mask_BR.tolist(), False) if white_rewards else rewards
        expected = oracles.gae(used, *lists(values_BR, mask_BR), 1.0, 0.95)  # type: ignore[arg-type]
        if white_advantages:
            expected["advantages"] = oracles.whiten(expected["advantages"], mask_BR.tolist(), True)  # type: ignore[arg-type]
        agree(experience.returns_BR, expected["returns"], 1e-6)
        agree(experience.advantages_BR, expected["advantages"], 1e-6)

    for name, flags in {"plain": (False, False), "advantages": (True, False), "both": (True, True)}.items():
        changes = {"whiten_advantages": flags[0], "whiten_rewards": flags[1]}
        experience = shipped.algorithm(lam=0.95, **changes).experience(readings, rollouts, 0.1)
        check(experience, *flags)
        if name == "advantages":
            with pytest.raises(AssertionError):  # twin: the returns of whitened advantages
                agree(experience.advantages_BR + values_BR, experience.returns_BR, 1e-6)


def test_leave_one_out_baseline() -> None:
    """Ahmadian et al. 2024 (RLOO, 3.2): an answer's baseline is the mean of its prompt's other answers."""
    returns = [1.0, 4.0, -2.0, 0.5, 0.0, 7.0]
    found = leave_one_out(torch.tensor(returns), 3)
    agree(found[0], 1.0 - (4.0 - 2.0) / 2)  # by hand
    agree(found, oracles.leave_one_out(returns, 3), 1e-6)
    for wrong in ("own_return_counted", "other_prompts_counted"):
        with pytest.raises(AssertionError):
            agree(found, oracles.leave_one_out(returns, 3, wrong), 1e-6)
