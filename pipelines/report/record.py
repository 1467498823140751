"""What lies on disk of a plan's steps: metrics, manifest, log and config, as the report reads them.

A step may be finished, unfinished or not begun, and a file half written or damaged; what can't be read is empty and
its complaint is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlife.data.errors import UserError
from gptlife.pipelines.planner import Planned
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.files import read_json

Table = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What lies on disk of one step; everything is empty where nothing does."""

    step: Planned
    state: str
    metrics: Table
    manifest: Table
    log: list[Table]
    config: str
    """stage.yaml as text, or what it will say."""
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The step's name in the recipe."""
        return self.step.name

    @property
    def stage(self) -> str:
        """The name of its stage, which the steps that are like one another share."""
        return self.step.stage.name

    @property
    def standing(self) -> str:
        """The state in words, with how far an unfinished stage has come."""
        if self.step.adopted is not None and self.state == "done":
            return f"adopted from {self.step.adopted}"
        if self.state != "partial":
            return {"done": "done", "to do": "not started"}[self.state]
        if not self.log:
            return "unfinished"
        total = getattr(self.step.config, "steps", None)
        return f"unfinished, at step {self.log[-1].get('step')}" + (f" of {total}" if total else "")

    def field(self, name: str) -> Any:
        """A field of its config; None where the config has none."""
        return getattr(self.step.config, name, None)

    def upstream(self, name: str) -> str | None:
        """The step that an input is from."""
        planned = self.step.inputs.get(name)
        return None if planned is None else planned.name

    def latest(self, key: str) -> Any:
        """A metric, or what the log of an unfinished stage says last."""
        return self.metrics.get(key, self.log[-1].get(key) if self.log else None)


def of_stage(records: Iterable[Record], *stages: str) -> list[Record]:
    """The records of these stages, in the plan's order, the one that is called like its stage first."""
    found = [record for record in records if record.stage in stages]
    return sorted(found, key=lambda record: (record.name != record.stage, stages.index(record.stage)))


def begun(records: Sequence[Record]) -> list[Record]:
    """Those that have something to show."""
    return [record for record in records if record.metrics or record.log]


def read(step: Planned) -> Record:
    """Whatever there is of a step; a file that can't be read is a problem of the record, no error."""
    state, problems = step.state, []
    folder = artifact.partial_of(step.path) if state == "partial" else step.path

    def table(name: str) -> Table:
        try:
            found = read_json(folder / name) if (folder / name).is_file() else {}
            return found if isinstance(found, dict) else {}
        except (UserError, OSError, UnicodeDecodeError) as error:
            problems.append(str(error))
            return {}

    manifest = table(artifact.MANIFEST)
    metrics, log = artifact.measured(table(artifact.METRICS), manifest), _log_of(folder)
    try:
        if manifest:
            artifact.verify(folder, (artifact.METRICS, artifact.LOG))
    except UserError as error:
        metrics, log = {}, []
        problems.append(str(error))
    return Record(step, state, metrics, manifest, log, _config_of(step, folder), tuple(dict.fromkeys(problems)))


def _log_of(folder: Path) -> list[Table]:
    """The rows of log.jsonl; it is written line by line while a stage works, so the last one may be half there."""
    found = []
    if (folder / artifact.LOG).is_file():
        for line in (folder / artifact.LOG).read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
    return found


def _config_of(step: Planned, folder: Path) -> str:
    """The step's stage.yaml without `identity` and `input_addresses`, which say the same again."""
    path, known = folder / artifact.STAGE_FILE, None
    if path.is_file():
        try:
            known = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
        except yaml.YAMLError:
            return f"{path.name} is damaged"
    if not isinstance(known, dict):
        known = step.config.model_dump(mode="json") if step.config else {"adopt": str(step.adopted)}
    kept = {key: value for key, value in known.items() if key not in ("identity", "input_addresses")}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
