"""Evaluation tasks, one file each: a config with `run(candidate) -> {metric: estimate}`.

A new task is a file here and an entry in `TASKS`. A recipe chooses it with `tasks: {name: {fields}}` in the table
`evaluation`; its metrics come out as `tasks.<name>.<candidate>`, which the report shows as a plain table.
"""

from __future__ import annotations

from typing import Any

from gptlife.data.config import decode
from gptlife.data.errors import UserError, suggest
from gptlife.stages.evals.tasks.lm_loss import LMLoss
from gptlife.stages.evals.tasks.multiple_choice import MultipleChoice
from gptlife.stages.evals.tasks.task import Task

TASKS: tuple[type[Task], ...] = (LMLoss, MultipleChoice)


def decode_tasks(tables: Any) -> dict[str, Task]:
    """Each table of fields as the task that its key names; finished tasks pass.

    Raises:
        UserError: for an unknown task or field.
    """
    if not isinstance(tables, dict):
        raise UserError(f"expected a table of tasks, found {tables!r}")
    kinds = {kind.name: kind for kind in TASKS}
    tasks = {}
    for name, table in tables.items():
        if name not in kinds:
            raise UserError(f"no task '{name}'{suggest(str(name), list(kinds))}")
        tasks[name] = table if isinstance(table, Task) else decode(kinds[name], table, name)
    return tasks
