"""From prompts to texts: encode, sample, decode; what comparisons, PPO and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptlife.data.errors import UserError
from gptlife.data.tokens import encode_prompt
from gptlife.stages.generation.sampler import Answer, sample
from gptlife.stages.modeling.lengths import context_of


def encode_prompts(
    tokenizer: Any, prompts: Sequence[dict[str, Any]], model: Any, max_new_tokens: int, place: str
) -> list[list[int]]:
    """Prompts as tokens, generation prompt included.

    Raises:
        UserError: when a prompt leaves no room for the answer in the model's context.
    """
    encoded = []
    limit = context_of(model) - max_new_tokens
    for number, prompt in enumerate(prompts, 1):
        tokens = encode_prompt(tokenizer, prompt["messages"])
        if len(tokens) > limit:
            raise UserError(
                f"{place}: prompt {number} has {len(tokens)} tokens; with max_new_tokens {max_new_tokens} the model's "
                f"context of {context_of(model)} leaves {limit}; shorten it or lower max_new_tokens"
            )
        encoded.append(tokens)
    return encoded


def text_of(tokenizer: Any, answer: Answer) -> str:
    """The answer's text without special tokens, stripped."""
    return str(tokenizer.decode(answer.tokens, skip_special_tokens=True)).strip()


def answer_rows(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: str,
    numbers: Sequence[int] | None = None,
    generation_batch_size: int = 256,
    greedy: bool = False,
    place: str,
) -> list[tuple[str, bool]]:
    """(text, whether it ended by itself) of one sampled answer a prompt, in order."""
    encoded = encode_prompts(tokenizer, prompts, model, max_new_tokens, place)
    answers = sample(
        model,
        encoded,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos=tokenizer.eos_token_id,
        seed=seed,
        numbers=numbers,
        generation_batch_size=generation_batch_size,
        greedy=greedy,
    )
    return [(text_of(tokenizer, answer), answer.finished) for answer in answers]
