"""From a recipe to addresses: where every output will be, computed before anything has run.

An output's address is `step-<12 hex digits>` of the sha256 of the canonical JSON of stage, version, config (without
its `Execution` fields; data files by content) and the inputs' addresses: a Merkle chain, so a change gives new
addresses to what is downstream of it and to nothing else. Paths, launchers and devices never enter.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlife.data.config import HashFile
from gptlife.data.errors import UserError
from gptlife.pipelines.recipe import Adopted, Recipe, Table, files_of
from gptlife.pipelines.store import Store
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.stage import Stage, StageConfig


@dataclass(frozen=True)
class Planned:
    """One step of a plan: what will run, and the path of its output. `config` is None where a model is adopted."""

    name: str
    stage: Stage
    module: str
    config: StageConfig | None
    adopted: Adopted | None
    launcher: tuple[str, ...]
    inputs: dict[str, Planned]
    address: str
    path: Path

    @property
    def external(self) -> bool:
        """Whether the output is a directory of the user's, which gptlife only reads."""
        return self.adopted is not None and self.adopted.directory is not None

    @property
    def state(self) -> str:
        """`done`, `partial` or `to do`, by what is on disk now."""
        if self.external or artifact.is_complete(self.path):
            return "done"
        return "partial" if artifact.partial_of(self.path).is_dir() else "to do"


def plan(recipe: Recipe, store: Store, hash_file: HashFile | None = None) -> list[Planned]:
    """Every step of the recipe in order, with its address.

    Raises:
        UserError: where a data file or a required input is missing, or a stage refuses its config with these inputs.
    """
    done: dict[str, Planned] = {}
    try:
        for table in recipe.tables:
            stage, where = table.step.stage, f"{recipe.where}: {table.step.name}"
            inputs = _inputs(table, done, recipe.where)
            _check(table, inputs, where)
            address = _address(stage, table.config, table.adopted, inputs, hash_file or store.hash_file, where)
            adopted = table.adopted.directory if table.adopted else None
            done[table.step.name] = Planned(
                name=table.step.name,
                stage=stage,
                module=table.step.module,
                config=table.config,
                adopted=table.adopted,
                launcher=table.launcher,
                inputs=inputs,
                address=address,
                path=adopted or store.path(address),
            )
    finally:
        store.save_hashes()
    return list(done.values())


def address_now(planned: Planned, hash_file: HashFile) -> str:
    """The address of a step, computed again: it differs when its data files changed since the plan was made."""
    parts = (planned.stage, planned.config, planned.adopted, planned.inputs)
    return _address(*parts, hash_file, planned.name)


def _address(
    stage: Stage,
    config: StageConfig | None,
    adopted: Adopted | None,
    inputs: Mapping[str, Planned],
    hash_file: HashFile,
    where: str,
) -> str:
    try:
        if config is None:
            identity = {"adopt": _adopted_identity(adopted, hash_file)}
        else:
            upstream = {name: planned.address for name, planned in inputs.items()}
            identity = {**stage.identity(config, hash_file), "inputs": upstream}
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for path, number in _floats(identity.get("config"), where):
        if not math.isfinite(number):
            raise UserError(f"{path}: {number} can't be part of an address; give a finite number")
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{stage.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _inputs(table: Table, done: Mapping[str, Planned], where: str) -> dict[str, Planned]:
    """The steps that a table reads, without droppable ones that the recipe leaves out; an adopted step reads none."""
    if table.adopted is not None:
        return {}
    step = table.step
    inputs = {}
    for name in step.stage.inputs:
        if name not in step.inputs:
            raise UserError(f"{where}: {step.name} needs the input '{name}'; wire it, as in step(STAGE, {name}=...)")
    for name, upstream in step.inputs.items():
        if upstream in done:
            inputs[name] = done[upstream]
        elif name not in step.droppable:
            raise UserError(
                f"{where}: {step.name} reads {upstream} (as '{name}'), but the recipe has no table '{upstream}'; "
                f"add it, or give `{upstream}: {{adopt: <directory or hub id@revision>}}`"
            )
    return inputs


def _check(table: Table, inputs: Mapping[str, Planned], where: str) -> None:
    """What the stage refuses by its config and the names of its inputs, before anything runs."""
    stage = table.step.stage
    if table.config is None or stage.check is None:
        return
    try:
        stage.check(table.config, inputs)
    except UserError as error:
        raise UserError(f"{where}{str(error).removeprefix(stage.name)}") from None


def _adopted_identity(adopted: Adopted | None, hash_file: HashFile) -> Any:
    assert adopted is not None, "a step without a config is adopted"
    if adopted.directory is None:
        return {"hub": adopted.hub, "revision": adopted.revision}
    directory = adopted.directory
    return {"files": {str(path.relative_to(directory)): hash_file(str(path)) for path in files_of(directory)}}


def _floats(value: Any, where: str) -> list[tuple[str, float]]:
    if isinstance(value, float):
        return [(where, value)]
    if isinstance(value, dict):
        return [each for key, item in value.items() for each in _floats(item, f"{where}.{key}")]
    if isinstance(value, list):
        return [each for index, item in enumerate(value) for each in _floats(item, f"{where}[{index}]")]
    return []
