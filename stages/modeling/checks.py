"""Checks of a model before anything trains: it looks back only, and weights, config and tokenizer belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gptlife.data.errors import UserError


@torch.no_grad()
def check_causal(model: Any, place: str) -> None:
    """Check that what follows a token doesn't change its logits, as in an encoder (transformers loads those too).

    Args:
        place: where the model is from, for the error.

    Raises:
        UserError: when it does, or the logits are nan.
    """
    entries, training = model.get_input_embeddings().num_embeddings, model.training
    ids_BT = torch.arange(8, device=model.device).remainder(entries).repeat(2, 1)
    ids_BT[1, -1] = (ids_BT[0, -1] + 1) % entries
    logits_BTV = model.eval()(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    model.train(training)
    if bool(logits_BTV.isnan().any()):  # an entry that is masked out may be infinite
        raise UserError(f"{place}: its logits are nan; its weights are damaged, give others")
    one, other = logits_BTV[:, :-1]
    if not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
        raise UserError(
            f"{place}: {model.config.model_type} looks at the tokens that it is to predict; "
            "give a decoder (gpt2, llama, ...), or set is_decoder where it has that field"
        )


def check_not_a_scorer(model: Any, path: Path) -> None:
    """Check that a causal LM was not saved as a classifier: with tied embeddings no weight of it would be missing.

    Raises:
        UserError: when it was.
    """
    for name in model.config.architectures or ():
        if "Classification" in name:
            raise UserError(f"{path}: {name} gives scores and is no language model; give a policy (sft, ppo, ...)")


def check_weights(model: Any, report: Mapping[str, Any], path: Path, new: Sequence[str] = ()) -> None:
    """Check transformers' loading report: all weights are there (but those called `new`), and each has its shape.

    Raises:
        UserError: naming the first weight that is missing, has another shape, or belongs to a layer that the config
            leaves out.
    """
    if missing := sorted(set(report["missing_keys"]) - {*new}):
        what = f"{type(model).__name__} needs {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        raise UserError(f"{path}: {what}, and its weights have none; give a model of that kind, or all of its weights")
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{path}: {name} has shape {[*stored]}, its config wants {[*expected]}; give weights and config of one "
            "model"
        )
    names = model.state_dict().keys()
    for name in sorted(report["unexpected_keys"]):
        if re.sub(r"\.\d+\.", ".0.", name, count=1) in names:  # other names are another head's, or old buffers
            raise UserError(f"{path}: its config leaves {name} out, a layer that its weights have; fix config.json")


def check_vocabulary(model: Any, tokenizer: Any, path: Path) -> None:
    """Check that the model has an entry for every token of the tokenizer but PAD, which may be new.

    Raises:
        UserError: when it has fewer.
    """
    entries = model.get_input_embeddings().num_embeddings
    highest = max(number for number in tokenizer.get_vocab().values() if number != tokenizer.pad_token_id)
    if highest >= entries:
        raise UserError(
            f"{path}: its tokenizer has tokens up to number {highest}, its model {entries} entries: they don't belong "
            "together; give the model its own tokenizer"
        )
