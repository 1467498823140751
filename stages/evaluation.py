"""Stage `evaluation`: what each step of the life is worth.

    preference   every checkpoint answers the same unseen prompts; a judge scores the answers; win rates are paired,
                 with bootstrap 95 % intervals over prompts, and length-controlled as well (reward/winrate.py)
    verdicts     where the judge gives them (follows the instruction, true, rude, concise)
    tax          validation loss on pretraining text and few-shot accuracy, before and after alignment
                 (stages/capabilities.py)

The base model gets the bare prompt as text, and once more behind a few worked examples (the paper's "GPT" and "GPT
prompted"); its answer ends at `stop` or the end-of-text token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.config import Execution, UserError
from gptlife.data.sources import Data
from gptlife.reward.judges import Judge, JudgeConfig, Prompt
from gptlife.stages.stage import Metrics, Stage, StageConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

MODELS = ("base", "sft", "ppo")
PROMPTED = "base_prompted"


class EvaluationConfig(StageConfig):
    """Compare checkpoints."""

    prompts: Data
    """Prompts that no stage has seen; conversations count without their last answer."""
    judge: JudgeConfig
    """Who decides which answer is better."""
    shots: Data | None = None
    """Demonstrations of which the first `n_shots` are shown to the base model; None: it is not prompted."""
    n_shots: int = 3
    """Worked examples in front of the base model's prompt."""
    plain_format: str = "{prompt}\n"
    """How the base model gets a bare prompt."""
    shot_format: str = "Question: {prompt}\nAnswer: {answer}\n\n"
    """How a worked example looks; the open one ends before `{answer}`."""
    stop: list[str] = ["\n"]
    """Strings that end the base model's answer."""
    validation: Data | None = None
    """Pretraining text held aside, for the loss of every checkpoint."""
    validation_length: int | None = None
    """Tokens a row of it; None: 128, or the model's context where that is less."""
    choices: Data | None = None
    """Multiple-choice rows (query, choices, gold, task), for the few-shot accuracy of every checkpoint."""
    max_new_tokens: int = 256
    """Longest answer."""
    temperature: float = 1.0
    """Of sampling; 0: the most likely token."""
    baseline: str = "sft"
    """Every other model is also compared with this one."""
    n_samples: int = 12
    """Prompts shown side by side in the report."""
    rows: Execution[int] = 256
    """Answers decoded together."""
    micro_batch_tokens: Execution[int] = 8192
    """Padded tokens in one forward pass."""


def run(
    config: EvaluationConfig,
    output: Path,
    *,
    base: Path | None = None,
    sft: Path | None = None,
    ppo: Path | None = None,
    reward: Path | None = None,
) -> Metrics:
    """Answer, judge, compare; writes `answers.jsonl` and gives every table of the report as metrics."""
    from gptlife.data.formats import prompts
    from gptlife.stages.training import accelerator_of

    started = time.monotonic()
    paths = {name: path for name, path in zip(MODELS, (base, sft, ppo), strict=True) if path is not None}
    if not paths:
        raise UserError("evaluation.inputs: no model; give at least one of base, sft, ppo")
    accelerator = accelerator_of(config.device, config.seed)
    if accelerator.num_processes > 1:
        raise UserError("evaluation.launcher: runs in one process; leave the launcher out for this stage")
    rows = prompts(config.prompts, config.seed)
    answers, tax = _ask_all(config, accelerator, paths, rows, output)
    judge = _judge(config, accelerator, reward)
    scores = {name: judge(rows, texts) for name, texts in answers.items()}
    metrics: Metrics = {
        "prompts": len(rows),
        "judge": _judge_name(config.judge),
        "models": {name: _described(config, rows, texts, scores[name]) for name, texts in answers.items()},
        "win_rates": _win_rates(config, answers, scores),
        "tax": tax,
        "samples": [
            {"prompt": row["messages"][-1]["content"], "answers": {n: texts[i] for n, texts in answers.items()}}
            for i, row in enumerate(rows[: config.n_samples])
        ],
    }
    if config.judge.village:
        metrics["use_cases"] = _by_use_case(rows, scores)
    with (output / "answers.jsonl").open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            given = {name: {"text": texts[i], "score": scores[name][i]} for name, texts in answers.items()}
            file.write(json.dumps({**row, "answers": given}, ensure_ascii=False) + "\n")
    return {**metrics, "seconds": round(time.monotonic() - started, 2)}


def _ask_all(
    config: EvaluationConfig, accelerator: Accelerator, paths: dict[str, Path], rows: list[Prompt], output: Path
) -> tuple[dict[str, list[str]], dict[str, Metrics]]:
    """Every model's answers and capabilities; each model's are kept as they are done."""
    from gptlife.stages import models
    from gptlife.stages.artifact import CHECKPOINTS, read_json, write_json
    from gptlife.stages.capabilities import capabilities
    from gptlife.stages.journal import Journal

    folder = output / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    answers: dict[str, list[str]] = {}
    tax: dict[str, Metrics] = {}
    with Journal(output, "evaluation", len(paths), track=None) as journal:
        for number, (name, path) in enumerate(paths.items(), 1):
            kept = folder / f"{name}.json"
            if not kept.is_file():
                tokenizer = models.load_tokenizer(path)
                model = models.load_causal(path).to(accelerator.device).eval()
                measured = capabilities(config, accelerator, model, tokenizer, output)
                write_json(kept, [_answers(config, model, tokenizer, name, rows), measured])
            found, tax[name] = read_json(kept)
            answers |= found
            journal.log(number, {}, name)
    return answers, tax


def _answers(
    config: EvaluationConfig, model: Any, tokenizer: Any, name: str, rows: list[Prompt]
) -> dict[str, list[str]]:
    from gptlife.data.formats import conversations
    from gptlife.stages.answering import answer_rows

    if name == "base":
        plain = [config.plain_format.format(prompt=row["messages"][-1]["content"]) for row in rows]
        found = {"base": _continue(config, model, tokenizer, plain)}
        if config.shots is not None:
            shown = [row["messages"] for row in conversations(config.shots)[: config.n_shots]]
            prefix = "".join(
                config.shot_format.format(prompt=turns[-2]["content"], answer=turns[-1]["content"]) for turns in shown
            )
            opening = config.shot_format.partition("{answer}")[0].rstrip(" ")
            asked = [prefix + opening.format(prompt=row["messages"][-1]["content"]) for row in rows]
            found[PROMPTED] = _continue(config, model, tokenizer, asked)
        return found
    texts = answer_rows(
        model,
        tokenizer,
        rows,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature or 1.0,
        greedy=config.temperature == 0.0,
        seed=f"evaluation {config.seed}",
        rows=config.rows,
        place="evaluation.prompts",
    )
    return {name: [text for text, _ in texts]}


def _continue(config: EvaluationConfig, model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    """The base model's continuation of each text, up to the first stop string."""
    from gptlife.data.tokens import encode_texts
    from gptlife.stages.answering import text_of
    from gptlife.stages.models import context_of
    from gptlife.stages.rollout import sample

    encoded = encode_texts(tokenizer, texts)
    room = context_of(model) - config.max_new_tokens
    if max(len(tokens) for tokens in encoded) > room:
        raise UserError(
            f"evaluation.n_shots: a prompt with {config.n_shots} worked examples has over {room} tokens, all that "
            f"max_new_tokens {config.max_new_tokens} leaves of the base model's context; show fewer"
        )
    found = sample(
        model,
        encoded,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature or 1.0,
        greedy=config.temperature == 0.0,
        eos=tokenizer.eos_token_id,
        seed=f"evaluation {config.seed}",
        rows=config.rows,
    )
    return [_before(text_of(tokenizer, answer), config.stop) for answer in found]


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _judge(config: EvaluationConfig, accelerator: Accelerator, reward: Path | None) -> Judge:
    from gptlife.data.tokens import encode_answer, encode_prompt
    from gptlife.reward.judges import load_judge
    from gptlife.reward.model import score
    from gptlife.reward.reading import SelectedScores
    from gptlife.stages import models

    if not config.judge.reward_model:
        return load_judge(config.judge, "evaluation.judge")
    if reward is None:
        raise UserError("evaluation.judge: reward_model needs the input `reward`; give it, or name another judge")
    tokenizer = models.load_tokenizer(reward)
    reader = SelectedScores(models.load_scorer(reward)).to(accelerator.device).eval()

    def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        rows = [
            encode_prompt(tokenizer, prompt["messages"]) + encode_answer(tokenizer, answer, True)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        found: list[float] = score(reader, rows).tolist()
        return found

    return judge


def _judge_name(config: JudgeConfig) -> str:
    if config.village:
        return "the Village's gold judge"
    return "the reward model that PPO was trained on" if config.reward_model else str(config.function)


def _described(config: EvaluationConfig, rows: list[Prompt], texts: list[str], scores: list[float]) -> Metrics:
    """A model's mean score with its interval, mean length in words, and the gold verdicts where there are any."""
    from gptlife.reward.judges import village_verdicts
    from gptlife.reward.winrate import bootstrap_mean

    found: Metrics = {
        "score": bootstrap_mean(scores)._asdict(),
        "words": sum(len(text.split()) for text in texts) / len(texts),
    }
    if config.judge.village:
        verdicts = village_verdicts(rows, texts)
        found["verdicts"] = {
            name: bootstrap_mean([verdict[name] for verdict in verdicts])._asdict() for name in verdicts[0]
        }
    return found


def _win_rates(
    config: EvaluationConfig, answers: dict[str, list[str]], scores: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Every later model against every earlier one, and each against the baseline."""
    from gptlife.reward.winrate import length_controlled, win_rate

    names = [name for name in ("base", PROMPTED, "sft", "ppo") if name in answers]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    pairs += [(a, config.baseline) for a in names if a != config.baseline and config.baseline in names]
    table = []
    for a, b in dict.fromkeys(pairs):
        lengths = [[float(len(text.split())) for text in answers[name]] for name in (a, b)]
        controlled = length_controlled(scores[a], scores[b], lengths[0], lengths[1])
        table.append(
            {
                "a": a,
                "b": b,
                **win_rate(scores[a], scores[b])._asdict(),
                "length_controlled": {"rate": controlled.rate, "low": controlled.low, "high": controlled.high},
            }
        )
    return table


def _by_use_case(rows: list[Prompt], scores: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Mean gold score by use case and model, with the number of prompts."""
    places: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(row["meta"]["use_case"], []).append(index)
    return {
        use_case: {"prompts": len(at), **{name: sum(own[i] for i in at) / len(at) for name, own in scores.items()}}
        for use_case, at in sorted(places.items(), key=lambda item: -len(item[1]))
    }


STAGE = Stage("evaluation", EvaluationConfig, run, optional=(*MODELS, "reward"))

if __name__ == "__main__":
    STAGE.main()
