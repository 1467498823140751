"""A step's episodes: sampled, scored by every model, shaped into rewards and advantages.

An episode is one prompt and one answer (a bandit: Ouyang et al. 2022, section 3.5). All processes end with the whole
batch in their hands, so shaping, whitening and minibatches don't depend on how many there are; only the forward passes
are shared out. The policy's log-probabilities are read by the same forward pass, in the same micro-batches, as the
update will use: the first minibatch's ratio is then 1 exactly, and KL to an equal reference 0 exactly. Those returned
by the sampler are kept to measure how far decoding and training disagree.

Legend: B episodes, R response tokens (padded on the right), T prompt and response tokens, N response tokens of some
episodes (row-major, no padding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gptlife.reward.advantage import gae, leave_one_out
from gptlife.reward.logprobs import entropy, selected_logprobs
from gptlife.reward.shaping import clip_scores, penalise_unfinished, token_rewards, whiten
from gptlife.stages.generation.sampler import Answer
from gptlife.stages.modeling.forward import pad_right
from gptlife.stages.modeling.scorer import last_positions


@dataclass
class Rollouts:
    """What was sampled, the same on every process."""

    prompts: list[list[int]]
    responses: list[list[int]]
    finished_B: Tensor
    sampled_logprobs_BR: Tensor
    mask_BR: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and response."""
        return [len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True)]

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(tokens_BT, select_BT, last_BT, targets_N) of some episodes.

        `select` marks the positions whose next token is one of the response, `targets` are those tokens.
        """
        rows = [self.prompts[index] + self.responses[index] for index in indices]
        tokens_BT = pad_right(rows, 0, device)
        place_T = torch.arange(tokens_BT.shape[1], device=device)
        starts_B = torch.tensor([len(self.prompts[index]) - 1 for index in indices], device=device).unsqueeze(1)
        ends_B = torch.tensor([len(row) - 1 for row in rows], device=device).unsqueeze(1)
        select_BT = (place_T >= starts_B) & (place_T < ends_B)
        targets_N = tokens_BT.roll(-1, dims=1)[select_BT]
        return tokens_BT, select_BT, last_positions(rows, device), targets_N


@dataclass
class Experience:
    """Rollouts as the models see them and the objective needs them, the same on every process."""

    logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    values_BR: Tensor
    """The baseline: the value network's, or what the prompt's other answers got."""
    entropy_BR: Tensor
    scores_B: Tensor
    """As the reward model gave them: not clipped, no penalty."""
    rewards_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor


@dataclass
class Picked:
    """Some episodes as an update reads them; R as wide as in the rollouts."""

    tokens_BT: Tensor
    select_BT: Tensor
    targets_N: Tensor
    mask_BR: Tensor
    logprobs_BR: Tensor
    values_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor

    def of_tokens(self, table_BR: Tensor) -> Tensor:
        """(N,): the entries of a table that stand for real tokens."""
        return table_BR[self.mask_BR]

    def as_rows(self, flat_N: Tensor) -> Tensor:
        """The table back from `of_tokens`, 0 on padding; gradients pass."""
        return torch.zeros(self.mask_BR.shape, device=flat_N.device).masked_scatter(self.mask_BR, flat_N)


def pick(rollouts: Rollouts, experience: Experience, indices: Sequence[int], device: torch.device) -> Picked:
    """Some of a step's episodes."""
    rows = list(indices)
    tokens_BT, select_BT, _, targets_N = rollouts.batch(rows, device)
    return Picked(
        tokens_BT,
        select_BT,
        targets_N,
        rollouts.mask_BR[rows],
        experience.logprobs_BR[rows],
        experience.values_BR[rows],
        experience.advantages_BR[rows],
        experience.returns_BR[rows],
    )


def share_answers(
    accelerator: Accelerator, prompts: list[list[int]], mine: Sequence[int], answers: Sequence[Answer], longest: int
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


Scorer = Callable[[Sequence[int], Tensor, Tensor], Tensor]


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
) -> dict[str, Tensor]:
    """Log-probabilities, reference log-probabilities, values, entropies (each BR) and scores (B) of all episodes.

    `groups` are this process's micro-batches (an empty one costs a forward pass and gives nothing); `reference` is a
    module and a context in which it is the reference (adapters off). Without a value network the values are 0.
    """
    mask_BR = rollouts.mask_BR
    found = {
        name: torch.zeros(mask_BR.shape, device=mask_BR.device)
        for name in ("logprobs", "ref_logprobs", "values", "entropy")
    }
    scores_B = torch.zeros(len(mask_BR), device=mask_BR.device)
    for group in groups:
        indices = group or [0]
        tokens_BT, select_BT, last_BT, targets_N = rollouts.batch(indices, accelerator.device)
        logits_NV = policy(tokens_BT, select_BT)
        logprobs_N = selected_logprobs(logits_NV, targets_N, temperature)
        entropy_N = entropy(logits_NV.unsqueeze(0), temperature).squeeze(0)
        with reference[1]():
            ref_logprobs_N = selected_logprobs(reference[0](tokens_BT, select_BT), targets_N, temperature)
        values_N = value(tokens_BT, select_BT) if value is not None else torch.zeros_like(logprobs_N)
        if not group:
            continue
        rows = torch.tensor(group, device=mask_BR.device)
        # Row-major order of the selected positions follows the group's order, so fill row by row.
        for name, flat_N in zip(found, (logprobs_N, ref_logprobs_N, values_N, entropy_N), strict=True):
            block = torch.zeros(len(group), mask_BR.shape[1], device=mask_BR.device)
            block[mask_BR[rows]] = flat_N
            found[name][rows] = block
        scores_B[rows] = scorer(group, tokens_BT, last_BT)
    return {name: everyones(accelerator, part) for name, part in {**found, "scores": scores_B}.items()}


def shape(
    found: dict[str, Tensor],
    rollouts: Rollouts,
    *,
    kl_coef: float,
    gamma: float,
    lam: float,
    missing_eos_penalty: float,
    score_clip: float | None,
    whiten_rewards: bool,
    whiten_advantages: bool,
) -> Experience:
    """PPO's: rewards a token, advantages and returns by GAE."""
    mask_BR = rollouts.mask_BR
    rewards_BR = _rewards(found, rollouts, kl_coef, missing_eos_penalty, score_clip)
    if whiten_rewards:
        rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
    advantages_BR, returns_BR = gae(rewards_BR, found["values"], mask_BR, gamma, lam)
    if whiten_advantages:
        advantages_BR = whiten(advantages_BR, mask_BR)
    return _experience(found, rewards_BR, found["values"], advantages_BR, returns_BR)


def shape_answers(
    found: dict[str, Tensor],
    rollouts: Rollouts,
    *,
    answers_per_prompt: int,
    kl_coef: float,
    missing_eos_penalty: float,
    score_clip: float | None,
) -> Experience:
    """RLOO's: an answer's return is the sum of its rewards, its value the mean return of the prompt's other answers.

    A prompt's answers stand together. Every token of an answer has the answer's return, value and advantage.
    """
    rewards_BR = _rewards(found, rollouts, kl_coef, missing_eos_penalty, score_clip)
    returns_B = rewards_BR.sum(1)
    advantages_B = leave_one_out(returns_B, answers_per_prompt)
    advantages_BR, returns_BR, values_BR = (
        torch.where(rollouts.mask_BR, answer_B.unsqueeze(1), 0.0)
        for answer_B in (advantages_B, returns_B, returns_B - advantages_B)
    )
    return _experience(found, rewards_BR, values_BR, advantages_BR, returns_BR)


def _rewards(
    found: dict[str, Tensor],
    rollouts: Rollouts,
    kl_coef: float,
    missing_eos_penalty: float,
    score_clip: float | None,
) -> Tensor:
    """rewards_BR: the score (clipped, then penalised) at the last token, the price of KL at every one."""
    scores_B = found["scores"] if score_clip is None else clip_scores(found["scores"], score_clip)
    scores_B = penalise_unfinished(scores_B, rollouts.finished_B, missing_eos_penalty)
    return token_rewards(scores_B, found["logprobs"], found["ref_logprobs"], rollouts.mask_BR, kl_coef)


def _experience(
    found: dict[str, Tensor], rewards_BR: Tensor, values_BR: Tensor, advantages_BR: Tensor, returns_BR: Tensor
) -> Experience:
    return Experience(
        logprobs_BR=found["logprobs"],
        ref_logprobs_BR=found["ref_logprobs"],
        values_BR=values_BR,
        entropy_BR=found["entropy"],
        scores_B=found["scores"],
        rewards_BR=rewards_BR,
        advantages_BR=advantages_BR,
        returns_BR=returns_BR,
    )
