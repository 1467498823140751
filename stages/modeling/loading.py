"""Models as the stages use them: loading, saving, adapters.

An adopted model may have no PAD, or PAD = EOS (GPT-2, Llama 3), with which a model can't learn to stop and a score
isn't read at the end of the answer. `load_tokenizer` then adds a PAD of its own, `load_causal` and `load_scorer` add
the row for it, and both are saved with the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.data.tokens import PAD
from gptlife.reward.ensemble import EnsembleConfig
from gptlife.stages.modeling.forward import SelectedScores, unwrapped
from gptlife.stages.modeling.scorer import EnsembleScores
from gptlife.stages.runtime import trust

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, StrictDataclassError)
"""What transformers and its helpers raise over files that are not what they should be."""
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "classifier_dropout")
MEMBERS = "members"
"""Where a reward model's further members lie: `members/1`, `members/2`, ...; the first one is the output itself."""
DEFAULT_ROW = 128
"""Tokens of a row of text where a config leaves it open and the model's context allows."""


def load_tokenizer(path: Path) -> Any:
    """The tokenizer that travels with an artefact; with a PAD of its own, added where it is missing or equals EOS.

    Raises:
        UserError: when there is none, or it has no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust.trusted())
    except _UNREADABLE as error:
        raise trust.refusal(path, "tokenizer", error) from None
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # transformers makes up an empty one
        raise UserError(f"{path}: no tokenizer can be loaded (it has no vocabulary); put its tokenizer.json there")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: its tokenizer has no end-of-text token (eos_token); set one in tokenizer_config.json")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    return tokenizer


def load_causal(path: Path, **dropouts: float) -> Any:
    """A causal LM in fp32 with every dropout set to 0 but those given.

    Raises:
        UserError: when the directory holds no model that transformers can load, or one that reads what comes after.
    """
    model = _load(AutoModelForCausalLM, path, dropouts)
    check_causal(model, str(path))
    return model


@torch.no_grad()
def check_causal(model: Any, place: str) -> None:
    """See that what follows a token doesn't change its logits, as it does in an encoder (transformers loads those too).

    Raises:
        UserError: when it does, or the logits are no numbers; `place` says where the model is from.
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


def load_scorer(path: Path, fresh_head: bool = False, **dropouts: float) -> Any:
    """A scalar-head model: a reward model, or (with `fresh_head`) a causal LM's trunk with a new head.

    A new head starts at zero, so that every score is 0 (for a value network this is Ziegler et al.'s choice).

    Raises:
        UserError: when the directory holds no such model, or one without a head where that is no new one.
    """
    head = ("score.weight",) if fresh_head else ()
    model = _load(AutoModelForSequenceClassification, path, dropouts, head, num_labels=1)
    if not hasattr(model, "score"):
        raise UserError(f"{path}: {model.config.model_type} makes no reward model (no `score` head); give a decoder")
    if fresh_head:
        nn.init.zeros_(model.score.weight)
    return model


def load_reward(path: Path, ensemble: EnsembleConfig | None = None) -> nn.Module:
    """What the stage `reward_model` wrote: (tokens_BT, select_BT) -> (N,) scores, by `ensemble`'s rule.

    A `SelectedScores` where there is one member, an `EnsembleScores` where there are several.

    Raises:
        UserError: when a member can't be loaded.
    """
    members = [SelectedScores(load_scorer(path))]
    while (further := member_path(path, len(members))).is_dir():
        members.append(SelectedScores(load_scorer(further)))
    return EnsembleScores(members, ensemble or EnsembleConfig()) if len(members) > 1 else members[0]


def member_path(path: Path, number: int) -> Path:
    """Where a member of the reward model at `path` lies, counted from 0: the first one is the output itself."""
    return path / MEMBERS / str(number) if number else path


def load_config(path: Path, **fields: Any) -> Any:
    """A model's transformers config, with some of its fields replaced.

    Raises:
        UserError: when there is none that transformers can load.
    """
    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust.trusted(), **fields)
    except _UNREADABLE as error:
        raise trust.refusal(path, "model", error) from None


def _load(kind: Any, path: Path, dropouts: dict[str, float], new: Sequence[str] = (), **fields: Any) -> Any:
    config = load_config(path, **fields)
    for name in DROPOUTS:
        if getattr(config, name, None) is not None:
            setattr(config, name, dropouts.get(name, 0.0))
    config.use_cache = False
    tokenizer = load_tokenizer(path)
    pad = tokenizer.pad_token_id
    # Some families keep PAD's row out of training: that must not be EOS's, nor one that is not there yet.
    config.pad_token_id = pad if pad < config.get_text_config().vocab_size else None
    model = read_weights(kind, path, new, config=config, dtype=torch.float32)
    entries = model.get_input_embeddings().num_embeddings
    highest = max(number for number in tokenizer.get_vocab().values() if number != pad)
    if highest >= entries:
        raise UserError(
            f"{path}: its tokenizer has tokens up to number {highest}, its model {entries} entries: they don't belong "
            "together; give the model its own tokenizer"
        )
    if pad >= entries:
        _grow(model, pad + 1)
    model.config.pad_token_id = pad
    return model


def read_weights(kind: Any, path: Path, new: Sequence[str] = (), **fields: Any) -> Any:
    """A transformers model of the automatic class `kind`, from safetensors alone; weights called `new` may be missing.

    Raises:
        UserError: when the directory holds none that transformers can load, or not all of its weights, which
            transformers would draw at random (a language model taken for a reward model has no `score.weight`).
    """
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # looked at here, in words of our own
    try:
        model, found = kind.from_pretrained(
            str(path), use_safetensors=True, trust_remote_code=trust.trusted(), **told, **fields
        )
    except _UNREADABLE as error:
        raise trust.refusal(path, "model", error) from None
    if missing := sorted(set(found["missing_keys"]) - {*new}):
        what = f"{type(model).__name__} needs {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        raise UserError(f"{path}: {what}, and its weights have none; give a model of that kind, or all of its weights")
    for name, there, wanted in sorted(found["mismatched_keys"]):
        raise UserError(
            f"{path}: {name} has shape {[*there]}, its config wants {[*wanted]}; give weights and config of one model"
        )
    ours = model.state_dict().keys()
    for name in sorted(found["unexpected_keys"]):
        if re.sub(r"\.\d+\.", ".0.", name, count=1) in ours:  # other names are another head's, or buffers of old
            raise UserError(f"{path}: its config leaves {name} out, a layer that its weights have; mend config.json")
    return model


@torch.no_grad()
def _grow(model: Any, rows: int) -> None:
    """Give the vocabulary `rows` entries; a new one's weights are the mean of the old ones'.

    The new token's logit is then the mean logit, so its probability is at most that of a uniform draw, and all others
    keep their ratios (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for weights in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if weights is not None:
                weights[old:] = weights[:old].mean(0)


def save(model: Any, tokenizer: Any, output: Path) -> None:
    """Write safetensors, config, generation config, tokenizer and chat template: all that the next stage needs."""
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.use_cache = True
    model.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))


def context_of(model: Any) -> int:
    """The longest row in tokens that a model (or one of its config) can read; without a bound in its config, 2**20."""
    config = getattr(unwrapped(model), "config", model)
    return int(getattr(config, "max_position_embeddings", None) or 2**20)


def check_context(length: int, model: Any, field: str, act: str = "lower it") -> int:
    """`length` (tokens of a row that `model`, or one of its config, is to read), which `field` asks for.

    Raises:
        UserError: when it is above the model's context.
    """
    if length > context_of(model):
        raise UserError(f"{field}: {length} is longer than the model's context of {context_of(model)}; {act}")
    return length


def limit_of(length: int | None, model: Any, field: str) -> int:
    """The longest conversation in tokens: `length` as `check_context` has it, or the model's context."""
    return context_of(model) if length is None else check_context(length, model, field)


def row_length(length: int | None, model: Any, field: str) -> int:
    """Tokens of a row of text: `length` as `check_context` has it, or `DEFAULT_ROW` where the context allows it."""
    return min(DEFAULT_ROW, context_of(model)) if length is None else check_context(length, model, field)


def size_of(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
