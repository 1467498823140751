"""The oracles of what is learnt: PPO's losses, the reward model's, averaged weights and Adam; see oracles.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from oracles import Found, Row, Rows, moments, real


def token_mean(rows: Rows, mask: Sequence[Sequence[int]], wrong: str = "") -> float:
    """Mean over the real tokens of the batch. Wrong: `padding_counted`, `mean_of_row_means`."""
    if wrong == "padding_counted":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if wrong == "mean_of_row_means":
        means = [moments([row], [marks])[0] for row, marks in zip(rows, mask, strict=True)]
        return sum(means) / len(means)
    return moments(rows, mask)[0]


def policy_loss(
    new: Rows, old: Rows, advantages: Rows, mask: Sequence[Sequence[int]], clip: float, wrong: str = ""
) -> dict[str, Any]:
    """Means over real tokens, and the loss's gradient by the new log-probabilities.

    Wrong: `sign`, `optimistic` (the smaller loss), `not_clipped`, `clipped_only`, `padding_counted` (in every mean).
    """
    n = sum(map(len, mask)) if wrong == "padding_counted" else sum(map(sum, mask))
    loss = clipped = approx_kl = ratios = 0.0
    gradient: Found = []
    for b, marks in enumerate(mask):
        gradient.append([None] * len(marks))
        for t, here in enumerate(marks):
            if not here and wrong != "padding_counted":
                continue
            ratio, a = math.exp(new[b][t] - old[b][t]), advantages[b][t]
            held = min(max(ratio, 1 - clip), 1 + clip)
            plain, flat = -a * ratio, -a * held
            chosen = {"optimistic": min(plain, flat), "not_clipped": plain, "clipped_only": flat}.get(
                wrong, max(plain, flat)
            )
            loss += -chosen if wrong == "sign" else chosen
            clipped += flat > plain
            approx_kl += 0.5 * (new[b][t] - old[b][t]) ** 2
            ratios += ratio
            if here:
                gradient[b][t] = (0.0 if flat > plain else plain) / n
    means = {"loss": loss, "clipfrac": clipped, "approx_kl": approx_kl, "ratio": ratios}
    return {**{name: total / n for name, total in means.items()}, "gradient": gradient}


def value_loss(
    values: Rows, old: Rows, returns: Rows, mask: Sequence[Sequence[int]], clip: float, wrong: str = ""
) -> dict[str, Any]:
    """Means over real tokens, and the loss's gradient by the values.

    Wrong: `optimistic` (the smaller error), `not_clipped`, `half_forgotten`, `padding_counted`.
    """
    n = sum(map(len, mask)) if wrong == "padding_counted" else sum(map(sum, mask))
    loss = clipped = 0.0
    gradient: Found = []
    for b, marks in enumerate(mask):
        gradient.append([None] * len(marks))
        for t, here in enumerate(marks):
            if not here and wrong != "padding_counted":
                continue
            held = min(max(values[b][t], old[b][t] - clip), old[b][t] + clip)
            plain, flat = (values[b][t] - returns[b][t]) ** 2, (held - returns[b][t]) ** 2
            chosen = {"optimistic": min(plain, flat), "not_clipped": plain}.get(wrong, max(plain, flat))
            loss += chosen if wrong == "half_forgotten" else 0.5 * chosen
            clipped += flat > plain
            if here:
                gradient[b][t] = 0.0 if flat > plain else (values[b][t] - returns[b][t]) / n
    return {"loss": loss / n, "clipfrac": clipped / n, "gradient": gradient}


def explained_variance(values: Rows, returns: Rows, mask: Sequence[Sequence[int]], wrong: str = "") -> float:
    """1 - mean squared error / biased variance of the returns. Wrong: `offset_forgiven` (variance of the error)."""
    errors = [v - r for v, r in zip(real(values, mask), real(returns, mask), strict=True)]
    offset = sum(errors) / len(errors) if wrong == "offset_forgiven" else 0.0
    return 1 - sum((e - offset) ** 2 for e in errors) / len(errors) / moments(returns, mask)[1]


# Reward model


def ranking_loss(scores: Rows, ranks: Sequence[Sequence[int]], wrong: str = "") -> dict[str, Any]:
    """Mean over prompts of the mean over their untied pairs of -log sigmoid(better - worse), and its gradient.

    Wrong: `sum_over_pairs`, `pairs_pooled` (every pair weighs the same), `ties_counted`, `worst_first`.
    """
    found = [pair_losses(s, r, wrong == "worst_first") for s, r in zip(scores, ranks, strict=True)]
    untied = [(losses, gradient) for losses, gradient in found if losses]
    pooled = sum(len(losses) for losses, _ in untied)
    total, gradients = 0.0, []
    for (losses, gradient), row in zip(found, scores, strict=True):
        weight = 1 / (len(losses) * len(untied)) if losses else 0.0
        if wrong == "sum_over_pairs":
            weight = 1 / len(untied)
        elif wrong == "pairs_pooled":
            weight = 1 / pooled
        elif wrong == "ties_counted":
            weight = 1 / (len(row) * (len(row) - 1) / 2 * len(scores))
        total += weight * sum(losses)
        gradients.append([weight * g for g in gradient])
    return {"loss": total, "gradient": gradients}


def pair_losses(scores: Row, ranks: Sequence[int], worst_first: bool = False) -> tuple[list[float], list[float]]:
    """(losses of one prompt's untied pairs, gradient of their sum by each score); rank 1 is best."""
    losses, gradient = [], [0.0] * len(scores)
    for i in range(len(scores)):
        for j in range(len(scores)):
            if (ranks[i] > ranks[j]) if worst_first else (ranks[i] < ranks[j]):
                losses.append(math.log1p(math.exp(scores[j] - scores[i])))
                push = 1 / (1 + math.exp(scores[i] - scores[j]))
                gradient[i] -= push
                gradient[j] += push
    return losses, gradient


def accuracy(chosen: Row, rejected: Row, wrong: str = "") -> float:
    """Pairs whose chosen answer scores higher, ties half. Wrong: `ties_right`, `ties_wrong`."""
    tie = {"ties_right": 1.0, "ties_wrong": 0.0}.get(wrong, 0.5)
    return sum(1.0 if c > r else tie if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)) / len(chosen)


def normalisation(scores: Row, wrong: str = "") -> dict[str, float]:
    """gain and bias to mean 0 and deviation 1. Wrong: `unbiased_variance`, `bias_not_scaled`."""
    mean, variance = moments([scores], [[1] * len(scores)], wrong == "unbiased_variance")
    gain = 1 / math.sqrt(variance)
    return {"gain": gain, "bias": -mean if wrong == "bias_not_scaled" else -gain * mean}


def ensemble(scores: Rows, rule: str, coef: float = 1.0, wrong: str = "") -> list[float]:
    """One score an answer of its members' (rows). Wrong: `bonus` (spread is rewarded), `unbiased_variance`."""
    found = []
    for own in zip(*scores, strict=True):
        mean, variance = moments([own], [[1] * len(own)], wrong == "unbiased_variance")
        cautious = mean + (coef if wrong == "bonus" else -coef) * math.sqrt(variance)
        found.append({"mean": mean, "worst": min(own), "mean_std": cautious}[rule])
    return found


# Training


def average(weights: Row, decay: float, wrong: str = "") -> float:
    """Moving average over `weights`, the first of which it starts from. Wrong: `swapped`, `starts_at_zero`."""
    found = 0.0 if wrong == "starts_at_zero" else weights[0]
    for weight in weights[1:]:
        found = (1 - decay) * found + decay * weight if wrong == "swapped" else decay * found + (1 - decay) * weight
    return found


def adam(gradients: Row, rate: float, beta1: float, beta2: float, eps: float, wrong: str = "") -> float:
    """Change of a weight after Adam's steps, PyTorch's form. Wrong: `eps_inside_root`, `no_bias_correction`."""
    weight = m = v = 0.0
    for step, g in enumerate(gradients, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        if wrong == "no_bias_correction":
            m_hat, v_hat = m, v
        root = math.sqrt(v_hat + eps) if wrong == "eps_inside_root" else math.sqrt(v_hat) + eps
        weight -= rate * m_hat / root
    return weight
