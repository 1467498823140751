"""Details of PPO's losses and of what is logged beside them, one test each.

Schulman et al. 2017 (arXiv 1707.06347, Eq 7); Ziegler et al. 2019's code (lm-human-preferences, train_policy.py); N:
the blog post "The N Implementation Details of RLHF with PPO".
"""

from __future__ import annotations

import math
from typing import Any

import loss_oracles
import oracles
import pytest
import torch
from compare import agree
from torch import Tensor

from gptlife.reward.logprobs import entropy, masked_mean
from gptlife.reward.objective import PolicyTerms, ValueTerms, explained_variance, policy_loss, value_loss

WHOLE = torch.ones(1, 4).bool()


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(new_BR, old_BR, goal_BR, mask_BR) of answers of 6, 2, 1 and 4 tokens, padding filled with numbers; float64."""
    generator = torch.Generator().manual_seed(seed)
    new_BR, old_BR, goal_BR = 0.5 * torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return new_BR, old_BR, goal_BR, torch.arange(6) < torch.tensor([6, 2, 1, 4]).unsqueeze(1)


def lists(*tensors: Tensor) -> list[Any]:
    return [tensor.tolist() for tensor in tensors]


def means(terms: PolicyTerms | ValueTerms) -> dict[str, Tensor]:
    """Sums over the real tokens as means, under the oracles' names."""
    return {name.removesuffix("_sum"): x / terms.n_tokens for name, x in terms._asdict().items() if name != "n_tokens"}


def refused(found: Any, expected: Any) -> None:
    with pytest.raises(AssertionError):
        agree(found, expected)


def gradient_of(loss: Any, new: Tensor, *rest: Any) -> Tensor:
    """Of the mean over real tokens, by the first argument."""
    new = new.clone().requires_grad_()
    terms = loss(new, *rest, 0.2)
    (gradient,) = torch.autograd.grad(terms.loss_sum / terms.n_tokens, new)
    return gradient


def test_clipped_policy_loss() -> None:
    """Eq 7 token by token: the larger of the plain and the clipped loss, a mean over the real tokens."""
    found = means(policy_loss(*ragged(), 0.2))
    expected = loss_oracles.policy_loss(*lists(*ragged()), 0.2)
    assert 0 < expected["clipfrac"] < 1  # either side of the bounds is there
    agree(found["loss"], expected["loss"])
    for wrong in ("sign", "optimistic", "not_clipped", "clipped_only", "padding_counted"):
        refused(found["loss"], loss_oracles.policy_loss(*lists(*ragged()), 0.2, wrong)["loss"])


def test_policy_loss_at_and_beyond_the_bounds() -> None:
    """By hand, clip 0.2. Ratio 1.5: A 1 earns 1.2, A -1 costs 1.5. Ratio 0.5: A 1 earns 0.5, A -1 costs 0.8."""
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)

    def loss(ratios: list[float], clip: float = 0.2) -> Tensor:
        ratio_BR = torch.tensor([ratios], dtype=torch.float64)
        return policy_loss(ratio_BR.log(), torch.zeros_like(ratio_BR), advantages, WHOLE, clip).loss_sum

    agree(loss([1.5, 1.5, 0.5, 0.5]), -1.2 + 1.5 - 0.5 + 0.8)
    agree(loss([1.2, 1.2, 0.8, 0.8]), -1.2 + 1.2 - 0.8 + 0.8)  # at the bounds both are the same
    agree(loss([1.2 + 1e-6, 1.2, 0.8, 0.8 - 1e-6]), 0.0)  # beyond them nothing more is earned ...
    agree(loss([1.2, 1.2 + 1e-3, 0.8 - 1e-3, 0.8]), 2e-3)  # ... but what is worse still costs
    refused(loss([1.5, 1.5, 0.5, 0.5], clip=0.6), -1.2 + 1.5 - 0.5 + 0.8)


def test_policy_gradient() -> None:
    """The gradient is -A ratio where the plain loss is the larger one, and 0 beyond the bound that A aims at."""
    found = gradient_of(policy_loss, *ragged())
    agree(found, loss_oracles.policy_loss(*lists(*ragged()), 0.2)["gradient"])
    agree(found[~ragged()[3]], [0.0] * 11)
    refused(gradient_of(lambda *a: policy_loss(*a[:4], 9.0), *ragged()),
            loss_oracles.policy_loss(*lists(*ragged()), 0.2)["gradient"])  # fmt: skip


def test_clipped_value_loss() -> None:
    """lm-human-preferences: half the larger of plain and clipped squared error, clipped around the old value."""
    found = means(value_loss(*ragged(), 0.2))
    expected = loss_oracles.value_loss(*lists(*ragged()), 0.2)
    assert 0 < expected["clipfrac"] < 1
    agree(found["loss"], expected["loss"])
    agree(found["clipfrac"], expected["clipfrac"], 1e-6)  # counted in float32
    for wrong in ("optimistic", "not_clipped", "half_forgotten", "padding_counted"):
        refused(found["loss"], loss_oracles.value_loss(*lists(*ragged()), 0.2, wrong)["loss"])


def test_value_loss_at_and_beyond_the_bounds() -> None:
    """By hand, old value 0, clip 0.2. Value 1, return 2: errors 1 and 3.24. Value 1, return 0: 1 and 0.04."""
    returns = torch.tensor([[2.0, 0.0, 1.0, -2.0]], dtype=torch.float64)

    def loss(values: list[float], clip: float = 0.2) -> Tensor:
        values_BR = torch.tensor([values], dtype=torch.float64)
        return value_loss(values_BR, torch.zeros_like(values_BR), returns, WHOLE, clip).loss_sum

    # Third: 0.1 is inside, error 0.81. Fourth: -1 is beyond, towards its return: errors 1 and 3.24.
    agree(loss([1.0, 1.0, 0.1, -1.0]), 0.5 * (3.24 + 1.0 + 0.81 + 3.24))
    agree(loss([0.2, 0.2, 0.2, -0.2]), 0.5 * (3.24 + 0.04 + 0.64 + 3.24))  # at the bounds both are the same
    refused(loss([1.0, 1.0, 0.1, -1.0], clip=2.0), 0.5 * (3.24 + 1.0 + 0.81 + 3.24))


def test_value_gradient() -> None:
    """The gradient is V - return, and 0 for a value that went further than the bound towards its return."""
    found = gradient_of(value_loss, *ragged())
    agree(found, loss_oracles.value_loss(*lists(*ragged()), 0.2)["gradient"])
    refused(gradient_of(lambda *a: value_loss(*a[:4], 9.0), *ragged()),
            loss_oracles.value_loss(*lists(*ragged()), 0.2)["gradient"])  # fmt: skip


def test_clipfrac() -> None:
    """lm-human-preferences, policy/clipfrac: tokens where clipping decides, not all whose ratio lies beyond a bound."""
    ratio_BR = torch.tensor([[1.5, 1.5, 0.5, 1.1]], dtype=torch.float64)
    advantages_BR = torch.tensor([[1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
    terms = policy_loss(ratio_BR.log(), torch.zeros_like(ratio_BR), advantages_BR, WHOLE, 0.2)
    agree(terms.clipfrac_sum, 1)
    beyond = ((ratio_BR - 1).abs() > 0.2).sum()
    refused(terms.clipfrac_sum, beyond)  # twin: three lie beyond


def test_approx_kl() -> None:
    """lm-human-preferences, policy/approxkl: half the mean squared log ratio of new and old."""
    found = means(policy_loss(*ragged(), 0.2))
    agree(found["approx_kl"], loss_oracles.policy_loss(*lists(*ragged()), 0.2)["approx_kl"])
    new_BR, old_BR, _, mask_BR = ragged()
    refused(found["approx_kl"], (new_BR - old_BR)[mask_BR].mean())
    refused(found["approx_kl"], loss_oracles.policy_loss(*lists(*ragged()), 0.2, "padding_counted")["approx_kl"])


def test_ratio_mean_and_variance() -> None:
    """lm-human-preferences, policy/ratio: mean and mean square over real tokens; both 1 while nothing has moved."""
    new_BR, old_BR, goal_BR, mask_BR = ragged()
    found = means(policy_loss(new_BR, old_BR, goal_BR, mask_BR, 0.2))
    ratios = [math.exp(p - q) for p, q in zip(*lists(new_BR[mask_BR], old_BR[mask_BR]), strict=True)]
    agree([found["ratio"].item(), found["ratio_sq"].item()], [sum(ratios) / 13, sum(r * r for r in ratios) / 13])
    refused(found["ratio"], loss_oracles.policy_loss(*lists(*ragged()), 0.2, "padding_counted")["ratio"])
    same = policy_loss(new_BR.float(), new_BR.float(), goal_BR.float(), mask_BR, 0.2)
    assert (same.ratio_sum, same.ratio_sq_sum, same.approx_kl_sum, same.clipfrac_sum) == (13, 13, 0, 0)


def test_padding_reaches_neither_loss_nor_gradient() -> None:
    """Numbers that are no numbers in padding: multiplied by a mask of zeros they would still be NaN."""
    new_BR, old_BR, goal_BR, mask_BR = ragged()
    holes_BR = new_BR.masked_fill(~mask_BR, 800.0)  # exp(800) is infinite
    for loss in (policy_loss, value_loss):
        agree(means(loss(holes_BR, old_BR, goal_BR, mask_BR, 0.2)), means(loss(new_BR, old_BR, goal_BR, mask_BR, 0.2)))
        agree(gradient_of(loss, holes_BR, old_BR, goal_BR, mask_BR), gradient_of(loss, *ragged()))
    product = ((holes_BR - old_BR).exp() * mask_BR).sum()
    refused(product, (new_BR - old_BR).exp()[mask_BR].sum())


def test_mean_over_real_tokens() -> None:
    """A mean is the sum over real tokens by their number: not over padding, not a mean of each answer's mean."""
    x_BR, _, _, mask_BR = ragged()
    found = masked_mean(x_BR.masked_fill(~mask_BR, torch.nan), mask_BR)
    agree(found, loss_oracles.token_mean(*lists(x_BR, mask_BR)))
    for wrong in ("padding_counted", "mean_of_row_means"):
        refused(found, loss_oracles.token_mean(*lists(x_BR, mask_BR), wrong))


def test_sums_do_not_depend_on_the_split() -> None:
    """Sums before means: any split of a batch and any width of padding add up to the same loss."""
    for loss in (policy_loss, value_loss):
        whole = loss(*ragged(), 0.2)
        parts = [
            loss(*(x[rows, :width] for x in ragged()), 0.2) for rows, width in ((slice(0, 1), 6), (slice(1, 4), 4))
        ]
        for name in whole._fields:
            agree(sum(getattr(part, name) for part in parts), getattr(whole, name))
        # Twin: the mean of the parts' means, which is what accumulating means gives.
        refused(sum(part.loss_sum / part.n_tokens for part in parts) / 2, whole.loss_sum / whole.n_tokens)


def test_entropy() -> None:
    """lm-human-preferences, policy/entropy: of the distribution that is sampled from, temperature included."""
    logits_BTV = 3 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    agree(entropy(logits_BTV, 0.7), oracles.entropies(logits_BTV.tolist(), 0.7))
    agree(entropy(torch.zeros(1, 1, 7), 0.7), [[math.log(7)]], 1e-6)
    refused(entropy(logits_BTV, 0.7), oracles.entropies(logits_BTV.tolist(), 1.0))


def test_explained_variance() -> None:
    """lm-human-preferences, val/var_explained: 1 - error / variance of the returns; a constant error is charged."""
    values_BR, _, returns_BR, mask_BR = ragged()
    found = explained_variance(values_BR, returns_BR, mask_BR)
    agree(found, loss_oracles.explained_variance(*lists(values_BR, returns_BR, mask_BR)))
    refused(found, loss_oracles.explained_variance(*lists(values_BR, returns_BR, mask_BR), "offset_forgiven"))
    agree(explained_variance(returns_BR, returns_BR, mask_BR), 1.0)
