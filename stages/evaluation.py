"""Stage `evaluation`: what each step of the life is worth.

    preference   every checkpoint answers the same unseen prompts; a judge scores the answers; win rates are paired,
                 with bootstrap 95 % intervals over prompts, and length-controlled as well (statistics/winrate.py)
    verdicts     where the judge gives them (follows the instruction, true, rude, concise), truthfulness and
                 hallucination, on the main prompts and on further sets (stages/evals/tables.py)
    tax          validation loss on pretraining text and few-shot tasks, before and after alignment
                 (stages/evals/few_shot.py)

Every input but `reward` is somebody who answers (stages/evals/candidates.py): as many as wanted, under any name.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from gptlife.data.config import Execution, Was
from gptlife.data.errors import UserError, suggest
from gptlife.data.sources import Data
from gptlife.reward.ensemble import EnsembleConfig
from gptlife.reward.judges.judge import JudgeConfig, village_kinds
from gptlife.stages.evals.candidates import MAIN, is_base
from gptlife.stages.runtime.stage import Metrics, Stage, StageConfig

ANSWERERS = ("base", "sft", "ppo", "rloo", "dpo", "kto", "best_of_n")


class EvaluationConfig(StageConfig):
    """Compare checkpoints."""

    prompts: Data
    """Prompts that no stage has seen; conversations count without their last answer."""
    judge: JudgeConfig
    """Who decides which answer is better; an LLM is asked about pairs with the baseline only."""
    further_prompts: dict[str, Data] = {}
    """Further sets of prompts by name, answered for their scores and verdicts alone."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """How the members of the input `reward` make one score, where it is an ensemble."""
    shots: Data | None = None
    """Demonstrations of which the first `n_shots` are shown to the base model; None: it is not prompted."""
    n_shots: NonNegativeInt = 3
    """Worked examples in front of the base model's prompt."""
    plain_format: str = "{prompt}\n"
    """How the base model gets a bare prompt."""
    shot_format: str = "Question: {prompt}\nAnswer: {answer}\n\n"
    """How a worked example looks; the open one ends before `{answer}`."""
    stop: list[str] = ["\n"]
    """Strings that end the base model's answer."""
    validation: Data | None = None
    """Pretraining text held aside, for the loss of every checkpoint."""
    validation_length: PositiveInt | None = None
    """Tokens a row of it; None: 128, or the model's context where that is less."""
    choices: Data | None = None
    """Multiple-choice rows (query, choices, gold, task), for every checkpoint's few-shot accuracy and loss."""
    max_new_tokens: PositiveInt = 256
    """Longest answer."""
    temperature: NonNegativeFloat = 1.0
    """Of sampling; 0: the most likely token."""
    baseline: str = "sft"
    """Every other answerer is also compared with this one."""
    n_samples: NonNegativeInt = 12
    """Prompts shown side by side in the report."""
    generation_batch_size: Annotated[Execution[PositiveInt], Was("rows")] = 256
    """Answers decoded together."""
    micro_batch_tokens: Execution[PositiveInt] = 8192
    """Padded tokens in one forward pass."""

    @field_validator("further_prompts")
    @classmethod
    def _names(cls, further: dict[str, Data]) -> dict[str, Data]:
        for name in further:
            if not re.fullmatch("[a-z][a-z0-9_]*", name) or name == MAIN:
                raise ValueError(f"'{name}' is no name for a set; use small letters, digits and _")
        return further


def run(config: EvaluationConfig, output: Path, *, reward: Path | None = None, **answering: Path) -> Metrics:
    """Answer, judge, compare; writes `answers.jsonl` and gives every table of the report as metrics.

    Raises:
        UserError: when nobody answers, a set of prompts has a name that is none, or the judge lacks what it needs.
    """
    from gptlife.data.formats import prompts
    from gptlife.stages.evals import tables
    from gptlife.stages.evals.candidates import ask_all
    from gptlife.stages.evals.judging import Judging
    from gptlife.stages.training.setup import accelerator_for

    started = time.monotonic()
    _check(config, answering, reward)
    accelerator = accelerator_for(config, output)
    if accelerator.num_processes > 1:
        raise UserError("evaluation.launcher: runs in one process; leave the launcher out for this stage")
    sets = {
        name: prompts(data, config.seed) for name, data in ((MAIN, config.prompts), *config.further_prompts.items())
    }
    rows = sets[MAIN]
    answerers = ask_all(config, accelerator, answering, sets, output)
    judged = Judging(config, accelerator, sets, answerers, reward, answering, output)
    metrics: Metrics = {
        "prompts": len(rows),
        "judge": judged.name,
        "models": {
            name: {
                **tables.described(answerer, MAIN, judged.scores(name, MAIN), judged.verdicts(name, MAIN)),
                **judged.by_reward_model(name),
                "parameters": answerer.parameters,
                "algorithm": answerer.algorithm,
            }
            for name, answerer in answerers.items()
        },
        "win_rates": tables.win_rates(answerers, judged.prefer, config.baseline, config.judge.llm is not None),
        "tax": {name: answerer.tax for name, answerer in answerers.items() if answerer.tax},
        "further": {
            key: {
                name: tables.described(answerer, key, judged.scores(name, key), judged.verdicts(name, key))
                for name, answerer in answerers.items()
                if key in answerer.answers
            }
            for key in config.further_prompts
        },
        "samples": [
            {
                "prompt": row["messages"][-1]["content"],
                "answers": {name: answerer.answers[MAIN][i] for name, answerer in answerers.items()},
            }
            for i, row in enumerate(rows[: config.n_samples])
        ],
        **judged.usage(),
    }
    scores = {name: judged.scores(name, MAIN) for name in answerers}
    if config.judge.village:
        metrics["use_cases"] = tables.by_use_case(rows, {name: own for name, own in scores.items() if own})
        kinds = village_kinds(rows)
        metrics["honesty"] = {name: tables.honesty(kinds, judged.verdicts(name, MAIN) or []) for name in answerers}
    with (output / "answers.jsonl").open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            given = {
                name: {"text": answerer.answers[MAIN][i], **({"score": own[i]} if (own := scores[name]) else {})}
                for name, answerer in answerers.items()
            }
            file.write(json.dumps({**row, "answers": given}, ensure_ascii=False) + "\n")
    return {**metrics, "seconds": round(time.monotonic() - started, 2)}


def _check(config: EvaluationConfig, answering: dict[str, Path], reward: Path | None) -> None:
    if not answering:
        raise UserError("evaluation.inputs: nobody answers; give at least one of base, sft, ppo, or any other name")
    known = [*answering, *(f"{name}_prompted" for name in answering if is_base(name) and config.shots is not None)]
    left_as_it_is = config.baseline == EvaluationConfig.model_fields["baseline"].default
    if config.baseline not in known and (config.judge.llm is not None or not left_as_it_is):
        hint = suggest(config.baseline, known)
        raise UserError(f"evaluation.baseline: nobody here is called '{config.baseline}'{hint}")
    if config.judge.reward_model and reward is None:
        raise UserError("evaluation.judge: reward_model needs the input `reward`; give it, or name another judge")


STAGE = Stage(
    "evaluation",
    EvaluationConfig,
    run,
    optional=(*ANSWERERS, "reward"),
    open=True,
    version=4,
    title="evaluation",
    family="evaluation",
    about="Answers of several checkpoints to the same unseen prompts, with a judge's scores.",
)

if __name__ == "__main__":
    STAGE.main()
