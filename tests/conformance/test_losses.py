"""Details of PPO's losses and of what is logged beside them, one test each.

Schulman et al. 2017 (arXiv 1707.06347, Eq 7); Ziegler et al. 2019's code (lm-human-preferences, train_policy.py); N:
the blog post "The N Implementation Details of RLHF with PPO".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import loss_oracles
import oracles
import pytest
import shipped
import torch
from compare import agree, joined
from shipped import lists
from torch import Tensor

from gptlife.reward.objective import PolicyTerms, ValueTerms, entropy, policy_loss, value_loss
from gptlife.stages.modeling.forward import SelectedScores
from gptlife.stages.rl import episodes
from gptlife.stages.rl.metrics import update_metrics


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(new_BR, old_BR, goal_BR, mask_BR) of answers of 6, 2, 1 and 4 tokens, padding filled with numbers; float64."""
    generator = torch.Generator().manual_seed(seed)
    new_BR, old_BR, goal_BR = 0.5 * torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return new_BR, old_BR, goal_BR, torch.arange(6) < torch.tensor([6, 2, 1, 4]).unsqueeze(1)


def minibatch(rows: Any = None, width: int = 6, changed: Any = lambda x_BR: x_BR) -> episodes.Minibatch:
    """Some of the answers as PPO's losses read them, old log-probabilities and values being one table."""
    _, old_BR, goal_BR, mask_BR = (x[:, :width] for x in ragged())
    old_BR, goal_BR = changed(old_BR), changed(goal_BR)
    tables = {"logprobs_BR": old_BR, "values_BR": old_BR, "advantages_BR": goal_BR, "returns_BR": goal_BR}
    return shipped.minibatch(mask_BR, rows, **tables)


def losses(new_BR: Tensor, batch: episodes.Minibatch, clip: float = 0.2) -> dict[str, PolicyTerms | ValueTerms]:
    """Both losses of a minibatch, by name."""
    new_N = new_BR[batch.mask_BR]
    return {
        "policy": policy_loss(new_N, batch.logprobs_N, batch.advantages_N, clip),
        "value": value_loss(new_N, batch.values_N, batch.returns_N, clip),
    }


def of_losses(clip: float = 0.2) -> dict[str, PolicyTerms | ValueTerms]:
    """Of all answers."""
    return losses(ragged()[0], minibatch(), clip)


def means(terms: PolicyTerms | ValueTerms) -> dict[str, Tensor]:
    """Sums over the real tokens as means, under the oracles' names."""
    return {name.removesuffix("_sum"): x / terms.n for name, x in terms._asdict().items() if name != "n"}


def refused(found: Any, expected: Any) -> None:
    with pytest.raises(AssertionError):
        agree(found, expected)


def gradient_of(name: str, batch: episodes.Minibatch, clip: float = 0.2) -> Tensor:
    """Of what PPO minimises, by the new log-probabilities or values."""
    new_BR = ragged()[0].requires_grad_()
    (gradient_BR,) = torch.autograd.grad(
        losses(new_BR, batch, clip)[name].loss_sum / shipped.denominator(ragged()[3]), new_BR
    )
    return gradient_BR


def test_clipped_policy_loss() -> None:
    """Eq 7 token by token: the larger of the plain and the clipped loss, a mean over the real tokens."""
    found = means(of_losses()["policy"])
    expected = loss_oracles.policy_loss(*lists(*ragged()), 0.2)
    assert 0 < expected["clipfrac"] < 1  # either side of the bounds is there
    agree(found["loss"], expected["loss"])
    for wrong in ("sign", "optimistic", "not_clipped", "clipped_only", "padding_counted"):
        refused(found["loss"], loss_oracles.policy_loss(*lists(*ragged()), 0.2, wrong)["loss"])


def test_policy_loss_at_and_beyond_the_bounds() -> None:
    """By hand, clip 0.2. Ratio 1.5: A 1 earns 1.2, A -1 costs 1.5. Ratio 0.5: A 1 earns 0.5, A -1 costs 0.8."""
    advantages_N = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)

    def loss(ratios: list[float], clip: float = 0.2) -> Tensor:
        ratio_N = torch.tensor(ratios, dtype=torch.float64)
        return policy_loss(ratio_N.log(), torch.zeros_like(ratio_N), advantages_N, clip).loss_sum

    agree(loss([1.5, 1.5, 0.5, 0.5]), -1.2 + 1.5 - 0.5 + 0.8)
    agree(loss([1.2, 1.2, 0.8, 0.8]), -1.2 + 1.2 - 0.8 + 0.8)  # at the bounds both are the same
    agree(loss([1.2 + 1e-6, 1.2, 0.8, 0.8 - 1e-6]), 0.0)  # beyond them nothing more is earned ...
    agree(loss([1.2, 1.2 + 1e-3, 0.8 - 1e-3, 0.8]), 2e-3)  # ... but what is worse still costs
    refused(loss([1.5, 1.5, 0.5, 0.5], clip=0.6), -1.2 + 1.5 - 0.5 + 0.8)


def test_policy_gradient() -> None:
    """The gradient is -A ratio where the plain loss is the larger one, and 0 beyond the bound that A aims at."""
    found, expected = gradient_of("policy", minibatch()), loss_oracles.policy_loss(*lists(*ragged()), 0.2)["gradient"]
    agree(found, expected)
    agree(found[~ragged()[3]], [0.0] * 11)
    refused(gradient_of("policy", minibatch(), clip=9.0), expected)


def test_clipped_value_loss() -> None:
    """lm-human-preferences: half the larger of plain and clipped squared error, clipped around the old value."""
    found = means(of_losses()["value"])
    expected = loss_oracles.value_loss(*lists(*ragged()), 0.2)
    assert 0 < expected["clipfrac"] < 1
    agree(found["loss"], expected["loss"])
    agree(found["clipfrac"], expected["clipfrac"], 1e-6)  # counted in float32
    agree(found["error"], sum((v - r) ** 2 for v, r in zip(*(x[ragged()[3]] for x in ragged()[::2]), strict=True)) / 13)
    for wrong in ("optimistic", "not_clipped", "half_forgotten", "padding_counted"):
        refused(found["loss"], loss_oracles.value_loss(*lists(*ragged()), 0.2, wrong)["loss"])


def test_value_loss_at_and_beyond_the_bounds() -> None:
    """By hand, old value 0, clip 0.2. Value 1, return 2: errors 1 and 3.24. Value 1, return 0: 1 and 0.04."""
    returns_N = torch.tensor([2.0, 0.0, 1.0, -2.0], dtype=torch.float64)

    def loss(values: list[float], clip: float = 0.2) -> Tensor:
        values_N = torch.tensor(values, dtype=torch.float64)
        return value_loss(values_N, torch.zeros_like(values_N), returns_N, clip).loss_sum

    # Third: 0.1 is inside, error 0.81. Fourth: -1 is beyond, towards its return: errors 1 and 3.24.
    agree(loss([1.0, 1.0, 0.1, -1.0]), 0.5 * (3.24 + 1.0 + 0.81 + 3.24))
    agree(loss([0.2, 0.2, 0.2, -0.2]), 0.5 * (3.24 + 0.04 + 0.64 + 3.24))  # at the bounds both are the same
    refused(loss([1.0, 1.0, 0.1, -1.0], clip=2.0), 0.5 * (3.24 + 1.0 + 0.81 + 3.24))


def test_value_gradient() -> None:
    """The gradient is V - return, and 0 for a value that went further than the bound towards its return."""
    expected = loss_oracles.value_loss(*lists(*ragged()), 0.2)["gradient"]
    agree(gradient_of("value", minibatch()), expected)
    refused(gradient_of("value", minibatch(), clip=9.0), expected)


def test_clipfrac() -> None:
    """lm-human-preferences, policy/clipfrac: tokens where clipping decides, not all whose ratio lies beyond a bound."""
    ratio_N = torch.tensor([1.5, 1.5, 0.5, 1.1], dtype=torch.float64)
    advantages_N = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    terms = policy_loss(ratio_N.log(), torch.zeros_like(ratio_N), advantages_N, 0.2)
    agree(terms.clipfrac_sum, 1)
    beyond = ((ratio_N - 1).abs() > 0.2).sum()
    refused(terms.clipfrac_sum, beyond)  # twin: three lie beyond


def test_approx_kl() -> None:
    """lm-human-preferences, policy/approxkl: half the mean squared log ratio of new and old."""
    found = means(of_losses()["policy"])
    agree(found["approx_kl"], loss_oracles.policy_loss(*lists(*ragged()), 0.2)["approx_kl"])
    new_BR, old_BR, _, mask_BR = ragged()
    refused(found["approx_kl"], (new_BR - old_BR)[mask_BR].mean())
    refused(found["approx_kl"], loss_oracles.policy_loss(*lists(*ragged()), 0.2, "padding_counted")["approx_kl"])


def test_ratio_mean_and_variance() -> None:
    """lm-human-preferences, policy/ratio: mean and mean square over real tokens; both 1 while nothing has moved."""
    new_BR, old_BR, goal_BR, mask_BR = ragged()
    found = means(of_losses()["policy"])
    ratios = [math.exp(p - q) for p, q in zip(*lists(new_BR[mask_BR], old_BR[mask_BR]), strict=True)]
    agree([found["ratio"].item(), found["ratio_sq"].item()], [sum(ratios) / 13, sum(r * r for r in ratios) / 13])
    refused(found["ratio"], loss_oracles.policy_loss(*lists(*ragged()), 0.2, "padding_counted")["ratio"])
    same = policy_loss(*(x_BR.float()[mask_BR] for x_BR in (new_BR, new_BR, goal_BR)), 0.2)
    assert (same.ratio_sum, same.ratio_sq_sum, same.approx_kl_sum, same.clipfrac_sum) == (13, 13, 0, 0)
    # As they are logged: sums of all minibatches before the mean, and the variance from both.
    updates = []
    for rows in ([0], [1, 2, 3]):
        terms = losses(new_BR[rows], minibatch(rows))["policy"]._asdict()
        sums = {"policy/" + name.replace("loss_sum", "loss"): float(x) for name, x in terms.items()}
        updates.append({"denominator": shipped.denominator(mask_BR, rows), "policy_grad_norm": 1.0, **sums})
    line = update_metrics(updates)
    mean, square = sum(ratios) / 13, sum(r * r for r in ratios) / 13
    agree([line["ratio_mean"], line["ratio_var"], line["first_ratio"]], [mean, square - mean**2, sum(ratios[:6]) / 6])
    refused(line["ratio_mean"], sum(sum(part) / len(part) for part in (ratios[:6], ratios[6:])) / 2)


def test_padding_reaches_neither_loss_nor_gradient(scorer: Any) -> None:
    """NaN in padding: multiplied by a mask of zeros it would still be NaN."""
    new_BR, old_BR, _, mask_BR = ragged()
    holes = minibatch(changed=lambda x_BR: x_BR.masked_fill(~mask_BR, torch.nan))
    for name, terms in losses(new_BR, holes).items():
        agree(means(terms), means(of_losses()[name]))
        agree(gradient_of(name, holes), gradient_of(name, minibatch()))
    product = ((new_BR - old_BR).exp().masked_fill(~mask_BR, torch.nan) * mask_BR).sum()
    refused(product, (new_BR - old_BR).exp()[mask_BR].sum())

    # What a network reads: other tokens in padding, the same values and the same gradient of every weight.
    def gradients(batch: episodes.Minibatch) -> list[Tensor]:
        terms = shipped.algorithm().value_loss(SelectedScores(scorer), batch)
        return [terms["loss_sum"], *torch.autograd.grad(terms["loss_sum"], list(scorer.parameters()))]

    def check(fill: int, select_all: bool) -> None:
        rows = minibatch().rows
        tokens_BT = rows.inputs["input_ids"]
        pad_BT = torch.arange(tokens_BT.shape[1]) > rows.last_BT.int().argmax(1, keepdim=True)
        filled = rows._replace(inputs={"input_ids": tokens_BT.masked_fill(pad_BT, fill)})
        if select_all:  # the last positions instead of the answer's: padding among them
            filled = filled._replace(select_BT=filled.select_BT.roll(2, 1))
        for one, two in zip(gradients(replace(minibatch(), rows=filled)), gradients(minibatch()), strict=True):
            agree(one.detach(), two.detach(), 1e-6)

    check(7, False)
    with pytest.raises(AssertionError):
        check(7, True)


def test_mean_over_real_tokens() -> None:
    """A mean is the sum over real tokens by their number: not over padding, not a mean of each answer's mean."""
    x_BR, _, _, mask_BR = ragged()
    batch = shipped.minibatch(mask_BR, values_BR=x_BR.masked_fill(~mask_BR, torch.nan))
    expected = loss_oracles.token_mean(*lists(x_BR, mask_BR))
    found = batch.values_N.sum() / shipped.denominator(mask_BR)  # as a loss is taken
    agree(found, expected)
    agree(shipped.logged(mask_BR, values_BR=x_BR)["value_mean"], expected)  # as it is logged
    for wrong in ("padding_counted", "mean_of_row_means"):
        refused(found, loss_oracles.token_mean(*lists(x_BR, mask_BR), wrong))


def test_sums_do_not_depend_on_the_split() -> None:
    """Sums before means: any split of a batch and any width of padding add up to the same loss."""
    parts = [losses(ragged()[0][:1], minibatch([0])), losses(ragged()[0][1:, :4], minibatch([1, 2, 3], width=4))]
    for name, whole in of_losses().items():
        for field in whole._fields:
            agree(sum(getattr(part[name], field) for part in parts), getattr(whole, field))
        # Twin: the mean of the parts' means, which is what accumulating means gives.
        refused(sum(part[name].loss_sum / part[name].n for part in parts) / 2, whole.loss_sum / whole.n)
    assert shipped.denominator(ragged()[3], [0]) + shipped.denominator(ragged()[3], [1, 2, 3]) == 13


def test_entropy() -> None:
    """lm-human-preferences, policy/entropy: of the distribution that is sampled from, temperature included."""
    logits_BTV = 3 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found_N = entropy(logits_BTV.flatten(0, 1), 0.7)
    agree(found_N, joined(oracles.entropies(logits_BTV.tolist(), 0.7)))
    agree(entropy(torch.zeros(1, 7), 0.7), [math.log(7)], 1e-6)
    refused(found_N, joined(oracles.entropies(logits_BTV.tolist(), 1.0)))


def test_explained_variance() -> None:
    """lm-human-preferences, val/var_explained: 1 - error / variance of the returns; a constant error is charged."""
    values_BR, _, returns_BR, mask_BR = ragged()

    def explained_variance(values_BR: Tensor) -> float:
        return float(shipped.logged(mask_BR, values_BR=values_BR, returns_BR=returns_BR)["var_explained"])

    found = explained_variance(values_BR)
    agree(found, loss_oracles.explained_variance(*lists(values_BR, returns_BR, mask_BR)))
    refused(found, loss_oracles.explained_variance(*lists(values_BR, returns_BR, mask_BR), "offset_forgiven"))
    agree(explained_variance(returns_BR), 1.0)
