"""How vectors.json is put to gptlife: for each function name, inputs of a vector -> our results.

This is the example for another implementation: benchmarks/conformance_others.py has those of torchtune and TRL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import shipped
import torch
from compare import joined
from torch import Tensor

from gptlife.data.tokens import Encoded
from gptlife.reward import kl
from gptlife.reward.advantage import gae, leave_one_out, token_rewards, whiten
from gptlife.reward.ensemble import EnsembleConfig, combine
from gptlife.reward.objective import entropy, policy_loss, selected_logprobs, value_loss
from gptlife.reward.ranking import normalisation, ranking_loss_flat
from gptlife.stages.generation.sampler import sample
from gptlife.stages.modeling.forward import last_positions
from gptlife.stages.rl import episodes
from gptlife.stages.rl.networks import Average
from gptlife.stages.training.config import TrainingConfig
from gptlife.stages.training.setup import adamw

Inputs = dict[str, Any]
Results = dict[str, Any]


def table(inputs: Inputs, *names: str) -> list[Tensor]:
    """Tables of numbers as float64, masks as bool."""
    return [torch.tensor(inputs[n], dtype=torch.bool if n == "mask" else torch.float64) for n in names]


def with_gradient(loss: Callable[..., Any], new_BR: Tensor, mask_BR: Tensor, *rest: Any) -> tuple[Any, Tensor]:
    """The terms of a loss on flat tokens, and the gradient of its mean by the table they come from."""
    new_BR.requires_grad_()
    terms = loss(new_BR[mask_BR], *rest)
    (gradient,) = torch.autograd.grad(terms.loss_sum / shipped.denominator(mask_BR), new_BR)
    return terms, gradient


def of_policy_loss(inputs: Inputs) -> Results:
    """A minibatch of PPO; its sums become means over the real tokens."""
    new_BR, old_BR, advantages_BR, mask_BR = table(inputs, "logprobs", "old_logprobs", "advantages", "mask")
    batch = shipped.minibatch(mask_BR, logprobs_BR=old_BR, advantages_BR=advantages_BR)
    old, clip = (batch.logprobs_N, batch.advantages_N), inputs["clip_range"]
    terms, gradient = with_gradient(policy_loss, new_BR, mask_BR, *old, clip)
    sums = {"loss": terms.loss_sum, "clipfrac": terms.clipfrac_sum, "approx_kl": terms.approx_kl_sum}
    means = {name: total / terms.n for name, total in {**sums, "ratio": terms.ratio_sum}.items()}
    return {**means, "gradient": gradient}


def of_value_loss(inputs: Inputs) -> Results:
    """A minibatch of PPO; its sums become means over the real tokens."""
    new_BR, old_BR, returns_BR, mask_BR = table(inputs, "values", "old_values", "returns", "mask")
    batch = shipped.minibatch(mask_BR, values_BR=old_BR, returns_BR=returns_BR)
    old, clip = (batch.values_N, batch.returns_N), inputs["clip_range"]
    terms, gradient = with_gradient(value_loss, new_BR, mask_BR, *old, clip)
    return {"loss": terms.loss_sum / terms.n, "clipfrac": terms.clipfrac_sum / terms.n, "gradient": gradient}


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
    prompts = [Encoded.prompt([5] * sum(row)) for row in inputs["mask"]]
    sample(model, prompts, max_new_tokens=1, temperature=1.0, eos=0, seed="")
    # The sampler decodes short prompts first.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return {"result": [seen[0][order.index(row)].tolist() for row in range(len(prompts))]}


def of_response_places(inputs: Inputs) -> Results:
    """The positions that are selected for a response's log-probabilities."""
    prompt, response = Encoded.prompt([5] * inputs["prompt"]), [6] * inputs["response"]
    rollouts = episodes.Rollouts(
        [prompt], [response], torch.ones(1), torch.zeros(1), torch.ones(1, len(response)).bool()
    )
    return {"result": rollouts.rows([0], shipped.CPU).select_BT[0].nonzero().flatten()}


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
    """Rewards of answers sampled from a model that would say these tokens; without KL their sum is the score."""
    (scores_B,) = table(inputs, "scores")
    rollouts = shipped.scripted_rollouts(inputs["tokens"], inputs["eos"])
    readings = shipped.readings_of(rollouts.mask_BR, scores_B=scores_B)
    return {"result": episodes.rewards(readings, rollouts, 0.1, inputs["penalty"], None).sum(1)}


def of_response_mask(inputs: Inputs) -> Results:
    """The mask of answers sampled from a model that would say these tokens, of whatever id the padding is."""
    return {"result": shipped.scripted_rollouts(inputs["tokens"], inputs["eos"]).mask_BR.int()}


def of_token_logprobs(inputs: Inputs) -> Results:
    """Positions one after the other, as a reader gives them."""
    tokens_BT = torch.tensor(inputs["tokens"])
    (logits_BTV,) = table(inputs, "logits")
    found_N = selected_logprobs(logits_BTV.flatten(0, 1), tokens_BT.flatten(), inputs["temperature"])
    return {"result": found_N.view(tokens_BT.shape)}


def of_entropy(inputs: Inputs) -> Results:
    """Positions one after the other, as a reader gives them."""
    (logits_BTV,) = table(inputs, "logits")
    return {"result": entropy(logits_BTV.flatten(0, 1), inputs["temperature"]).view(logits_BTV.shape[:2])}


def of_token_mean(inputs: Inputs) -> Results:
    """As a step logs its values."""
    values_BR, mask_BR = table(inputs, "values", "mask")
    return {"result": shipped.logged(mask_BR, values_BR=values_BR)["value_mean"]}


def of_explained_variance(inputs: Inputs) -> Results:
    """As a step logs it."""
    values_BR, returns_BR, mask_BR = table(inputs, "values", "returns", "mask")
    return {"result": shipped.logged(mask_BR, values_BR=values_BR, returns_BR=returns_BR)["var_explained"]}


def of_pair_accuracy(inputs: Inputs) -> Results:
    """Each pair is a ranking of two, as the reward model's log has them."""
    scores_N = torch.stack(table(inputs, "chosen", "rejected"), 1).flatten()
    place_N = torch.arange(len(scores_N))
    terms = ranking_loss_flat(scores_N, place_N % 2, place_N // 2)
    return {"result": terms.correct_pairs / terms.n_pairs}


def of_gae(inputs: Inputs) -> Results:
    """As it is."""
    found = gae(*table(inputs, "rewards", "values", "mask"), inputs["gamma"], inputs["lam"])
    return dict(zip(("advantages", "returns"), found, strict=True))


FUNCTIONS: dict[str, Callable[[Inputs], Results]] = {
    "position_ids": of_position_ids,
    "response_mask": of_response_mask,
    "missing_eos_penalty": of_missing_eos,
    "score_places": of_score_places,
    "response_places": of_response_places,
    "token_logprobs": of_token_logprobs,
    "entropy": of_entropy,
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
    "token_mean": of_token_mean,
    "explained_variance": of_explained_variance,
    "ranking_loss": of_ranking_loss,
    "pair_accuracy": of_pair_accuracy,
    "normalisation": lambda x: dict(
        zip(("gain", "bias"), normalisation(torch.tensor(x["scores"], dtype=torch.float64)), strict=True)
    ),
    "ensemble": lambda x: {
        "result": combine(*table(x, "scores"), EnsembleConfig(rule=x["rule"], coef=x.get("coef", 1.0)))
    },
    "ema": of_ema,
    "adam": of_adam,
}
