"""A PPO step from its formulas, for test_training.py: plain transformers in float64, the oracles' lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loss_oracles
import oracles
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gptlife.data.tokens import Encoded
from gptlife.stages.generation import sampler

Weights = dict[str, Tensor]


class Sampled:
    """Prompts and answers of every step, as they leave the sampler."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[tuple[Encoded, sampler.Answer]]] = []
        decode_batch = sampler._decode

        def watched(model: Any, prompts: Any, *rest: Any) -> Any:
            answers = decode_batch(model, prompts, *rest)
            self.steps.append(list(zip(prompts, answers, strict=True)))
            return answers

        patch.setattr(sampler, "_decode", watched)


def by_brute_force(
    world: Any, policy: Path, value: Path, sampled: list[tuple[Encoded, sampler.Answer]], **changes: Any
) -> dict[str, Any]:
    """PPO's step from its formulas: rows alone in float64, the oracles' lists, gradients by automatic differentiation.

    `policy` and `value` are what they were at the step's beginning, where the ratio is 1.
    """
    options = {"temperature": 0.8, "kl_coef": 0.3, "lam": 0.95, "penalty": 0.5, **changes}
    actor, reference = (AutoModelForCausalLM.from_pretrained(str(p)).double().eval() for p in (policy, world.policy))
    critic, judge = (
        AutoModelForSequenceClassification.from_pretrained(str(p)).double().eval() for p in (value, world.reward)
    )
    logprobs, refs, values, scores = [], [], [], []
    for prompt, answer in sampled:
        ids = torch.tensor([prompt.followed_by(answer.tokens).tokens])
        places = oracles.response_places(len(prompt), len(answer.tokens))
        for model, kept in ((actor, logprobs), (reference, refs)):
            table = (model(input_ids=ids).logits[0, places] / options["temperature"]).log_softmax(-1)
            kept.append(table.gather(-1, torch.tensor(answer.tokens).unsqueeze(-1)).squeeze(-1))
        values.append(critic.score(critic.transformer(ids).last_hidden_state)[0, places, 0])
        scores.append(judge.score(judge.transformer(ids).last_hidden_state)[0, -1, 0].item())

    width = max(len(answer.tokens) for _, answer in sampled)
    tokens = [answer.tokens for _, answer in sampled]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in tokens]
    wide = [[[*x.tolist(), *[99.0] * (width - len(x))] for x in table] for table in (logprobs, refs, values)]
    penalised = oracles.penalised(scores, tokens, 0, options["penalty"])
    rewards = oracles.token_rewards(penalised, wide[0], wide[1], mask, options["kl_coef"])
    found = oracles.gae(rewards, wide[2], mask, 1.0, options["lam"])  # type: ignore[arg-type]
    advantages = oracles.whiten(found["advantages"], mask, True)  # type: ignore[arg-type]

    flat_logprobs, flat_values = torch.cat(logprobs), torch.cat(values)
    weight, goal = (torch.tensor(oracles.real(x, mask)).double() for x in (advantages, found["returns"]))  # type: ignore[arg-type]
    policy_loss = -(weight * (flat_logprobs - flat_logprobs.detach()).exp()).mean()
    value_loss = 0.5 * (flat_values - goal).square().mean()
    kls = torch.stack([(p - q).sum() for p, q in zip(logprobs, refs, strict=True)])
    return {
        "policy": gradients(policy_loss, actor),
        "value": gradients(value_loss, critic),
        "metrics": {
            "kl": kls.mean().item(),
            "score": sum(scores) / len(scores),
            "policy_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "value_error": 2 * value_loss.item(),
            "ratio_mean": 1.0,
            "rlhf_reward": sum(oracles.real(rewards, mask)) / len(scores),  # type: ignore[arg-type]
            "eos_rate": sum(row[-1] == 0 for row in tokens) / len(tokens),
            "length": sum(map(len, tokens)) / len(tokens),
            "value_mean": sum(oracles.real(wide[2], mask)) / sum(map(sum, mask)),
            "return_mean": sum(oracles.real(found["returns"], mask)) / sum(map(sum, mask)),  # type: ignore[arg-type]
            "response_perplexity": float(torch.exp(-flat_logprobs.detach().mean())),
            "var_explained": loss_oracles.explained_variance(wide[2], found["returns"], mask),  # type: ignore[arg-type]
        },
    }


def gradients(loss: Tensor, model: Any) -> Weights:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}
