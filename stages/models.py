"""Models as the stages use them: loading, saving, adapters."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import logging as transformers_logging

from gptlife.data.config import UserError
from gptlife.reward.reading import unwrapped
from gptlife.stages.training_config import LoRA

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "classifier_dropout")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
logging.getLogger("torch.distributed").setLevel(logging.ERROR)


def best_device(wanted: str | None) -> torch.device:
    """The wanted device, or the best there is."""
    if wanted is not None:
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device: '{wanted}' wanted, but torch sees no CUDA device; use device: cpu")
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_tokenizer(path: Path) -> Any:
    """The tokenizer that travels with an artefact.

    Raises:
        UserError: when there is none, or its PAD is missing or equals EOS (the model could then never learn to stop).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no tokenizer can be loaded ({str(error).splitlines()[0]})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: its tokenizer has no end-of-text token (eos_token); set one in tokenizer_config.json")
    tokenizer.padding_side = "left"
    return tokenizer


def load_causal(path: Path, **dropouts: float) -> Any:
    """A causal LM in fp32 with every dropout set to 0 but those given.

    Raises:
        UserError: when the directory holds no model that transformers can load.
    """
    return _load(AutoModelForCausalLM, path, dropouts)


def load_scorer(path: Path, fresh_head: bool = False, **dropouts: float) -> Any:
    """A scalar-head model: a reward model, or (with `fresh_head`) a causal LM's trunk with a new head.

    A new head starts at zero, so that every score is 0 (for a value network this is Ziegler et al.'s choice).
    """
    model = _load(AutoModelForSequenceClassification, path, dropouts, num_labels=1)
    if fresh_head:
        nn.init.zeros_(model.score.weight)
    return model


def _load(kind: Any, path: Path, dropouts: dict[str, float], **fields: Any) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path), **fields)
        for name in DROPOUTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, dropouts.get(name, 0.0))
        config.use_cache = False
        if config.pad_token_id is None:
            config.pad_token_id = load_tokenizer(path).pad_token_id
        model = kind.from_pretrained(str(path), config=config, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no model can be loaded ({str(error).splitlines()[0]})") from None
    return model


def save(model: Any, tokenizer: Any, output: Path) -> None:
    """Write safetensors, config, generation config, tokenizer and chat template: all that the next stage needs."""
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.use_cache = True
    model.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))


def add_lora(model: Any, lora: LoRA, task: str) -> Any:
    """Wrap `model` with adapters; `task` is `CAUSAL_LM` or `SEQ_CLS` (whose new head is trained whole)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        fan_in_fan_out=getattr(model.config, "model_type", "") in ("gpt2", "openai-gpt"),
    )
    return get_peft_model(model, config)


def merge_lora(model: Any) -> Any:
    """The plain model with its adapters added in; `model` itself where it has none."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def context_of(model: Any) -> int:
    """The longest row in tokens that a model can read; without a bound in its config, 2**20."""
    return int(getattr(unwrapped(model).config, "max_position_embeddings", None) or 2**20)


def size_of(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
