"""Who answers in an evaluation: checkpoints, base models with and without examples, and answers that are there already.

A model whose input is called `base` (or `base_...`) is no chat model: it gets the bare prompt as text, and once more
behind a few worked examples (the paper's "GPT" and "GPT prompted"); its answer ends at a stop string. Every other
model answers through its chat template. The output of `best_of_n` brings its answers along.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.errors import UserError
from gptlife.reward.judges.verdicts import Prompt

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gptlife.stages.evaluation import EvaluationConfig

MAIN = "prompts"
"""Name of the set of prompts that win rates are taken on."""
READY = "answers.jsonl"
"""What `best_of_n` writes: {"messages", "best"}, a row a prompt."""


@dataclass
class Answerer:
    """One column of the evaluation."""

    answers: dict[str, list[str]]
    """By set of prompts."""
    tax: dict[str, Any] = field(default_factory=dict)
    """Validation loss and few-shot accuracy; empty for what is no model of its own."""
    parameters: int | None = None
    algorithm: str | None = None
    """What its training says of itself (PPO, PPO-ptx, RLOO, ...)."""


def ask_all(
    config: EvaluationConfig,
    accelerator: Accelerator,
    paths: dict[str, Path],
    sets: dict[str, list[Prompt]],
    output: Path,
) -> dict[str, Answerer]:
    """Every answerer's answers to every set, in the inputs' order; each input's are kept as they are done.

    Raises:
        UserError: for prompts that don't fit, or ready answers to other prompts.
    """
    from gptlife.stages.runtime.artifact import CHECKPOINTS, keep_piece, kept_piece
    from gptlife.stages.runtime.metric_log import Journal

    found: dict[str, Answerer] = {}
    with Journal(output, "evaluation", len(paths), track=None) as journal:
        for number, (name, path) in enumerate(paths.items(), 1):
            place = output / CHECKPOINTS / f"{name}.json"
            asked = kept_piece(place)
            if asked is None:
                answering = _ask(config, accelerator, name, path, sets, output)
                asked = {key: asdict(answerer) for key, answerer in answering.items()}
                keep_piece(place, asked)
            found |= {key: Answerer(**answerer) for key, answerer in asked.items()}
            journal.log(number, {}, name)
    return found


def is_base(name: str) -> bool:
    """Whether an input of that name is asked as a base model."""
    return name == "base" or name.startswith("base_")


def _ask(
    config: EvaluationConfig,
    accelerator: Accelerator,
    name: str,
    path: Path,
    sets: dict[str, list[Prompt]],
    output: Path,
) -> dict[str, Answerer]:
    from gptlife.stages.evals.few_shot import capabilities
    from gptlife.stages.modeling import loading
    from gptlife.stages.runtime.artifact import METRICS, read_json

    if (path / READY).is_file() and not (path / "config.json").is_file():
        return {name: Answerer({MAIN: _ready(path, sets[MAIN])}, algorithm="best of n")}
    tokenizer = loading.load_tokenizer(path)
    model = loading.load_causal(path).to(accelerator.device).eval()
    made = read_json(path / METRICS) if (path / METRICS).is_file() else {}
    about: dict[str, Any] = {
        "tax": capabilities(config, accelerator, model, tokenizer, output),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "algorithm": made.get("algorithm"),
    }
    if not is_base(name):
        return {
            name: Answerer(
                {key: chat_answers(config, model, tokenizer, key, rows) for key, rows in sets.items()}, **about
            )
        }
    both = {key: base_answers(config, model, tokenizer, name, rows, key) for key, rows in sets.items()}
    return {variant: Answerer({key: both[key][variant] for key in sets}, **about) for variant in both[MAIN]}


def _ready(path: Path, rows: Sequence[Prompt]) -> list[str]:
    found = [json.loads(line) for line in (path / READY).read_text(encoding="utf-8").split("\n") if line]
    if [row["messages"] for row in found] != [row["messages"] for row in rows]:
        raise UserError(f"{path}: its answers are to other prompts; give best_of_n the same `prompts` as evaluation")
    return [row["best"] for row in found]


def _sampling(config: EvaluationConfig, key: str) -> dict[str, Any]:
    return {
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature or 1.0,
        "greedy": config.temperature == 0.0,
        "seed": f"evaluation {config.seed}" + ("" if key == MAIN else f" {key}"),
        "generation_batch_size": config.generation_batch_size,
    }


def chat_answers(config: EvaluationConfig, model: Any, tokenizer: Any, key: str, rows: Sequence[Prompt]) -> list[str]:
    """A chat model's answer to each prompt of the set `key`."""
    from gptlife.stages.generation.answering import answer_rows

    place = f"evaluation.{key}" if key == MAIN else f"evaluation.further_prompts.{key}"
    texts = answer_rows(model, tokenizer, rows, place=place, **_sampling(config, key))
    return [text for text, _ in texts]


def base_answers(
    config: EvaluationConfig, model: Any, tokenizer: Any, name: str, rows: Sequence[Prompt], key: str = MAIN
) -> dict[str, list[str]]:
    """A base model's continuations of the bare prompts (`name`) and, with shots, of prompts behind them."""
    from gptlife.data.formats import conversations

    plain = [config.plain_format.format(prompt=row["messages"][-1]["content"]) for row in rows]
    found = {name: _continue(config, model, tokenizer, plain, key)}
    if config.shots is not None:
        shown = [row["messages"] for row in conversations(config.shots)[: config.n_shots]]
        prefix = "".join(
            config.shot_format.format(prompt=turns[-2]["content"], answer=turns[-1]["content"]) for turns in shown
        )
        opening = config.shot_format.partition("{answer}")[0].rstrip(" ")
        asked = [prefix + opening.format(prompt=row["messages"][-1]["content"]) for row in rows]
        found[f"{name}_prompted"] = _continue(config, model, tokenizer, asked, key)
    return found


def _continue(config: EvaluationConfig, model: Any, tokenizer: Any, texts: list[str], key: str) -> list[str]:
    """The base model's continuation of each text, up to the first stop string."""
    from gptlife.data.tokens import encode_texts
    from gptlife.stages.generation.answering import text_of
    from gptlife.stages.generation.sampler import sample
    from gptlife.stages.modeling.loading import context_of

    encoded = encode_texts(tokenizer, texts)
    room = context_of(model) - config.max_new_tokens
    if max(len(tokens) for tokens in encoded) > room:
        raise UserError(
            f"evaluation.n_shots: a prompt with {config.n_shots} worked examples has over {room} tokens, all that "
            f"max_new_tokens {config.max_new_tokens} leaves of the base model's context; show fewer"
        )
    found = sample(model, encoded, eos=tokenizer.eos_token_id, **_sampling(config, key))
    return [_before(text_of(tokenizer, answer), config.stop) for answer in found]


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()
