"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through peft: added and merged."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from gptlife.data.config import BelowOne, Config


class LoRA(Config):
    """Low-rank adapters (Hu et al. 2021) on every linear layer but the head; merged when the stage ends."""

    rank: PositiveInt = 16
    """Width of the adapters."""
    alpha: PositiveInt = 32
    """The adapter's output is scaled by alpha / rank."""
    dropout: BelowOne = 0.0
    """Dropout on the adapter's input."""
    targets: str | list[str] = "all-linear"
    """Module names, or `all-linear`."""


def add_lora(model: Any, lora: LoRA, task: str) -> Any:
    """`model` wrapped with adapters; `task` is `CAUSAL_LM` or `SEQ_CLS` (whose new head is trained in full)."""
    from peft import get_peft_model

    return get_peft_model(model, lora_config(model, lora, task))


def lora_config(model: Any, lora: LoRA, task: str) -> Any:
    """peft's config of the adapters, for a trainer that adds them by itself."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        fan_in_fan_out=getattr(model.config, "model_type", "") in ("gpt2", "openai-gpt"),
    )


def merge_lora(model: Any) -> Any:
    """The plain model with its adapters merged into the weights; `model` itself where it has none."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
