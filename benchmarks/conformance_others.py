"""tests/conformance/vectors.json put to the pure functions of torchtune and of TRL's last PPO, as one table each.

    python benchmarks/conformance_others.py

Runs the one of the two that is installed, without gptlife. docs/conformance.md has the results and what they mean. A
detail whose formula is inside a trainer's method, where it can't be called, is "not available". Where a function leaves
a part to its caller (zeros in padding, logits divided by the temperature), the adapter does that part as the project's
own PPO does it, and says so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFORMANCE = Path(__file__).resolve().parents[1] / "tests" / "conformance"
sys.path.insert(0, str(CONFORMANCE))  # compare.py: plain Python
from compare import differences  # noqa: E402

Inputs = dict[str, Any]
Functions = dict[str, Callable[[Inputs], dict[str, Any]]]


def table(inputs: Inputs, *names: str) -> list[Tensor]:
    """Tables of numbers as float64, masks as bool."""
    return [torch.tensor(inputs[n], dtype=torch.bool if n == "mask" else torch.float64) for n in names]


def last_places(mask: Tensor) -> Tensor:
    """Index of each row's last real token."""
    return mask.sum(1) - 1


def torchtune() -> Functions:
    """`torchtune.rlhf`, its PPO loss, and the helpers that its PPO recipe calls beside them."""
    from torchtune import generation, rlhf
    from torchtune.rlhf.loss import PPOLoss
    from torchtune.training.pooling import get_unmasked_sequence_lengths

    def truncated(tokens: Any, eos: int, pad: int) -> Tensor:
        """True in padding."""
        return rlhf.truncate_sequence_at_first_stop_token(torch.tensor(tokens), torch.tensor([eos]), pad)[0]

    def missing_eos(x: Inputs) -> dict[str, Any]:
        padding = truncated(x["tokens"], x["eos"], 1)
        (scores,) = table(x, "scores")
        # The recipe: scores[penalised] = reward_penalty.
        penalised = rlhf.get_reward_penalty_mask(padding, get_unmasked_sequence_lengths(padding))
        scores[penalised] = -x["penalty"]
        return {"result": scores}

    def score_places(x: Inputs) -> dict[str, Any]:
        padding = truncated([row[x["prompt"] :] for row in x["tokens"]], x["eos"], x["pad"])
        return {"result": get_unmasked_sequence_lengths(padding) + x["prompt"]}

    def response_places(x: Inputs) -> dict[str, Any]:
        places = torch.arange(x["prompt"] + x["response"]).view(1, -1, 1)
        return {"result": rlhf.truncate_sequence_for_logprobs(places, x["prompt"]).flatten()}

    def rewards(x: Inputs) -> tuple[Tensor, ...]:
        scores = x.get("scores", [0.0] * len(x["mask"]))
        logprobs, ref, mask = table(x, "logprobs", "ref_logprobs", "mask")
        scores = torch.tensor(scores, dtype=torch.float64)
        return rlhf.get_rewards_ppo(scores, logprobs, ref, x.get("kl_coef", 0.0), last_places(mask))

    def gae(x: Inputs) -> dict[str, Any]:
        r, v, mask = table(x, "rewards", "values", "mask")
        # Zeros in padding are the caller's part; the advantages come out whitened, so they are taken from the returns.
        _, returns = rlhf.estimate_advantages(v * mask, r * mask, x["gamma"], x["lam"], masks=mask)
        return {"advantages": returns - v, "returns": returns}

    def policy_loss(x: Inputs) -> dict[str, Any]:
        new, old, advantages, mask = table(x, "logprobs", "old_logprobs", "advantages", "mask")
        new.requires_grad_()
        zero = torch.zeros_like(old)
        loss = PPOLoss(x["clip_range"], 0.2, 0.0)(old, new, advantages, zero, zero, zero, mask, mask)
        (gradient,) = torch.autograd.grad(loss[0], new)
        return {"loss": loss[1], "ratio": loss[3], "clipfrac": loss[4], "gradient": gradient}

    def value_loss(x: Inputs) -> dict[str, Any]:
        values, old, returns, mask = table(x, "values", "old_values", "returns", "mask")
        values.requires_grad_()
        zero = torch.zeros_like(old)
        loss = PPOLoss(0.2, x["clip_range"], 1.0)(zero, zero, zero, old, values, returns, mask, mask)
        (gradient,) = torch.autograd.grad(loss[0], values)
        return {"loss": loss[2], "gradient": gradient}

    return {
        "position_ids": lambda x: {"result": generation.get_position_ids_from_padding_mask(torch.tensor(x["mask"]))},
        "response_mask": lambda x: {"result": (~truncated(x["tokens"], x["eos"], x["pad"])).int()},
        "missing_eos_penalty": missing_eos,
        "score_places": score_places,
        "response_places": response_places,
        "token_logprobs": lambda x: {
            "result": rlhf.logits_to_logprobs(*table(x, "logits"), torch.tensor(x["tokens"]), x["temperature"])
        },
        "kl": lambda x: {"result": rewards(x)[1]} if x["estimator"] == "k1" else {},
        "token_rewards": lambda x: {"result": rewards(x)[0]},
        "gae": gae,
        "whiten": lambda x: {"result": rlhf.whiten(*table(x, "values", "mask"), x["shift_mean"])},
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "token_mean": lambda x: {"result": rlhf.masked_mean(*table(x, "values", "mask"))},
    }


def trl() -> Functions:
    """The helpers of `trl.experimental.ppo` (1.12 is the last release that has it) and of `trl.trainer.utils`."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.ppo import ppo_trainer
    from trl.experimental.utils import first_true_indices, get_reward
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    class Recorder(torch.nn.Module):
        """A stand-in for a model; keeps the arguments of its calls."""

        base_model_prefix = "trunk"

        def trunk(self, **arguments: Any) -> Any:
            self.seen = arguments
            hidden = arguments["input_ids"].unsqueeze(-1).double()
            return type("Output", (), {"hidden_states": [hidden], "logits": hidden})()

        def score(self, hidden: Tensor) -> Tensor:
            return hidden

        forward = trunk

    def position_ids(x: Inputs) -> dict[str, Any]:
        model = Recorder()
        ppo_trainer.forward(model, torch.tensor(x["mask"]) * 5, 0)
        return {"result": model.seen["position_ids"]}

    def response_mask(x: Inputs) -> dict[str, Any]:
        cut = ppo_trainer.truncate_response(x["eos"], x["pad"], torch.tensor(x["tokens"]))
        # The two lines of PPOTrainer.train that make the mask of it.
        last = first_true_indices(cut == x["pad"]) - 1
        return {"result": (torch.arange(cut.shape[1]) <= last.unsqueeze(1)).int()}

    def at(x: Inputs) -> Tensor:
        # The trainer divides logits by temperature + 1e-7 before it calls anything.
        return table(x, "logits")[0] / (x["temperature"] + 1e-7)

    return {
        "position_ids": position_ids,
        "response_mask": response_mask,
        "score_places": lambda x: {
            "result": get_reward(Recorder(), torch.tensor(x["tokens"]), x["pad"], x["prompt"])[2]
        },
        "token_logprobs": lambda x: {"result": selective_log_softmax(at(x), torch.tensor(x["tokens"]))},
        "entropy": lambda x: {"result": entropy_from_logits(at(x))},
        "whiten": lambda x: {"result": ppo_trainer.masked_whiten(*table(x, "values", "mask"), x["shift_mean"])},
        "token_mean": lambda x: {"result": ppo_trainer.masked_mean(*table(x, "values", "mask"))},
    }


def verdicts(vector: dict[str, Any], functions: Functions) -> list[str]:
    """A word for each result of a vector: passed, the name of the known mistake that it equals, or differs."""
    function = functions.get(vector["function"])
    found = function(vector["inputs"]) if function else {}
    said = []
    for key in vector["expected"]:
        if key not in found:
            continue
        mark = f" ({key})" if key != "result" else ""
        same = [
            name
            for name, expected in {"passed": vector["expected"], **values_of(vector)}.items()
            if not differences(found[key], expected[key], vector["tolerance"])
        ]
        said.append("passed" if "passed" in same else f"{same[0] if same else 'differs'}{mark}")
    return said


def values_of(vector: dict[str, Any]) -> dict[str, Any]:
    """The known mistakes' values by name."""
    return {name: known["value"] for name, known in vector["broken"].items()}


def report(name: str, functions: Functions, vectors: list[dict[str, Any]]) -> None:
    """A table of one project: a line a detail."""
    print(f"\n{name} {importlib.metadata.version(name)}, torch {torch.__version__}\n\n| detail | result |\n|---|---|")
    details: dict[str, list[str]] = {}
    for vector in vectors:
        details.setdefault(vector["detail"], []).extend(verdicts(vector, functions))
    for detail, said in details.items():
        wrong = sorted({word for word in said if word != "passed"})
        passed = f"passed ({len(said)})" if said else "not available"
        counted = f"{said.count('passed')} of {len(said)} passed; " if wrong else passed
        print(f"| {detail} | {counted}{', '.join(wrong)} |")


def padding_of_nan(name: str, mean: Callable[[Tensor, Tensor], Tensor]) -> None:
    """What JSON can't hold: a NaN in padding, that must not be looked at."""
    found = float(mean(torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]])))
    print(f"\n{name}: mean of 1 and a NaN in padding: {found}")


def main() -> None:
    """Whatever is installed."""
    vectors = json.loads((CONFORMANCE / "vectors.json").read_text(encoding="utf-8"))["vectors"]
    if importlib.util.find_spec("torchtune"):
        from torchtune import rlhf

        report("torchtune", torchtune(), vectors)
        padding_of_nan("torchtune.rlhf.masked_mean", rlhf.masked_mean)
    if importlib.util.find_spec("trl") and importlib.util.find_spec("trl.experimental.ppo"):
        report("trl", trl(), vectors)
        from trl.experimental.ppo import ppo_trainer

        padding_of_nan("trl.experimental.ppo.ppo_trainer.masked_mean", ppo_trainer.masked_mean)


if __name__ == "__main__":
    main()
