"""Loading and saving models and tokenizers.

An adopted model may have no PAD, or PAD = EOS (GPT-2, Llama 3), with which a model can't learn to stop and a score
isn't read at the end of the answer. `load_tokenizer` then adds a separate PAD, `load_causal` and `load_scorer` add its
row to the embeddings, and both are saved with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from gptlife.stages.modeling import checks
from gptlife.stages.modeling.forward import SelectedScores
from gptlife.stages.modeling.scorer import EnsembleScores
from gptlife.stages.runtime import trust

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, StrictDataclassError)
"""What transformers and its helpers raise for unreadable files."""
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "classifier_dropout")
"""The dropout fields of transformers' configs."""
NO_DROPOUT: Mapping[str, float] = {}
MEMBERS = "members"
"""Folder of a reward model's further members: `members/1`, `members/2`, ...; the first one is the output itself."""


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of an output, padding on the left; a PAD is added where it is missing or equals EOS.

    Raises:
        UserError: when the directory holds no tokenizer, or one without an end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust.trusted())
    except _UNREADABLE as error:
        raise trust.refusal(path, "tokenizer", error) from None
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # transformers returns an empty one
        raise UserError(f"{path}: no tokenizer can be loaded (it has no vocabulary); put its tokenizer.json there")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: its tokenizer has no end-of-text token (eos_token); set one in tokenizer_config.json")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    return tokenizer


def load_causal(path: Path, tokenizer: Any = None, dropouts: Mapping[str, float] = NO_DROPOUT) -> Any:
    """A causal LM in fp32.

    Args:
        tokenizer: what `load_tokenizer` gave for the same directory; None: it is loaded here.
        dropouts: dropout by config field (one of `DROPOUTS`); every other one is 0.

    Raises:
        UserError: when the directory holds no model that transformers can load, a reward model, or one that looks at
            later tokens.
    """
    model = _load(AutoModelForCausalLM, path, tokenizer, dropouts)
    checks.check_not_a_scorer(model, path)
    checks.check_causal(model, str(path))
    return model


def load_scorer(path: Path, fresh_head: bool = False, tokenizer: Any = None) -> Any:
    """A scalar-head model in fp32, every dropout 0: a reward model, or with `fresh_head` a causal LM's trunk.

    A new head starts at zero, so that every score is 0 (for a value network this is Ziegler et al.'s choice).

    Args:
        tokenizer: what `load_tokenizer` gave for the same directory; None: it is loaded here.

    Raises:
        UserError: when the directory holds no such model, or one without a head and `fresh_head` is false.
    """
    head = ("score.weight",) if fresh_head else ()
    kind = AutoModelForSequenceClassification
    model = _load(kind, path, tokenizer, NO_DROPOUT, head, {"num_labels": 1})
    if not hasattr(model, "score"):
        raise UserError(f"{path}: {model.config.model_type} makes no reward model (no `score` head); give a decoder")
    if fresh_head:
        nn.init.zeros_(model.score.weight)
    return model


def load_reward(path: Path, ensemble: EnsembleConfig | None = None) -> nn.Module:
    """The output of the stage `reward_model`: (inputs, select_BT) -> (N,) scores, by `ensemble`'s rule.

    A `SelectedScores` where there is one member, an `EnsembleScores` where there are several; they share a tokenizer.

    Raises:
        UserError: when a member can't be loaded.
    """
    tokenizer = load_tokenizer(path)
    members = [SelectedScores(load_scorer(path, tokenizer=tokenizer))]
    while (further := member_path(path, len(members))).is_dir():
        members.append(SelectedScores(load_scorer(further, tokenizer=tokenizer)))
    return EnsembleScores(members, ensemble or EnsembleConfig()) if len(members) > 1 else members[0]


def member_path(path: Path, number: int) -> Path:
    """The directory of member `number` of the reward model at `path`; member 0 is the output itself."""
    return path / MEMBERS / str(number) if number else path


def load_config(path: Path, fields: Mapping[str, Any] | None = None) -> Any:
    """A model's transformers config, with some of its `fields` replaced.

    Raises:
        UserError: when the directory holds none that transformers can load.
    """
    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust.trusted(), **(fields or {}))
    except _UNREADABLE as error:
        raise trust.refusal(path, "model", error) from None


def set_dropouts(config: Any, dropouts: Mapping[str, float]) -> None:
    """Set every dropout of a transformers config to its value in `dropouts`, and to 0 where that has none."""
    for name in DROPOUTS:
        if getattr(config, name, None) is not None:
            setattr(config, name, dropouts.get(name, 0.0))


def _load(
    kind: Any,
    path: Path,
    tokenizer: Any,
    dropouts: Mapping[str, float],
    new: Sequence[str] = (),
    fields: Mapping[str, Any] | None = None,
) -> Any:
    config = load_config(path, fields)
    set_dropouts(config, dropouts)
    config.use_cache = False
    tokenizer = load_tokenizer(path) if tokenizer is None else tokenizer
    pad = tokenizer.pad_token_id
    # Some families keep PAD's row out of training: that must not be EOS's, nor one that doesn't exist yet.
    config.pad_token_id = pad if pad < config.get_text_config().vocab_size else None
    model = read_weights(kind, path, torch.float32, config, new)
    checks.check_vocabulary(model, tokenizer, path)
    if pad >= model.get_input_embeddings().num_embeddings:
        _grow(model, pad + 1)
    model.config.pad_token_id = pad
    return model


def read_weights(kind: Any, path: Path, dtype: torch.dtype | str, config: Any = None, new: Sequence[str] = ()) -> Any:
    """A transformers model of the automatic class `kind`, from safetensors alone.

    Args:
        dtype: of the weights in memory; "auto": as they are stored.
        config: its transformers config; None: that of the directory.
        new: names of weights that may be missing.

    Raises:
        UserError: when the directory holds no model that transformers can load, or not all of its weights, which
            transformers would draw at random (a language model taken for a reward model has no `score.weight`).
    """
    try:
        model, report = kind.from_pretrained(
            str(path),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust.trusted(),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_weights` reports them
        )
    except _UNREADABLE as error:
        raise trust.refusal(path, "model", error) from None
    checks.check_weights(model, report, path, new)
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
    """Write safetensors, config, generation config, tokenizer and chat template: all that the next stage reads."""
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.use_cache = True
    model.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))
