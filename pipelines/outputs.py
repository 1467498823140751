"""What lies in an output's directory, read for people: its log, its fields by today's names, its numbers.

A file may be missing, half written or from before a field was renamed; what can't be read is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptlife.data.config import Config, Was
from gptlife.stages.runtime import artifact

Table = dict[str, Any]
NOTES = ("stage", "version", "identity", "inputs", "input_addresses", "output")
"""What a stage.yaml says beside the config's fields."""


def read_log(folder: Path) -> list[Table]:
    """The rows of log.jsonl; a stage writes it line by line as it works, so the last line may be incomplete."""
    path, rows = folder / artifact.LOG, []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
    return rows


def fields_of(stage_file: Mapping[str, Any], config: type[Config] | None) -> Table:
    """The config's fields in a decoded stage.yaml; one that was written under an older name gets today's."""
    return {todays_name(name, config): value for name, value in stage_file.items() if name not in NOTES}


def todays_name(name: str, config: type[Config] | None) -> str:
    """What the field `name` of an old stage.yaml is called now."""
    for today, field in (config.model_fields if config else {}).items():
        if any(isinstance(mark, Was) and mark.name == name for mark in field.metadata):
            return today
    return name
