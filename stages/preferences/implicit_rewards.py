"""The reward that a policy implies, beta · log(policy(answer | prompt) / reference(answer | prompt)); its metrics."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch

from gptlife.data.packing import length_batches
from gptlife.data.tokens import Encoded
from gptlife.reward.statistics.accuracy import accuracy
from gptlife.stages.modeling.forward import SelectedLogits
from gptlife.stages.preferences.metrics import by_group, margins
from gptlife.stages.training.lm import TargetRows

Row = dict[str, Any]
Measure = Callable[[list[float]], dict[str, float]]
"""Metrics of the implicit rewards of all answers."""


class ImplicitRewards:
    """Metrics of what `reader` has learnt about fixed answers; it is its own reference as it is now."""

    def __init__(
        self, reader: SelectedLogits, beta: float, tokens_per_batch: int, answers: Sequence[Encoded], measure: Measure
    ) -> None:
        self.reader, self.beta, self.tokens_per_batch = reader, beta, tokens_per_batch
        self.answers, self.measure = answers, measure
        self.reference = answer_logprobs(reader, answers, tokens_per_batch)

    def __call__(self) -> dict[str, float]:
        """The metrics now."""
        policy = answer_logprobs(self.reader, self.answers, self.tokens_per_batch)
        return self.measure([self.beta * (new - old) for new, old in zip(policy, self.reference, strict=True)])


@torch.no_grad()
def answer_logprobs(reader: SelectedLogits, answers: Sequence[Encoded], tokens_per_batch: int) -> list[float]:
    """log p(answer | prompt) in nats of every answer, summed over its tokens, end-of-text included."""
    rows = TargetRows(answers)
    device, logprobs = next(reader.parameters()).device, [0.0] * len(rows)
    for group in length_batches(rows.lengths, tokens_per_batch=tokens_per_batch):
        batch = rows.collate(group).to(device)
        logits_NV, targets_N = reader(batch.inputs, batch.select), batch.targets["tokens"][batch.select]
        nll_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
        for index, nll in zip(group, nll_N.split(batch.select.sum(1).tolist()), strict=True):
            logprobs[index] = -float(nll.double().sum())
    return logprobs


def pair_metrics(rankings: Sequence[Row], name: str, smoothing: float, rewards: list[float]) -> dict[str, float]:
    """DPO's loss (nats), accuracy (an equal reward counts half) and margin over all untied pairs of encoded rankings.

    The loss of a margin is -(1 - smoothing) log σ(margin) - smoothing log σ(-margin).
    """
    groups = by_group(margins(rewards, rankings), rankings)
    flat = [margin for of_group in groups.values() for margin in of_group]
    losses = [max(-m, 0.0) + math.log1p(math.exp(-abs(m))) + smoothing * m for m in flat]
    by_labelers = {f"{name}_accuracy_{group}": accuracy(of_group) for group, of_group in sorted(groups.items())}
    return {
        f"{name}_loss": sum(losses) / len(flat),
        f"{name}_accuracy": accuracy(flat),
        f"{name}_margin": sum(flat) / len(flat),
        **(by_labelers if len(groups) > 1 else {}),
    }


def mismatched(pairs: Sequence[tuple[Sized, list[int]]], size: int, shift: int) -> list[list[int]]:
    """For each (prompt, answer) the answer of the pair `shift` before it, in a circle of `size`, to estimate KTO's KL.

    An answer is cut where it and the prompt are longer than the longest pair, so that both fit into the model.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    before = [pairs[index - index % size + (index - shift) % size] for index in range(len(pairs))]
    return [other[: width - len(prompt)] for (prompt, _), (_, other) in zip(pairs, before, strict=True)]


def label_answers(rows: Sequence[Row]) -> list[Encoded]:
    """Every row's prompt with its answer, then with an answer from half the rows away (not to the same prompt)."""
    pairs = [row["encoded"].split() for row in rows]
    others = mismatched(pairs, len(rows), len(rows) // 2)
    crossed = [prompt.followed_by(other) for (prompt, _), other in zip(pairs, others, strict=True)]
    return [row["encoded"] for row in rows] + crossed


def label_metrics(
    rows: Sequence[Row], name: str, beta: float, weights: tuple[float, float], rewards: list[float]
) -> dict[str, float]:
    """KTO's loss and KL (nats), accuracy and margin of the rewards of `label_answers(rows)`.

    Accuracy is the probability that a desirable answer has a higher reward than an undesirable one, to whatever prompts
    (equal rewards count half); margin is the difference of their mean rewards; `weights` are the desirable and the
    undesirable one.
    """
    own, reference = rewards[: len(rows)], max(0.0, sum(rewards[len(rows) :]) / len(rows))
    good, bad = ([r for r, row in zip(own, rows, strict=True) if row["label"] is label] for label in (True, False))
    losses = [weights[0] * _sigmoid(reference - r) for r in good] + [weights[1] * _sigmoid(r - reference) for r in bad]
    ordered = sorted(bad)
    wins = sum(bisect_left(ordered, reward) + bisect_right(ordered, reward) for reward in good) / 2
    return {
        f"{name}_loss": sum(losses) / len(losses),
        f"{name}_accuracy": wins / (len(good) * len(bad)),
        f"{name}_margin": sum(good) / len(good) - sum(bad) / len(bad),
        f"{name}_kl": reference / beta,
    }


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(x / 2.0))
