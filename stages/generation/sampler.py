"""Sampling answers: prompts are encoded, decoded with a cache token by token, and turned back into text.

Prompts are padded on the left and positions count real tokens. Each step samples one token per row from the softmax at
the given temperature and keeps its log-probability under that same distribution. Rows that have ended leave the
batch, so a batch costs its tokens and not its longest row. The uniform number behind every draw is a function of
(seed, prompt number, step): an answer doesn't depend on batch size, order or world size beyond rounding.

Left out: `transformers.generate`, which draws from one generator per batch and keeps ended rows.

Shapes: B rows, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded, encode_prompt
from gptlife.stages.modeling.forward import prompt_inputs
from gptlife.stages.modeling.lengths import context_of

COMPACT_SHARE = 0.15
"""Ended rows leave the batch once they are this share of it: moving the cache costs about one step."""


@dataclass
class Answer:
    """One sampled answer."""

    tokens: list[int]
    """Up to the end-of-text token, which is included where it was reached."""
    logprobs: list[float]
    """One per token, in nats, under the distribution it was drawn from (temperature included)."""
    finished: bool
    """Whether the end-of-text token was reached."""


def encode_prompts(
    tokenizer: Any, prompts: Sequence[dict[str, Any]], model: Any, max_new_tokens: int, place: str
) -> list[Encoded]:
    """Each prompt as the model reads it, generation prompt included.

    Args:
        prompts: rows with `messages`.
        place: the config field of the prompts, for the error.

    Raises:
        UserError: when a prompt leaves no room for `max_new_tokens` in the model's context.
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


def sample(
    model: Any,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    temperature: float,
    eos: int,
    seed: str,
    numbers: Sequence[int] | None = None,
    generation_batch_size: int = 256,
    greedy: bool = False,
) -> list[Answer]:
    """One answer per prompt, in the prompts' order.

    Args:
        model: a causal LM (a LoRA wrapper is fine), on its device.
        prompts: what each answer follows.
        eos: the end-of-text token, which ends an answer.
        seed: decides the draws, together with each prompt's number.
        numbers: the prompts' numbers; by default 0, 1, ...
        generation_batch_size: prompts decoded together; like lengths go together.
        greedy: take the most likely token; log-probabilities are still those at `temperature`.
    """
    numbers = list(range(len(prompts))) if numbers is None else numbers
    answers: list[Answer | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    was_training, cached = model.training, model.config.use_cache
    model.eval()
    for start in range(0, len(order), generation_batch_size):
        chunk = order[start : start + generation_batch_size]
        draws = torch.tensor([_uniforms(seed, numbers[i], max_new_tokens) for i in chunk], dtype=torch.float32)
        decoded = _decode(model, [prompts[i] for i in chunk], draws, temperature, eos, greedy)
        for index, answer in zip(chunk, decoded, strict=True):
            answers[index] = answer
    model.train(was_training)
    model.config.use_cache = cached
    return [answer for answer in answers if answer is not None]


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """An answer's text without special tokens, stripped."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


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
    """(text, whether it ended by itself) of one sampled answer per prompt, in order.

    The arguments are those of `encode_prompts` and `sample`.

    Raises:
        UserError: when a prompt leaves no room for `max_new_tokens` in the model's context.
    """
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
    return [(text_of(tokenizer, answer.tokens), answer.finished) for answer in answers]


def _uniforms(seed: str, number: int, count: int) -> list[float]:
    generator = random.Random(f"{seed} {number}")
    return [generator.random() for _ in range(count)]


@torch.no_grad()
def _decode(
    model: Any, prompts: Sequence[Encoded], draws_BR: Tensor, temperature: float, eos: int, greedy: bool
) -> list[Answer]:
    device = next(model.parameters()).device
    inputs = prompt_inputs(prompts, eos, device)
    mask = inputs["attention_mask"]
    positions_B = mask.sum(-1)
    # `crop`-free cache of the model's own kind; rows leave it by `batch_select_indices`.
    cache = DynamicCache(config=model.config)
    draws_BR = draws_BR.to(device)
    alive = torch.arange(len(prompts), device=device)
    answers = [Answer([], [], False) for _ in prompts]
    done_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(draws_BR.shape[1]):
        logits_BV = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        logprobs_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
        chosen_B = logprobs_BV.argmax(-1) if greedy else _draw(logprobs_BV, draws_BR[alive, step])
        chosen_logprobs = logprobs_BV.gather(-1, chosen_B.unsqueeze(-1)).squeeze(-1)
        ended_B = chosen_B == eos
        for row, token, logprob, ended, done in zip(
            alive.tolist(), chosen_B.tolist(), chosen_logprobs.tolist(), ended_B.tolist(), done_B.tolist(), strict=True
        ):
            if not done:
                answers[row].tokens.append(token)
                answers[row].logprobs.append(logprob)
                answers[row].finished = ended
        done_B |= ended_B
        if bool(done_B.all()):
            break
        positions_B += 1
        if float(done_B.float().mean()) >= COMPACT_SHARE:
            keep = (~done_B).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, chosen_B, mask = alive[keep], chosen_B[keep], mask[keep]
            positions_B, done_B = positions_B[keep], done_B[keep]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
        inputs = {
            "input_ids": chosen_B.unsqueeze(-1),
            "attention_mask": mask,
            "position_ids": (positions_B - 1).unsqueeze(-1),
        }
    return answers


def _draw(logprobs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds the row's uniform number."""
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    scaled_B1 = uniforms_B.double().unsqueeze(-1) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, scaled_B1, right=True).squeeze(-1).clamp(max=logprobs_BV.shape[-1] - 1)
