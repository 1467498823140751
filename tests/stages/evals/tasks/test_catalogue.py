"""Tasks of a recipe's own choosing: how they are named, refused, addressed and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.stages import evaluation
from gptlife.stages.evals.tasks import catalogue as tasks
from gptlife.stages.evals.tasks.task import Task


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    judge = {"function": f"{tiny.functions}:count_e"}
    return {"prompts": str(tiny.prompts), "judge": judge, "max_new_tokens": 8, "n_samples": 3, **changes}


class Longest(Task):
    """A task in one file: how long the longest answer is."""

    name: ClassVar[str] = "longest"
    times: int = 1
    """Factor."""

    def run(self, candidate: Any) -> dict[str, Any]:
        from gptlife.stages.evals.prompt_sets import PromptSet

        rows = [{"messages": [{"role": "user", "content": "What does Anna have?"}]}]
        answers = candidate.answer(PromptSet(rows, "longest", "evaluation.tasks.longest"))
        return {"characters": self.times * max(map(len, answers.texts)), "asked": candidate.name}


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one entry that a new task needs."""
    monkeypatch.setattr(tasks, "TASKS", (*tasks.TASKS, Longest))


def test_a_new_task_is_a_class_and_an_entry(longest: None, tiny: Any, run: Any, tmp_path: Path) -> None:
    options = fields(tiny, tasks={"longest": {"times": 10}, "lm_loss": {"validation": str(tiny.held_out)}})
    inputs = {"base": tiny.pretrain, "sft": tiny.sft}
    metrics = run(evaluation.STAGE, options, tmp_path / "one", **inputs)
    assert {name: table["asked"] for name, table in metrics["tasks"]["longest"].items()} == {
        "base": "base",
        "sft": "sft",
    }
    assert metrics["tasks"]["longest"]["sft"]["characters"] % 10 == 0 < metrics["tasks"]["longest"]["sft"]["characters"]
    by_field = run(evaluation.STAGE, fields(tiny, validation=str(tiny.held_out)), tmp_path / "two", **inputs)
    assert metrics["tasks"]["lm_loss"] == by_field["tax"]
    assert "tasks" not in by_field


def test_tasks_enter_the_address_by_content_and_survive_a_stage_file(longest: None, tiny: Any) -> None:
    def config(**changes: Any) -> evaluation.EvaluationConfig:
        return decode(evaluation.EvaluationConfig, fields(tiny, **changes), "evaluation")

    def hash_file(path: str) -> str:
        return f"hash of {Path(path).name}"

    assert "tasks" not in config().identity(hash_file)  # outputs that were made before keep their addresses
    chosen = config(tasks={"longest": {"times": 2}, "lm_loss": {"validation": str(tiny.held_out)}})
    identity = chosen.identity(hash_file)["tasks"]
    assert identity["longest"] == {"times": 2}
    assert "hash of held_out.jsonl" in str(identity)
    assert str(tiny.held_out.parent) not in str(identity)
    again = yaml.safe_load(yaml.safe_dump(chosen.model_dump(mode="json")))
    assert decode(evaluation.EvaluationConfig, again, "evaluation") == chosen


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"lm_los": {}}, "evaluation.tasks: no task 'lm_los'; did you mean 'lm_loss'?"),
        ({"lm_loss": {}}, "evaluation.tasks: lm_loss.validation: required, but not given"),
        ({"lm_loss": {"validation": "x.txt", "lenght": 3}}, "evaluation.tasks: lm_loss.lenght: no such field"),
        (["lm_loss"], "evaluation.tasks: expected a table of tasks, found ['lm_loss']"),
    ],
)
def test_what_is_wrong_with_a_task_is_one_line(tiny: Any, table: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        decode(evaluation.EvaluationConfig, fields(tiny, tasks=table), "evaluation")
    assert str(error.value).startswith(said)


def test_every_task_has_a_name_of_its_own() -> None:
    assert len({task.name for task in tasks.TASKS}) == len(tasks.TASKS)
