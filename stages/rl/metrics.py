"""Metrics of an online step: its episodes, texts and updates (names after lm-human-preferences and TRL).

Legend: B episodes, R response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gptlife.reward import kl
from gptlife.reward.objective import explained_variance
from gptlife.stages.rl.episodes import Experience, Rollouts


def episode_metrics(
    rollouts: Rollouts, experience: Experience, kl_coef: float, answers_per_prompt: int
) -> dict[str, Any]:
    """What was sampled and what it is worth: means over episodes (kl in nats an episode) or tokens; JSON-able.

    `value_mean` and `var_explained` are those of the baseline: the value network's, or the other answers' mean.
    """
    mask_BR, n_tokens = rollouts.mask_BR, float(rollouts.mask_BR.sum())
    logratio_BR = (experience.logprobs_BR - experience.ref_logprobs_BR) * mask_BR
    k3_BR = kl.k3(experience.logprobs_BR, experience.ref_logprobs_BR) * mask_BR
    episode_kl = float(logratio_BR.sum(1).mean())
    score = float(experience.scores_B.mean())
    spread = (rollouts.sampled_logprobs_BR - experience.logprobs_BR).abs() * mask_BR
    return {
        "score": score,
        "score_se": standard_error(experience.scores_B, answers_per_prompt),
        "score_std": float(experience.scores_B.std(unbiased=False)),
        "kl": episode_kl,
        "kl_k3": float(k3_BR.sum(1).mean()),
        "non_score_reward": -kl_coef * episode_kl,
        "rlhf_reward": float(experience.rewards_BR.sum(1).mean()),
        "entropy": float((experience.entropy_BR * mask_BR).sum()) / n_tokens,
        "response_perplexity": float(torch.exp(-(experience.logprobs_BR * mask_BR).sum() / n_tokens)),
        "length": n_tokens / len(mask_BR),
        "eos_rate": float(rollouts.finished_B.float().mean()),
        "var_explained": _finite(explained_variance(experience.values_BR, experience.returns_BR, mask_BR)),
        "value_mean": float((experience.values_BR * mask_BR).sum()) / n_tokens,
        "return_mean": float((experience.returns_BR * mask_BR).sum()) / n_tokens,
        "sampling_mismatch": float(spread.max()),
    }


def standard_error(scores_B: Tensor, answers_per_prompt: int) -> float | None:
    """Of the mean over episodes, in units of the score; None for a single prompt.

    A prompt's answers are alike, so prompts count and not answers: sd of the prompts' means (divided by n - 1) / √n.
    """
    means_P = scores_B.double().view(-1, answers_per_prompt).mean(1)
    return float(means_P.std() / len(means_P) ** 0.5) if len(means_P) > 1 else None


def _finite(value: Tensor) -> float | None:
    """A number, or None where there is none (the returns are all equal)."""
    return float(value) if bool(torch.isfinite(value)) else None


def text_metrics(texts: Sequence[str]) -> dict[str, float]:
    """Share of distinct words and word pairs in a step's answers: both fall when the policy collapses."""
    found = {}
    for n in (1, 2):
        grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
        found[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    return found


def update_metrics(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the actions of all minibatches; `first_*` are the first minibatch's, which no update precedes.

    Actions (`n_actions` of an update) are tokens for PPO, whole answers for RLOO.
    """

    def mean(name: str, of: Sequence[dict[str, float]] = updates) -> float:
        return sum(update[name] for update in of) / sum(update["n_actions"] for update in of)

    def norm(name: str) -> float:
        return sum(update[name] for update in updates) / len(updates)

    found: dict[str, float] = {}
    if "value/loss" in updates[0]:
        found |= {
            "value_loss": mean("value/loss"),
            "value_error": mean("value/error_sum"),
            "value_clipfrac": mean("value/clipfrac_sum"),
            "value_grad_norm": norm("value_grad_norm"),
        }
    if "policy/loss" in updates[0]:
        ratio, first = mean("policy/ratio_sum"), updates[:1]
        found |= {
            "policy_loss": mean("policy/loss"),
            "approx_kl": mean("policy/approx_kl_sum"),
            "clipfrac": mean("policy/clipfrac_sum"),
            "ratio_mean": ratio,
            "ratio_var": max(0.0, mean("policy/ratio_sq_sum") - ratio**2),
            "policy_grad_norm": norm("policy_grad_norm"),
            "first_ratio": mean("policy/ratio_sum", first),
            "first_approx_kl": mean("policy/approx_kl_sum", first),
            "first_clipfrac": mean("policy/clipfrac_sum", first),
        }
    if "ptx_loss" in updates[0]:
        found["ptx_loss"] = norm("ptx_loss")
    return found
