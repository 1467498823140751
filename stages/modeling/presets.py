"""Architectures by name: GPT-1, GPT-2 in four sizes, GPT-3's eight of Table 2.1; or any `transformers` decoder.

GPT-1: Radford et al. 2018, section 4.1. GPT-2: Radford et al. 2019, Table 2. GPT-3: Brown et al. 2020, Table 2.1,
as the GPT-2 architecture with a 2048-token context; its alternating sparse attention is left out (dense here).
Two rows of Table 2.1 contradict themselves and are corrected so that heads x head size = width: XL prints 24 heads of
128 at width 2048 (here 16), 13B prints width 5140 (here 5120 = 40 x 128).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from gptlife.data.config import Config
from gptlife.data.errors import UserError, suggest

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _gpt2(width: int, layers: int, heads: int, context: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": context,
        # GPT-2's GELU (`gelu_new`) as one fused kernel.
        "activation_function": "gelu_pytorch_tanh",
    }


PRESETS: dict[str, dict[str, Any]] = {
    "gpt1": {"model_type": "openai-gpt", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 512},
    "gpt2-small": _gpt2(768, 12, 12, 1024),
    "gpt2-medium": _gpt2(1024, 24, 16, 1024),
    "gpt2-large": _gpt2(1280, 36, 20, 1024),
    "gpt2-xl": _gpt2(1600, 48, 25, 1024),
    "gpt3-small": _gpt2(768, 12, 12, 2048),
    "gpt3-medium": _gpt2(1024, 24, 16, 2048),
    "gpt3-large": _gpt2(1536, 24, 16, 2048),
    "gpt3-xl": _gpt2(2048, 24, 16, 2048),
    "gpt3-2.7b": _gpt2(2560, 32, 32, 2048),
    "gpt3-6.7b": _gpt2(4096, 32, 32, 2048),
    "gpt3-13b": _gpt2(5120, 40, 40, 2048),
    "gpt3-175b": _gpt2(12288, 96, 96, 2048),
}
"""The values of `architecture.preset`; the vocabulary size comes from the tokenizer."""


class Architecture(Config):
    """A decoder: a preset's name, a `transformers` model type with its config fields, or a preset with changes."""

    preset: str | None = None
    """One of gpt1, gpt2-small … gpt2-xl, gpt3-small … gpt3-175b."""
    model_type: str = "gpt2"
    """`transformers` model type, when no preset is named (gpt2, llama, qwen3, ...)."""
    fields: dict[str, Any] = {}
    """Fields of that model's config, over the preset's."""

    @field_validator("preset")
    @classmethod
    def _exists(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"no preset '{preset}'{suggest(preset, list(PRESETS))}")
        return preset

    def build(self, vocabulary: int, eos: int, pad: int) -> PretrainedConfig:
        """The `transformers` config, for a tokenizer of `vocabulary` entries.

        Raises:
            UserError: for an unknown model type or field.
        """
        from transformers import CONFIG_MAPPING, AutoConfig

        chosen = dict(PRESETS[self.preset]) if self.preset else {"model_type": self.model_type}
        model_type = chosen.pop("model_type")
        if model_type not in CONFIG_MAPPING:
            near = suggest(model_type, list(CONFIG_MAPPING)).split("; there are")[0]
            raise UserError(f"architecture.model_type: transformers has no model type '{model_type}'{near}")
        defaults = AutoConfig.for_model(model_type)
        for name in self.fields:
            if not hasattr(defaults, name):
                names = [key for key in defaults.to_dict() if not key.startswith("_")]
                raise UserError(f"architecture.fields.{name}: {model_type} has no such field{suggest(name, names)}")
        special = {"vocab_size": vocabulary, "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": pad}
        return AutoConfig.for_model(model_type, **{**chosen, **self.fields, **special})
