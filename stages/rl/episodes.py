"""A step's episodes: what was sampled, what every model says of it, and what an update learns from.

    Rollouts     prompts and the tokens of their answers, the same on every process
    Readings     log-probabilities, reference log-probabilities, values, entropies and scores of all of them
    Experience   readings with what the algorithm made of them: rewards, advantages, returns, loss weights
    Minibatch    some episodes as a loss reads them: their response tokens flat, without padding

An episode is one prompt and one answer (a bandit: Ouyang et al. 2022, section 3.5). Every process holds the whole
batch, so shaping, whitening and minibatches don't depend on how many there are; only the forward passes are shared
out. The policy's log-probabilities are read by the same forward pass, in the same micro-batches, as the update will
use: the first minibatch's ratio is then exactly 1, and the KL to an equal reference exactly 0. The sampler's
log-probabilities are kept to measure how far decoding and training disagree.

Legend: B episodes, R response tokens (padded on the right), T prompt and response tokens, N response tokens of some
episodes (row-major, no padding). What is shaped along an answer is BR, what is learnt from is N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gptlife.data.tokens import Encoded
from gptlife.reward.advantage import clip_scores, penalise_unfinished, token_rewards
from gptlife.reward.objective import entropy, selected_logprobs
from gptlife.stages.generation.sampler import Answer
from gptlife.stages.modeling.forward import inputs_of, last_positions, marks_of

Scorer = Callable[[Sequence[int], dict[str, Tensor], Tensor], Tensor]
"""(episodes, inputs, last_BT) -> scores_B."""


class Rows(NamedTuple):
    """Some episodes as a model reads them."""

    inputs: dict[str, Tensor]
    """What the models read: `input_ids` (B, T)."""
    select_BT: Tensor
    """Bool: the positions whose next token is one of the response."""
    last_BT: Tensor
    """Bool: each row's last token, where a reward model's score is read."""
    targets_N: Tensor
    """The response tokens."""


@dataclass
class Rollouts:
    """What was sampled."""

    prompts: list[Encoded]
    responses: list[list[int]]
    finished_B: Tensor
    """Bool: whether the answer reached its end-of-text token."""
    sampled_logprobs_BR: Tensor
    mask_BR: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and response."""
        return [len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True)]

    def rows(self, episodes: Sequence[int], device: torch.device) -> Rows:
        """Some episodes, each prompt followed by its response, padded on the right."""
        rows = [self.prompts[index].followed_by(self.responses[index]) for index in episodes]
        inputs, response_BT = inputs_of(rows, device), marks_of(rows, device)
        select_BT = response_BT.roll(-1, dims=1)  # the first token is the prompt's: nothing comes round
        return Rows(inputs, select_BT, last_positions(rows, device), inputs["input_ids"][response_BT])


@dataclass
class Readings:
    """What the models say of all episodes; 0 on padding."""

    logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    values_BR: Tensor
    """The value network's; 0 where there is none."""
    entropy_BR: Tensor
    scores_B: Tensor
    """As the reward model or function gave them: not clipped, no penalty."""


@dataclass
class Experience:
    """Readings and what an algorithm made of them."""

    readings: Readings
    rewards_BR: Tensor
    values_BR: Tensor
    """The baseline: the value network's, or what the prompt's other answers got."""
    advantages_BR: Tensor
    returns_BR: Tensor
    weights_BR: Tensor | None = None
    """Of each token in the policy's loss, 0 for an answer that is left out; None: all 1."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What else the step logs."""


@dataclass
class Minibatch:
    """Some episodes as an update reads them."""

    rows: Rows
    mask_BR: Tensor
    logprobs_N: Tensor
    ref_logprobs_N: Tensor
    values_N: Tensor
    advantages_N: Tensor
    returns_N: Tensor
    weights_N: Tensor | None

    def logprobs(self, policy: nn.Module, temperature: float) -> Tensor:
        """The policy's log-probabilities of the response tokens now, (N,), with gradient."""
        return selected_logprobs(policy(self.rows.inputs, self.rows.select_BT), self.rows.targets_N, temperature)

    def sums(self, x_N: Tensor) -> Tensor:
        """Sums over each episode's tokens, (B,); summed over padded rows, so that equal terms give equal sums."""
        table_BR = torch.zeros(self.mask_BR.shape, device=x_N.device, dtype=x_N.dtype)
        return table_BR.masked_scatter(self.mask_BR, x_N).sum(1)

    def first(self, x_N: Tensor) -> Tensor:
        """The entry of each episode's first token, (B,): of what is equal for all of an answer's tokens."""
        lengths_B = self.mask_BR.sum(1)
        return x_N[lengths_B.cumsum(0) - lengths_B]


def minibatch_of(
    rollouts: Rollouts, experience: Experience, episodes: Sequence[int], device: torch.device
) -> Minibatch:
    """Some of a step's episodes, in their order."""
    rows = list(episodes)
    mask_BR, readings = rollouts.mask_BR[rows], experience.readings

    def flat(table_BR: Tensor) -> Tensor:
        return table_BR[rows][mask_BR]

    return Minibatch(
        rows=rollouts.rows(rows, device),
        mask_BR=mask_BR,
        logprobs_N=flat(readings.logprobs_BR),
        ref_logprobs_N=flat(readings.ref_logprobs_BR),
        values_N=flat(experience.values_BR),
        advantages_N=flat(experience.advantages_BR),
        returns_N=flat(experience.returns_BR),
        weights_N=None if experience.weights_BR is None else flat(experience.weights_BR),
    )


def rewards(
    readings: Readings,
    rollouts: Rollouts,
    kl_coef: float,
    missing_eos_penalty: float,
    score_clip: float | None,
) -> Tensor:
    """rewards_BR: the score (clipped, then penalised where the answer never ended) at the last token, KL's at each."""
    scores_B = readings.scores_B if score_clip is None else clip_scores(readings.scores_B, score_clip)
    scores_B = penalise_unfinished(scores_B, rollouts.finished_B, missing_eos_penalty)
    return token_rewards(scores_B, readings.logprobs_BR, readings.ref_logprobs_BR, rollouts.mask_BR, kl_coef)


def over_tokens(answers_B: Tensor, mask_BR: Tensor) -> Tensor:
    """(B, R): an answer's number at each of its tokens, 0 on padding."""
    return torch.where(mask_BR, answers_B.unsqueeze(1), 0.0)


def share_answers(
    accelerator: Accelerator, prompts: list[Encoded], mine: Sequence[int], answers: Sequence[Answer], longest: int
) -> Rollouts:
    """Every process's answers (`mine` are the episodes that this one sampled) as one `Rollouts` on all of them."""
    n = len(prompts)
    tokens_BR = torch.zeros(n, longest, dtype=torch.long)
    logprobs_BR = torch.zeros(n, longest, dtype=torch.float32)
    facts_B2 = torch.zeros(n, 2, dtype=torch.long)
    for index, answer in zip(mine, answers, strict=True):
        count = len(answer.tokens)
        tokens_BR[index, :count] = torch.tensor(answer.tokens)
        logprobs_BR[index, :count] = torch.tensor(answer.logprobs)
        facts_B2[index] = torch.tensor([count, answer.finished])
    tokens_BR, logprobs_BR, facts_B2 = (everyones(accelerator, part) for part in (tokens_BR, logprobs_BR, facts_B2))
    counts_B = facts_B2[:, 0]
    width = int(counts_B.max())
    mask_BR = torch.arange(width, device=accelerator.device).unsqueeze(0) < counts_B.unsqueeze(1)
    responses = [row[:count] for row, count in zip(tokens_BR.tolist(), counts_B.tolist(), strict=True)]
    return Rollouts(prompts, responses, facts_B2[:, 1].bool(), logprobs_BR[:, :width], mask_BR)


def everyones(accelerator: Accelerator, part: Tensor) -> Tensor:
    """Rows filled by different processes (zero elsewhere) as one tensor on all; exact, since x + 0 = x."""
    part = part.to(accelerator.device)
    return accelerator.reduce(part, reduction="sum") if accelerator.num_processes > 1 else part


@torch.no_grad()
def read(
    accelerator: Accelerator,
    policy: nn.Module,
    reference: tuple[nn.Module, Callable[[], AbstractContextManager[Any]]],
    value: nn.Module | None,
    scorer: Scorer,
    rollouts: Rollouts,
    groups: Sequence[Sequence[int]],
    temperature: float,
) -> Readings:
    """What the models say of all episodes.

    Args:
        reference: a module, and a context in which it is the reference (adapters off).
        groups: this process's micro-batches; an empty one costs a forward pass and gives nothing.
        temperature: of sampling; log-probabilities and entropies are those of the distribution sampled from.
    """
    mask_BR, device = rollouts.mask_BR, accelerator.device
    names = ("logprobs_BR", "ref_logprobs_BR", "values_BR", "entropy_BR")
    tables = {name: torch.zeros(mask_BR.shape, device=mask_BR.device) for name in names}
    scores_B = torch.zeros(len(mask_BR), device=mask_BR.device)
    for group in groups:
        rows = rollouts.rows(group or [0], device)
        logits_NV = policy(rows.inputs, rows.select_BT)
        logprobs_N = selected_logprobs(logits_NV, rows.targets_N, temperature)
        entropy_N = entropy(logits_NV, temperature)
        with reference[1]():
            ref_logits_NV = reference[0](rows.inputs, rows.select_BT)
        ref_logprobs_N = selected_logprobs(ref_logits_NV, rows.targets_N, temperature)
        values_N = torch.zeros_like(logprobs_N) if value is None else value(rows.inputs, rows.select_BT)
        if not group:
            continue
        episodes = torch.tensor(group, device=mask_BR.device)
        # Row-major order of the selected positions follows the group's order.
        for name, flat_N in zip(names, (logprobs_N, ref_logprobs_N, values_N, entropy_N), strict=True):
            block_BR = torch.zeros(len(group), mask_BR.shape[1], device=mask_BR.device)
            block_BR[mask_BR[episodes]] = flat_N
            tables[name][episodes] = block_BR
        scores_B[episodes] = scorer(group, rows.inputs, rows.last_BT)
    shared = {name: everyones(accelerator, part) for name, part in {**tables, "scores_B": scores_B}.items()}
    return Readings(**shared)
