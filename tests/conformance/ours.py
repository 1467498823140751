"""How vectors.json is put to gptlife: for each function name, inputs of a vector -> our results.

This is the example for another implementation: benchmarks/conformance_others.py has those of torchtune and TRL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compare import joined
from torch import Tensor

from gptlife.reward import kl
from gptlife.reward.advantage import gae, leave_one_out
from gptlife.reward.ensemble import EnsembleConfig, combine
from gptlife.reward.logprobs import entropy, masked_mean, token_logprobs
from gptlife.reward.objective import explained_variance, policy_loss, value_loss
from gptlife.reward.ranking import normalisation, pair_accuracy, ranking_loss_flat
from gptlife.reward.shaping import finished, penalise_unfinished, response_mask, token_rewards, whiten
from gptlife.stages.generation.sampler import sample
from gptlife.stages.modeling.scorer import last_positions
from gptlife.stages.rl.episodes import Rollouts
from gptlife.stages.rl.networks import Average
from gptlife.stages.training.config import TrainingConfig
from gptlife.stages.training.setup import adamw

Inputs = dict[str, Any]
Results = dict[str, Any]


def table(inputs: Inputs, *names: str) -> list[Tensor]:
    """Tables of numbers as float64, masks as bool."""
    return [torch.tensor(inputs[n], dtype=torch.bool if n == "mask" else torch.float64) for n in names]


def with_gradient(loss: Callable[..., Any], first: Tensor, *rest: Any) -> tuple[Any, Tensor]:
    """The terms of a loss and the gradient, by its first argument, of its mean over real tokens."""
    first.requires_grad_()
    terms = loss(first, *rest)
    (gradient,) = torch.autograd.grad(terms.loss_sum / terms.n_tokens, first)
    return terms, gradient


def of_policy_loss(inputs: Inputs) -> Results:
    """Sums become means over the real tokens."""
    tables = table(inputs, "logprobs", "old_logprobs", "advantages", "mask")
    terms, gradient = with_gradient(policy_loss, *tables, inputs["clip_range"])
    sums = {"loss": terms.loss_sum, "clipfrac": terms.clipfrac_sum, "approx_kl": terms.approx_kl_sum}
    means = {name: total / terms.n_tokens for name, total in {**sums, "ratio": terms.ratio_sum}.items()}
    return {**means, "gradient": gradient}


def of_value_loss(inputs: Inputs) -> Results:
    """Sums become means over the real tokens."""
    tables = table(inputs, "values", "old_values", "returns", "mask")
    terms, gradient = with_gradient(value_loss, *tables, inputs["clip_range"])
    return {"loss": terms.loss_sum / terms.n_tokens, "clipfrac": terms.clipfrac_sum / terms.n_tokens,
            "gradient": gradient}  # fmt: skip


def of_ranking_loss(inputs: Inputs) -> Results:
    """All prompts' answers flat, told apart by group."""
    sizes = [len(row) for row in inputs["scores"]]
    scores_N = torch.tensor(joined(inputs["scores"]), dtype=torch.float64, requires_grad=True)
    group_N = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    terms = ranking_loss_flat(scores_N, torch.tensor(joined(inputs["ranks"])), group_N)
    loss = terms.loss_sum / terms.n_groups
    (gradient_N,) = torch.autograd.grad(loss, scores_N)
    return {"loss": loss, "gradient": [part.tolist() for part in gradient_N.split(sizes)]}


def of_position_ids(inputs: Inputs) -> Results:
    """Those that the sampler gives to the model with its first step; the prompts have as many tokens as the mask."""
    from transformers import AutoConfig, AutoModelForCausalLM

    seen: list[Tensor] = []
    config = AutoConfig.for_model("gpt2", vocab_size=9, n_embd=4, n_layer=1, n_head=1, n_positions=16)
    model = AutoModelForCausalLM.from_config(config)
    model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    prompts = [[5] * sum(row) for row in inputs["mask"]]
    sample(model, prompts, max_new_tokens=1, temperature=1.0, eos=0, seed="")
    # The sampler decodes short prompts first.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return {"result": [seen[0][order.index(row)].tolist() for row in range(len(prompts))]}


def of_response_places(inputs: Inputs) -> Results:
    """The positions that are selected for a response's log-probabilities."""
    prompt, response = [5] * inputs["prompt"], [6] * inputs["response"]
    rollouts = Rollouts([prompt], [response], torch.ones(1), torch.zeros(1), torch.ones(1, len(response)).bool())
    _, select_BT, _, _ = rollouts.batch([0], torch.device("cpu"))
    return {"result": select_BT[0].nonzero().flatten()}


def of_score_places(inputs: Inputs) -> Results:
    """Rows come with their lengths: padding is never told by its id."""
    rows = [tokens[:n] for tokens, n in zip(inputs["tokens"], inputs["lengths"], strict=True)]
    return {"result": last_positions(rows, torch.device("cpu")).int().argmax(1)}


def of_ema(inputs: Inputs) -> Results:
    """One weight that is set by hand between updates."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, inputs["weights"][0])
    average = Average(model, inputs["decay"])
    for weight in inputs["weights"][1:]:
        torch.nn.init.constant_(model.weight, weight)
        average.update(model)
    return {"result": float(average.weights["weight"])}


def of_adam(inputs: Inputs) -> Results:
    """The optimizer that every stage has, on one weight that begins at 0."""
    settings = {"beta1": inputs["beta1"], "beta2": inputs["beta2"], "adam_eps": inputs["eps"], "weight_decay": 0.0}
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    optimizer = adamw(model, TrainingConfig(learning_rate=inputs["learning_rate"], **settings))
    for gradient in inputs["gradients"]:
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
    return {"result": float(model.weight.detach())}


def of_missing_eos(inputs: Inputs) -> Results:
    """Whether an end-of-text is there, and the penalty where it isn't."""
    (scores_B,) = table(inputs, "scores")
    done_B = finished(torch.tensor(inputs["tokens"]), inputs["eos"])
    return {"result": penalise_unfinished(scores_B, done_B, inputs["penalty"])}


def of_gae(inputs: Inputs) -> Results:
    """As it is."""
    found = gae(*table(inputs, "rewards", "values", "mask"), inputs["gamma"], inputs["lam"])
    return dict(zip(("advantages", "returns"), found, strict=True))


FUNCTIONS: dict[str, Callable[[Inputs], Results]] = {
    "position_ids": of_position_ids,
    "response_mask": lambda x: {"result": response_mask(torch.tensor(x["tokens"]), x["eos"]).int()},
    "missing_eos_penalty": of_missing_eos,
    "score_places": of_score_places,
    "response_places": of_response_places,
    "token_logprobs": lambda x: {
        "result": token_logprobs(*table(x, "logits"), torch.tensor(x["tokens"]), x["temperature"])
    },
    "entropy": lambda x: {"result": entropy(*table(x, "logits"), x["temperature"])},
    "kl": lambda x: {"result": getattr(kl, x["estimator"])(*table(x, "logprobs", "ref_logprobs"))},
    "token_rewards": lambda x: {
        "result": token_rewards(*table(x, "scores", "logprobs", "ref_logprobs", "mask"), x["kl_coef"])
    },
    "adapt_kl": lambda x: {"result": kl.adapt(x["kl_coef"], x["kl"], x["target"], x["episodes"], x["horizon"])},
    "gae": of_gae,
    "leave_one_out": lambda x: {"result": leave_one_out(*table(x, "returns"), x["k"])},
    "whiten": lambda x: {"result": whiten(*table(x, "values", "mask"), x["shift_mean"])},
    "policy_loss": of_policy_loss,
    "value_loss": of_value_loss,
    "token_mean": lambda x: {"result": masked_mean(*table(x, "values", "mask"))},
    "explained_variance": lambda x: {"result": explained_variance(*table(x, "values", "returns", "mask"))},
    "ranking_loss": of_ranking_loss,
    "pair_accuracy": lambda x: {"result": pair_accuracy(*table(x, "chosen", "rejected"))},
    "normalisation": lambda x: dict(
        zip(("gain", "bias"), normalisation(torch.tensor(x["scores"], dtype=torch.float64)), strict=True)
    ),
    "ensemble": lambda x: {
        "result": combine(*table(x, "scores"), EnsembleConfig(rule=x["rule"], coef=x.get("coef", 1.0)))
    },
    "ema": of_ema,
    "adam": of_adam,
}
