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
    mask_BR, n_tokens, readings = rollouts.mask_BR, float(rollouts.mask_BR.sum()), experience.readings
    logratio_BR = kl.k1(readings.logprobs_BR, readings.ref_logprobs_BR) * mask_BR
    k3_BR = kl.k3(readings.logprobs_BR, readings.ref_logprobs_BR) * mask_BR
    episode_kl = float(logratio_BR.sum(1).mean())
    score = float(readings.scores_B.mean())
    spread = (rollouts.sampled_logprobs_BR - readings.logprobs_BR).abs() * mask_BR
    return {
        "score": score,
        "score_se": standard_error(readings.scores_B, answers_per_prompt),
        "score_std": float(readings.scores_B.std(unbiased=False)),
        "kl": episode_kl,
        "kl_k3": float(k3_BR.sum(1).mean()),
        "non_score_reward": -kl_coef * episode_kl,
        "rlhf_reward": float(experience.rewards_BR.sum(1).mean()),
        "entropy": float((readings.entropy_BR * mask_BR).sum()) / n_tokens,
        "response_perplexity": float(torch.exp(-(readings.logprobs_BR * mask_BR).sum() / n_tokens)),
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
    """Means over the entries of all minibatches; `first_*` are the first minibatch's, which no update precedes.

    A loss's entries are what its ratio is of: tokens for PPO, whole answers for RLOO. Every `<network>/<metric>_sum` of
    a loss becomes a metric: the policy's by its bare name, another network's as `<network>_<metric>`.
    """
    metrics: dict[str, float] = {}
    for network in dict.fromkeys(key.partition("/")[0] for update in updates for key in update if "/" in key):
        prefix = "" if network == "policy" else f"{network}_"
        learning = [update for update in updates if f"{network}/loss" in update]
        means = _means(learning, network)
        metrics[f"{network}_loss"] = _sum(learning, f"{network}/loss") / _sum(learning, "denominator")
        metrics |= {f"{prefix}{name}": mean for name, mean in means.items() if name not in ("ratio", "ratio_sq")}
        if "ratio" in means:
            metrics["ratio_mean"] = means["ratio"]
            metrics["ratio_var"] = max(0.0, means["ratio_sq"] - means["ratio"] ** 2)
        metrics[f"{network}_grad_norm"] = _sum(learning, f"{network}_grad_norm") / len(learning)
        if "ratio" in means:
            first = _means(learning[:1], network)
            metrics |= {f"first_{name}": first[name] for name in ("ratio", "approx_kl", "clipfrac") if name in first}
    if "ptx_loss" in updates[0]:
        metrics["ptx_loss"] = _sum(updates, "ptx_loss") / len(updates)
    return metrics


def _means(updates: Sequence[dict[str, float]], network: str) -> dict[str, float]:
    """By metric, the mean over all entries of some updates."""
    start, end = f"{network}/", "_sum"
    names = [key for key in updates[0] if key.startswith(start) and key.endswith(end)]
    n = _sum(updates, f"{network}/n")
    return {key.removeprefix(start).removesuffix(end): _sum(updates, key) / n for key in names}


def _sum(updates: Sequence[dict[str, float]], key: str) -> float:
    return sum(update[key] for update in updates)
