"""Stage `evaluation`: what each step of the life is worth.

    preference   every checkpoint answers the same unseen prompts, a judge scores or compares the answers; win rates are
                 paired, with bootstrap 95 % intervals over prompts, plain and length-controlled
                 (reward/statistics/winrate.py)
    verdicts     what else the judge says of an answer, truthfulness and hallucination among it, on the main prompts and
                 on further sets (stages/evals/tables.py)
    reward       the reward model's mean score beside another judge's: the score that PPO's loop computes, before PPO
                 shapes it (its penalty for answers without end-of-text is not in it; stages/evals/reward.py)
    tax          validation loss on pretraining text and few-shot tasks, before and after alignment
                 (stages/evals/tasks/)

Every input but `reward` is a candidate (stages/evals/candidates.py): a model, or the answers that `best_of_n` chose,
under any name and as many as wanted. Output: `answers.jsonl`, a row per main prompt: messages, meta, and for each
candidate `text`, `finished` (whether the answer ended by itself) and the judge's `score`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, SerializeAsAny, field_validator

from gptlife.data.config import Added, Execution
from gptlife.data.errors import UserError, suggest
from gptlife.data.sources import Data
from gptlife.reward.ensemble import EnsembleConfig
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.judge import describe
from gptlife.stages.evals.prompt_sets import MAIN, PROMPTED
from gptlife.stages.evals.tasks.catalogue import decode_tasks
from gptlife.stages.evals.tasks.lm_loss import LMLoss
from gptlife.stages.evals.tasks.multiple_choice import MultipleChoice
from gptlife.stages.evals.tasks.task import Task
from gptlife.stages.generation.config import SamplingConfig
from gptlife.stages.runtime.stage import Metrics, Stage

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gptlife.stages.evals.judging import Judging
    from gptlife.stages.evals.outputs import Outputs
    from gptlife.stages.evals.prompt_sets import PromptSet

REWARD = "reward"
"""The input that is no candidate."""


class EvaluationConfig(SamplingConfig):
    """Compare checkpoints."""

    prompts: Data
    """Prompts that no stage has seen; conversations count without their last answer."""
    judge: JudgeConfig
    """Who decides which answer is better; an LLM is asked about pairs with the baseline only."""
    further_prompts: dict[str, Data] = {}
    """Further sets of prompts by name, answered for their scores and verdicts alone."""
    group_by: Added[str] = "use_case"
    """Entry of the prompts' `meta` by which scores are tabled; no prompt has it: no table."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """How the members of the input `reward` make one score, where it is an ensemble."""
    continuations: Added[list[str] | None] = None
    """Inputs that are base models, which continue a text instead of answering in a chat. None: those whose stage says
    so (pretrain), and adopted models whose input is called `base` or `base_...`."""
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
    """Tokens per row of it; None: 128, or the model's context where that is less."""
    choices: Data | None = None
    """Multiple-choice rows (query, choices, gold, task), for every checkpoint's few-shot accuracy and loss."""
    tasks: Added[dict[str, SerializeAsAny[Task]]] = {}
    """Further tasks by name, each with its fields (stages/evals/tasks/)."""
    temperature: NonNegativeFloat = 1.0
    """Of sampling; 0: the most likely token."""
    baseline: str = "sft"
    """Every other candidate is also compared with this one."""
    n_samples: NonNegativeInt = 12
    """Prompts shown side by side in the report."""
    micro_batch_tokens: Execution[PositiveInt] = 8192
    """Padded tokens in one forward pass."""

    @field_validator("further_prompts")
    @classmethod
    def _names(cls, further: dict[str, Data]) -> dict[str, Data]:
        for name in further:
            if not re.fullmatch("[a-z][a-z0-9_]*", name) or name == MAIN:
                raise ValueError(f"invalid prompt-set name '{name}'; use small letters, digits and _")
        return further

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks(cls, tables: Any) -> dict[str, Task]:
        try:
            return decode_tasks(tables)
        except UserError as error:
            raise ValueError(str(error)) from None

    def tax(self) -> list[Task]:
        """The tasks whose results are the alignment tax."""
        tasks: list[Task] = []
        if self.validation is not None:
            tasks.append(LMLoss(validation=self.validation, validation_length=self.validation_length))
        if self.choices is not None:
            tasks.append(MultipleChoice(choices=self.choices))
        return tasks


def run(config: EvaluationConfig, output: Path, *, reward: Path | None = None, **inputs: Path) -> Metrics:
    """Answer, judge, compare; writes `answers.jsonl` and gives every table of the report as metrics.

    Raises:
        UserError: without candidates, for a name that no candidate has, when the judge lacks what it needs, or for
            prompts that don't fit.
    """
    from gptlife.stages.evals.judging import Judging
    from gptlife.stages.evals.prompt_sets import load_sets
    from gptlife.stages.evals.reward import RewardModel
    from gptlife.stages.runtime.artifact import CHECKPOINTS
    from gptlife.stages.training.setup import accelerator_for

    started = time.monotonic()
    check(config, [*inputs] if reward is None else [*inputs, REWARD])
    bases = _base_models(config, inputs)
    _check_baseline(config, inputs, bases)
    accelerator = accelerator_for(config, output)
    if accelerator.num_processes > 1:
        raise UserError("evaluation.launcher: runs in one process; leave the launcher out for this stage")
    sets = load_sets(config.prompts, config.further_prompts, config.seed)
    outputs = _outputs(config, accelerator, inputs, bases, sets, output)
    scorer = RewardModel(reward, config.ensemble, accelerator.device) if reward is not None else None
    judging = Judging(config.judge, sets, outputs, scorer, output / CHECKPOINTS / "replies.jsonl")
    metrics = {"judge": _name_of_judge(config.judge, reward, inputs), **_metrics(config, sets, outputs, judging)}
    _write(output / "answers.jsonl", sets[MAIN], outputs, judging)
    return {**metrics, "seconds": round(time.monotonic() - started, 2)}


def _base_models(config: EvaluationConfig, inputs: Mapping[str, Path]) -> list[str]:
    """Inputs that continue text."""
    from gptlife.stages.evals.candidates import continues_text

    if config.continuations is None:
        return [name for name, path in inputs.items() if continues_text(name, path)]
    return config.continuations


def check(config: EvaluationConfig, inputs: Collection[str]) -> None:
    """Refuse fields that name an input or a candidate which is not there.

    Which inputs are base models is only known when they are made: until then each could be.

    Raises:
        UserError: for the first such field, or without candidates.
    """
    names = [name for name in inputs if name != REWARD]
    if not names:
        raise UserError("evaluation.inputs: no candidates; give at least one model or output of best_of_n, by any name")
    for name in config.continuations or ():
        if name not in names:
            raise UserError(f"evaluation.continuations: no input is called '{name}'{suggest(name, names)}")
    _check_baseline(config, names, names if config.continuations is None else config.continuations)
    if config.judge.reward_model and REWARD not in inputs:
        raise UserError("evaluation.judge: reward_model needs the input `reward`; give it, or name another judge")


def _check_baseline(config: EvaluationConfig, inputs: Collection[str], bases: Collection[str]) -> None:
    names = [*inputs, *(f"{name}{PROMPTED}" for name in bases if config.shots is not None)]
    # A stage.yaml has every field, so a baseline that the user named can't be told from the default.
    chosen = config.baseline != EvaluationConfig.model_fields["baseline"].default
    if config.baseline not in names and (config.judge.llm is not None or chosen):
        hint = suggest(config.baseline, names)
        raise UserError(f"evaluation.baseline: no candidate is called '{config.baseline}'{hint}")


def _outputs(
    config: EvaluationConfig,
    accelerator: Accelerator,
    inputs: Mapping[str, Path],
    bases: list[str],
    sets: Mapping[str, PromptSet],
    output: Path,
) -> dict[str, Outputs]:
    """What every candidate gives, in the inputs' order."""
    from gptlife.data.forms import conversations
    from gptlife.stages.evals import outputs
    from gptlife.stages.evals.candidates import Sampling, continuations, load_candidates

    sampling = Sampling(config.max_new_tokens, config.temperature, config.generation_batch_size)
    rows = conversations(config.shots)[: config.n_shots] if config.shots is not None and bases else None
    shots = None if rows is None else [row["messages"] for row in rows]
    as_base = continuations(config.plain_format, config.stop, shots, config.shot_format)

    def ask(name: str, path: Path) -> dict[str, Outputs]:
        if outputs.has_ready_answers(path):
            return {name: outputs.ready_outputs(path, sets[MAIN])}
        ways = as_base if name in bases else {"": None}
        candidates = load_candidates(name, path, ways, sampling, accelerator, config.micro_batch_tokens, output)
        return outputs.outputs_of_model(candidates, sets, config.tax(), config.tasks, path)

    return outputs.outputs_of_all(inputs, ask, output)


def _metrics(
    config: EvaluationConfig, sets: Mapping[str, PromptSet], outputs: Mapping[str, Outputs], judging: Judging
) -> Metrics:
    """Every table of the report."""
    from gptlife.reward.judges.verdicts import scores_of
    from gptlife.stages.evals import tables

    def described(name: str, key: str) -> tables.Table:
        return tables.described(outputs[name].answers[key].texts, judging.verdicts(name, key))

    rows, texts = sets[MAIN].rows, {name: given.answers[MAIN].texts for name, given in outputs.items()}
    metrics: Metrics = {
        "prompts": len(rows),
        "models": {
            name: {
                **described(name, MAIN),
                **judging.by_reward_model(name),
                "parameters": given.parameters,
                "algorithm": given.algorithm,
            }
            for name, given in outputs.items()
        },
        "win_rates": tables.win_rates(texts, judging.prefer, config.baseline, config.judge.llm is not None),
        "tax": {name: given.tax for name, given in outputs.items() if given.tax},
        "further": {
            key: {name: described(name, key) for name, given in outputs.items() if key in given.answers}
            for key in config.further_prompts
        },
        "samples": [
            {"prompt": row["messages"][-1]["content"], "answers": {name: texts[name][i] for name in texts}}
            for i, row in enumerate(rows[: config.n_samples])
        ],
        **judging.usage(),
    }
    verdicts = {name: judging.verdicts(name, MAIN) or [] for name in outputs}
    scores = {name: scores_of(each) for name, each in verdicts.items() if each}
    further_tables = {
        "use_cases": tables.by_group(rows, scores, config.group_by) if scores else {},
        "honesty": {name: table for name, each in verdicts.items() if (table := tables.honesty(each))},
        "tasks": tables.tasks_table({name: given.tasks for name, given in outputs.items()}),
    }
    return metrics | {name: table for name, table in further_tables.items() if table}


def _name_of_judge(judge: JudgeConfig, reward: Path | None, inputs: Mapping[str, Path]) -> str:
    from gptlife.stages.evals.judging import name_of_reward

    return name_of_reward(reward, inputs) if judge.reward_model and reward is not None else describe(judge)


def _write(path: Path, prompts: PromptSet, outputs: Mapping[str, Outputs], judging: Judging) -> None:
    """`answers.jsonl`: a row per main prompt."""
    scores = {name: judging.scores(name) for name in outputs}
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(prompts.rows):
            answers: dict[str, Any] = {}
            for name, given in outputs.items():
                texts, finished = given.answers[MAIN]
                answers[name] = {"text": texts[i], "finished": finished[i]}
                if (each := scores[name]) is not None:
                    answers[name]["score"] = each[i]
            file.write(json.dumps({**row, "answers": answers}, ensure_ascii=False) + "\n")


STAGE = Stage(
    "evaluation",
    EvaluationConfig,
    run,
    optional=(REWARD,),
    open=True,
    check=check,
    version=5,
    title="evaluation",
    family="evaluation",
    about="Answers of several checkpoints to the same unseen prompts, with a judge's scores.",
)

if __name__ == "__main__":
    STAGE.main()
