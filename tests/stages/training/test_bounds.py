"""Numbers that make no sense are refused when a recipe is read, hours before they would be used, in one line."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import ValidationError

from gptlife.data.config import Config, decode
from gptlife.data.errors import UserError
from gptlife.pipelines.lifecycle import LIFECYCLE

ANY_INTEGER = {"VillageSource.seed", "VillageSource.draw", "PanelConfig.seed"}
"""Seeds that are only hashed."""
MAY_BE_ZERO = {
    # 0 leaves the thing out
    "learning_rate", "value_learning_rate", "weight_decay", "beta1", "beta2", "min_lr_ratio", "dropout",
    "residual_dropout", "warmup_steps", "warmup_tokens", "critic_warmup_steps", "ramp_tokens", "z_loss",
    "checkpoint_seconds", "pretraining_share", "ptx_coef", "ptx_rows_per_episode", "kl_coef", "missing_eos_penalty",
    "ema", "keep_every", "gamma", "lam", "label_smoothing", "coef", "n_shots", "n_samples", "validate_every",
    # counted from
    "seed", "start",
    # a share that split() refuses where it leaves no row
    "validation",
    # parts of the Village and of a judge's bill
    "polite", "flawed", "max_unparseable", "retries", "prompt_price", "completion_price",
}  # fmt: skip
GREEDY = {"EvaluationConfig.temperature", "LLMJudgeConfig.temperature"}


def configs(model: type[Config]) -> Iterator[type[Config]]:
    """A config and those inside its fields."""
    yield model
    for field in model.model_fields.values():
        for inner in parts(field.annotation):
            if isinstance(inner, type) and issubclass(inner, Config):
                yield from configs(inner)


def parts(annotation: Any) -> Iterator[Any]:
    """The types inside an annotation."""
    yield annotation
    for argument in get_args(annotation):
        yield from parts(argument)


def scalars(annotation: Any) -> set[type]:
    """int and float, where a field may be such a number itself."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return scalars(arguments[0])
    if origin in (Union, types.UnionType):
        return {found for argument in arguments for found in scalars(argument)}
    return {annotation} & {int, float}


MODELS = dict.fromkeys(model for step in LIFECYCLE for model in configs(step.stage.config))
NUMBERS = [
    pytest.param(model, name, kind, id=f"{model.__name__}.{name}")
    for model in MODELS
    for name, field in model.model_fields.items()
    for kind in sorted(scalars(field.annotation), key=str)
]


def takes(model: type[Config], name: str, value: Any) -> bool:
    """Whether a field takes a value, whatever else is missing."""
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        return not any(problem["loc"][:1] == (name,) for problem in error.errors())
    return True


def test_there_are_some() -> None:
    assert len(NUMBERS) > 100


@pytest.mark.parametrize(("model", "name", "kind"), NUMBERS)
def test_a_number_has_its_bounds(model: type[Config], name: str, kind: type) -> None:
    where = f"{model.__name__}.{name}"
    assert takes(model, name, kind(-1)) == (where in ANY_INTEGER)
    assert takes(model, name, kind(0)) == (name in MAY_BE_ZERO or where in GREEDY | ANY_INTEGER)
    if kind is float:
        assert takes(model, name, 0.25)
        assert not takes(model, name, math.nan)
        assert not takes(model, name, math.inf)


@pytest.mark.parametrize(
    ("stage", "name", "value", "said"),
    [
        ("pretrain", "tokens", -5, "tokens: input should be greater than 0, found -5"),
        ("ppo", "batch_size", 0, "batch_size: input should be greater than 0, found 0"),
        ("ppo", "lam", 1.5, "lam: input should be less than or equal to 1, found 1.5"),
        ("sft", "learning_rate", math.inf, "learning_rate: input should be a finite number, found inf"),
        ("sft", "seed", -1, "seed: input should be greater than or equal to 0, found -1"),
        ("sft", "validation", -0.5, "validation: input should be greater than or equal to 0, found -0.5"),
        # What two fields say together.
        ("ppo", "batch_size", 7, "minibatch_size: 64 does not divide batch_size 7; choose one that does"),
        ("rloo", "answers_per_prompt", 3, "answers_per_prompt: 3 does not divide batch_size 512; choose one that does"),
        ("pretrain", "batch_tokens", 10, "batch_tokens: 10 is less than one row of 2048; raise it"),
        (
            "comparisons",
            "answers_max",
            3,
            "answers_min: 4 must be at least 2 and not exceed answers_max (3); lower it, or raise answers_max",
        ),
        (
            "sft",
            "packing",
            True,
            "packing: true can't go with `pretraining`; set packing: false, or leave pretraining out",
        ),
        ("pretrain", "architecture", {"preset": "gpt9"}, "architecture.preset: no preset 'gpt9'; did you mean 'gpt1'?"),
    ],
)
def test_what_one_reads(stage: str, name: str, value: Any, said: str) -> None:
    (config,) = (step.stage.config for step in LIFECYCLE if step.name == stage)
    needed = {"data": "a.jsonl", "validation": "b.jsonl", "prompts": "c.jsonl", "labelers": {"village": "training"}}
    needed |= {"pretraining": "d.jsonl"} if name == "packing" else {}
    raw = {key: needed[key] for key in needed if key in config.model_fields}
    with pytest.raises(UserError) as error:
        decode(config, {**raw, name: value}, f"r.yaml: {stage}")
    assert str(error.value) == f"r.yaml: {stage}.{said}"
