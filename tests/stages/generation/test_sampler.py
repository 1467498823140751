"""Sampling, against full forward passes and transformers' own `generate`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gptlife.data.tokens import Encoded
from gptlife.stages.generation import sampler
from gptlife.stages.generation.sampler import Answer, sample

LENGTHS = (3, 9, 1, 4, 9, 14, 2, 6)
EOS = 0


def prompts(copies: int = 1) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(2, 50) for _ in range(length)] for length in LENGTHS] * copies


def answers_of(model: Any, of: list[list[int]], **changes: Any) -> list[Answer]:
    options = {"max_new_tokens": 12, "temperature": 0.7, "eos": EOS, "seed": "s", **changes}
    return sample(model, [Encoded.prompt(tokens) for tokens in of], **options)


@torch.no_grad()
def logprobs_alone(model: Any, prompt: list[int], answer: list[int], temperature: float) -> list[float]:
    """Log-probabilities of the answer from one forward pass of this row alone, without padding or cache."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    table = torch.log_softmax(logits / temperature, -1)
    return [float(table[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_logprobs_are_those_of_a_full_forward_pass(kind: str, small: Callable[..., Any]) -> None:
    model = small(kind)
    for prompt, answer in zip(prompts(), answers_of(model, prompts()), strict=True):
        alone = logprobs_alone(model, prompt, answer.tokens, 0.7)
        assert answer.logprobs == pytest.approx(alone, abs=1e-5)
        # Twin: those of another temperature.
        assert answer.logprobs != pytest.approx(logprobs_alone(model, prompt, answer.tokens, 1.0), abs=1e-5)


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_answers_do_not_depend_on_batch_or_order(kind: str, small: Callable[..., Any]) -> None:
    model, of = small(kind), prompts(3)
    whole = tokens(answers_of(model, of))
    assert len({tuple(answer) for answer in whole}) > len(LENGTHS)  # equal prompts, other numbers: other answers
    for rows in (1, 5):
        assert tokens(answers_of(model, of, generation_batch_size=rows)) == whole
    order = list(range(len(of)))
    random.Random(1).shuffle(order)
    shuffled = tokens(answers_of(model, [of[place] for place in order], numbers=order, generation_batch_size=7))
    assert shuffled == [whole[place] for place in order]
    # Twins: the draws do depend on the prompt's number and on the seed.
    assert tokens(answers_of(model, [of[place] for place in order])) != shuffled
    assert tokens(answers_of(model, of, seed="t")) != whole


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_leaving_the_batch_changes_nothing(
    share: float, small: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    usual = answers_of(model, prompts(4), max_new_tokens=40)
    assert {answer.finished for answer in usual} == {True, False}
    monkeypatch.setattr(sampler, "COMPACT_SHARE", share)  # 0: whenever one ends; 2: never
    other = answers_of(model, prompts(4), max_new_tokens=40)
    assert tokens(other) == tokens(usual)
    for one, two in zip(usual, other, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)


def test_answers_end_with_end_of_text(small: Callable[..., Any]) -> None:
    answers = answers_of(small(), prompts(6), max_new_tokens=30)
    assert {answer.finished for answer in answers} == {True, False}
    for answer in answers:
        assert answer.finished == (answer.tokens[-1] == EOS)
        assert EOS not in answer.tokens[:-1]
        assert len(answer.tokens) == len(answer.logprobs)
        assert answer.finished or len(answer.tokens) == 30


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_is_that_of_transformers(kind: str, small: Callable[..., Any]) -> None:
    model = small(kind)
    ours = answers_of(model, prompts(), greedy=True, temperature=1.0)
    for prompt, answer in zip(prompts(), ours, strict=True):
        made = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=1,
        )
        assert answer.tokens == made[0, len(prompt) :].tolist()
    assert tokens(answers_of(model, prompts(), temperature=1.0)) != tokens(ours)


def test_inverse_cdf() -> None:
    logprobs = torch.tensor([[0.2, 0.5, 0.0, 0.3]]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1.0])
    assert sampler._draw(logprobs, uniforms).tolist() == [0, 0, 1, 1, 3, 3]


def test_frequencies_are_the_distribution(small: Callable[..., Any]) -> None:
    model, count = small(), 4000
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=torch.tensor([[7, 8]])).logits[0, -1], -1)
    found = answers_of(model, [[7, 8]] * count, max_new_tokens=1, temperature=1.0, generation_batch_size=2000)
    counts = torch.bincount(torch.tensor([answer.tokens[0] for answer in found]), minlength=50) / count
    # Four standard deviations of a share.
    spread = 4 * (expected * (1 - expected) / count).sqrt() + 1e-3
    assert bool(((counts - expected).abs() < spread).all())
    assert not bool(((counts - 1 / 50).abs() < spread).all())  # twin: the uniform distribution


def test_the_model_is_left_as_it_was(small: Callable[..., Any]) -> None:
    model = small().train()
    model.config.use_cache = False
    answers_of(model, prompts())
    assert model.training
    assert model.config.use_cache is False


def test_dropout_is_off_while_sampling(small: Callable[..., Any]) -> None:
    model = small()
    usual = answers_of(model, prompts())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert tokens(answers_of(model.train(), prompts())) == tokens(usual)


def test_no_prompts(small: Callable[..., Any]) -> None:
    assert answers_of(small(), []) == []
