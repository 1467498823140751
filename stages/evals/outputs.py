"""What each candidate gave in an evaluation: its answers, and what the tasks measured; kept input by input.

An evaluation that was killed goes on with the next input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptlife.data.errors import UserError
from gptlife.stages.evals.candidates import Answers, Candidate
from gptlife.stages.evals.prompt_sets import MAIN, PromptSet
from gptlife.stages.evals.tasks.task import Task
from gptlife.stages.runtime.artifact import CHECKPOINTS, METRICS
from gptlife.stages.runtime.files import keep_piece, kept_piece, read_json
from gptlife.stages.runtime.metric_log import MetricLog
from gptlife.stages.runtime.stage import Metrics

READY = "answers.jsonl"
"""What `best_of_n` writes: `messages` and `best` in each row."""


@dataclass
class Outputs:
    """What one candidate gave."""

    answers: dict[str, Answers]
    """By set of prompts."""
    tax: Metrics = field(default_factory=dict)
    """Validation loss and few-shot accuracy; empty for answers that no model was loaded for."""
    tasks: dict[str, Metrics] = field(default_factory=dict)
    """By task."""
    parameters: int | None = None
    algorithm: str | None = None
    """What the training says of itself (PPO, PPO-ptx, RLOO, ...)."""


def outputs_of_all(
    inputs: Mapping[str, Path], ask: Callable[[str, Path], dict[str, Outputs]], output: Path
) -> dict[str, Outputs]:
    """`ask(name, path)` of every input in order, by candidate; what `output` keeps is not asked again."""
    outputs: dict[str, Outputs] = {}
    with MetricLog(output, "evaluation", len(inputs), track=None) as journal:
        for number, (name, path) in enumerate(inputs.items(), 1):
            piece = output / CHECKPOINTS / f"{name}.json"
            kept = kept_piece(piece)
            if kept is None:
                kept = {candidate: asdict(given) for candidate, given in ask(name, path).items()}
                keep_piece(piece, kept)
            for candidate, given in kept.items():
                answers = {key: Answers(*pair) for key, pair in given.pop("answers").items()}
                outputs[candidate] = Outputs(answers, **given)
            journal.log(number, {}, name)
    return outputs


def outputs_of_model(
    candidates: Sequence[Candidate],
    sets: Mapping[str, PromptSet],
    tax: Sequence[Task],
    tasks: Mapping[str, Task],
    path: Path,
) -> dict[str, Outputs]:
    """By candidate; `candidates` are one model (from `path`) asked in several ways, so the tasks run once."""
    first = candidates[0]
    made = read_json(path / METRICS) if (path / METRICS).is_file() else {}
    about: dict[str, Any] = {
        "tax": {metric: estimate for task in tax for metric, estimate in task.run(first).items()},
        "tasks": {name: task.run(first) for name, task in tasks.items()},
        "parameters": first.model.num_parameters(),
        "algorithm": made.get("algorithm"),
    }
    return {
        candidate.name: Outputs({key: candidate.answer(prompts) for key, prompts in sets.items()}, **about)
        for candidate in candidates
    }


def has_ready_answers(path: Path) -> bool:
    """Whether an input brings its answers along instead of a model."""
    return (path / READY).is_file() and not (path / "config.json").is_file()


def ready_outputs(path: Path, prompts: PromptSet) -> Outputs:
    """The answers that `best_of_n` chose; without a note of how an answer ended, it counts as finished.

    Raises:
        UserError: when they are to other prompts.
    """
    rows = [json.loads(line) for line in (path / READY).read_text(encoding="utf-8").split("\n") if line]
    if [row["messages"] for row in rows] != [row["messages"] for row in prompts.rows]:
        raise UserError(f"{path}: its answers are to other prompts; give best_of_n the same `prompts` as evaluation")
    finished = [row["finished"][row["answers"].index(row["best"])] if "finished" in row else True for row in rows]
    return Outputs({MAIN: Answers([row["best"] for row in rows], finished)}, algorithm="best of n")
