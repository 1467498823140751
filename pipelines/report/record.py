"""What lies on disk of a plan's steps: metrics, manifest, log and config, as the report reads them.

A step may be finished, unfinished or not started, and a file half written or damaged: what can't be read is empty, and
the record keeps the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gptlife.data.errors import UserError
from gptlife.pipelines import outputs
from gptlife.pipelines.outputs import Table
from gptlife.pipelines.planner import Planned
from gptlife.stages.runtime import artifact, files


@dataclass(frozen=True)
class Record:
    """What lies on disk of one step; all of it is empty where nothing does."""

    step: Planned
    state: str
    metrics: Table
    manifest: Table
    log: list[Table]
    config: str
    """stage.yaml as text, or what it will say."""
    problems: tuple[str, ...]
    fields: Table = field(default_factory=dict)
    """The config's fields in stage.yaml, by today's names."""

    @property
    def name(self) -> str:
        """The step's name in the recipe."""
        return self.step.name

    @property
    def stage(self) -> str:
        """The name of its stage; steps that are `like` one another have the same."""
        return self.step.stage.name

    @property
    def family(self) -> str:
        """What kind of output its stage makes (`runtime.stage.Family`)."""
        return self.step.stage.family

    @property
    def title(self) -> str:
        """What the report calls it: the algorithm that its metrics name, or its stage's title.

        The word `n` in a title is replaced by the config's `answer_n`.
        """
        if self.metrics.get("algorithm"):
            return str(self.metrics["algorithm"])
        n = self.metrics.get("answer_n") or self.field("answer_n") or "n"
        return re.sub(r"\bn\b", str(n), self.step.stage.title or self.stage)

    @property
    def progress(self) -> str:
        """The state in words, with how far an unfinished stage has come."""
        if self.step.adopted is not None and self.state == "done":
            return f"adopted from {self.step.adopted}"
        if self.state != "partial":
            return {"done": "done", "to do": "not started"}[self.state]
        if not self.log:
            return "unfinished"
        total = self.field("steps")
        return f"unfinished, at step {self.log[-1].get('step')}" + (f" of {total}" if total else "")

    def field(self, name: str) -> Any:
        """A field of its config, by today's name; None where the config has none."""
        return self.fields.get(name, getattr(self.step.config, name, None))

    def upstream(self, name: str) -> str | None:
        """The step whose output the input `name` is."""
        planned = self.step.inputs.get(name)
        return None if planned is None else planned.name

    def latest(self, key: str) -> Any:
        """A metric, or the last value in the log of an unfinished stage."""
        return self.metrics.get(key, self.log[-1].get(key) if self.log else None)


def begun(records: Sequence[Record]) -> list[Record]:
    """Those that have something to show."""
    return [record for record in records if record.metrics or record.log]


def read(step: Planned) -> Record:
    """What there is of a step; a file that can't be read is one of the record's problems, never an error."""
    state, problems = step.state, []
    folder = artifact.partial_of(step.path) if state == "partial" else step.path

    def table(name: str) -> Table:
        try:
            content = files.read_json(folder / name) if (folder / name).is_file() else {}
            return content if isinstance(content, dict) else {}
        except (UserError, OSError, UnicodeDecodeError) as error:
            problems.append(str(error))
            return {}

    manifest = table(artifact.MANIFEST)
    metrics, log = artifact.measured(table(artifact.METRICS), manifest), outputs.read_log(folder)
    try:
        if manifest:
            artifact.verify(folder, (artifact.METRICS, artifact.LOG))
    except UserError as error:
        metrics, log = {}, []
        problems.append(str(error))
    config, fields = _config_of(step, folder)
    return Record(step, state, metrics, manifest, log, config, tuple(dict.fromkeys(problems)), fields)


def _config_of(step: Planned, folder: Path) -> tuple[str, Table]:
    """The step's stage.yaml as text, without `identity` and `input_addresses`, which repeat it; and its fields."""
    path, content = folder / artifact.STAGE_FILE, None
    if path.is_file():
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
        except yaml.YAMLError:
            return f"{path.name} is damaged", {}
    fields = outputs.fields_of(content, step.stage.config) if isinstance(content, dict) else {}
    if not isinstance(content, dict):
        content = step.config.model_dump(mode="json") if step.config else {"adopt": str(step.adopted)}
    shown = {key: value for key, value in content.items() if key not in ("identity", "input_addresses")}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), fields
