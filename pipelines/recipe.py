"""Recipes: one YAML file for a whole life, one table per step; a step without a table is left out.

    seed: 0                                  # of every stage that sets none itself
    vars: {data: ./mine}                     # ${data} inside any string below
    launcher: accelerate launch              # prefix of every stage's command
    trust_remote_code: false                 # whether code beside an adopted model may run
    deterministic: false                     # whether a GPU must give the same bits each time
    tokenizer: {data: "${data}/*.txt", vocab_size: 4096}
    pretrain: {adopt: openai-community/gpt2@<revision>}    # not run: used as it is
    sft: {data: "${data}/chat.jsonl", launcher: torchrun --nproc_per_node 2}
    ppo_plain: {like: ppo, pretraining: null}              # a branch: see chain.py
    extends: quickstart                      # another recipe, over which these tables are laid, field by field

`load` decodes every table strictly, so that a misspelt field is refused before anything has run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gptlife.data.config import decode
from gptlife.data.errors import UserError, suggest
from gptlife.data.yaml_tables import apply_overrides, parse_yaml, put, read_yaml
from gptlife.pipelines.chain import INPUTS, LIKE, chain
from gptlife.pipelines.lifecycle import Step
from gptlife.stages.runtime.stage import StageConfig

_OF_EVERY_STEP = ("seed", "trust_remote_code", "deterministic")
_TOP = (*_OF_EVERY_STEP, "vars", "launcher")
_EXTENDS = "extends"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_MOVING = ("main", "master", "HEAD")


@dataclass(frozen=True)
class Adopted:
    """An existing model in place of a step's output: a local `directory`, or a `hub` id at a `revision`."""

    directory: Path | None = None
    hub: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return str(self.directory) if self.directory else f"{self.hub}@{self.revision}"


@dataclass(frozen=True)
class Table:
    """One step of a recipe, decoded: `config`, or `adopted` instead of it. `launcher` never enters the address."""

    step: Step
    config: StageConfig | None
    adopted: Adopted | None
    launcher: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A decoded recipe. `where` names it in errors; `source` and `overrides` load it again."""

    name: str
    where: str
    source: str
    overrides: tuple[str, ...]
    tables: tuple[Table, ...]


def shipped() -> dict[str, str]:
    """The recipes that come with the package: name and the first line of the header."""
    texts = {name: _shipped_text(name) for name in _shipped_names()}
    return {name: text.splitlines()[0].lstrip("# ") if text.startswith("#") else "" for name, text in texts.items()}


def load(source: str, overrides: Sequence[str], steps: Sequence[Step]) -> Recipe:
    """Read a recipe (a shipped one's name, or the path of a file) for the chain `steps`.

    Overrides are `step.field=value`, `seed=3`, `launcher=...`, `vars.name=value` or `step=null` (leave it out).

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    name, where, raw = _read(source)
    names = [step.name for step in steps]
    if twice := [step for step in names if names.count(step) > 1]:
        raise UserError(f"steps: two are called '{twice[0]}'; leave one out, or give it another name")
    _refuse_unknown_variables(raw.get("vars"), overrides)
    raw = apply_overrides(raw, list(overrides))
    for key, table in raw.items():
        if key not in (*_TOP, *names) and not (isinstance(table, dict) and LIKE in table):
            raise UserError(f"{where}: {key}: no such step or setting{suggest(str(key), [*names, *_TOP])}")
    variables = raw.pop("vars", None) or {}
    if not isinstance(variables, dict):
        raise UserError(f"{where}: vars: expected a table of names and values, found {variables!r}")
    raw = {key: _substituted(value, variables, f"{where}: {key}") for key, value in raw.items()}
    seed = raw.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise UserError(f"{where}: seed: expected a whole number, found {seed!r}")
    launcher = _words(raw.get("launcher"), f"{where}: launcher")
    named = {str(key): table for key, table in raw.items() if key not in _TOP}
    shared = {key: raw[key] for key in _OF_EVERY_STEP if raw.get(key) is not None}
    tables = tuple(
        _table(step, fields, shared, launcher, f"{where}: {step.name}") for step, fields in chain(named, steps, where)
    )
    if not tables:
        raise UserError(f"{where}: no step has a table; add at least one of: {', '.join(names)}")
    return Recipe(name, where, source, tuple(overrides), tables)


def _read(source: str, via: tuple[str, ...] = ()) -> tuple[str, str, dict[str, Any]]:
    """(name, name in errors, tables) of a recipe, laid over the one that it extends."""
    name, where, raw = _read_one(source)
    base = raw.pop(_EXTENDS, None)
    if base is None:
        return name, where, raw
    if not isinstance(base, str) or base in (*via, source):
        raise UserError(f"{where}: {_EXTENDS}: expected another recipe's name or path, found {base!r}")
    _, _, below = _read(base, (*via, source))
    for key, table in raw.items():
        if table is None and key in below:
            del below[key]  # also a step that only the other recipe has
            continue
        if not (isinstance(table, dict) and isinstance(below.get(key), dict)) or {"adopt", LIKE} & {*table}:
            below[key] = table
            continue
        for field, value in table.items():
            if field == INPUTS and isinstance(value, dict):
                value = {**(below[key].get(field) or {}), **value}
            put(below[key], str(field), value, f"{where}: {key}")
    return name, where, below


def _read_one(source: str) -> tuple[str, str, dict[str, Any]]:
    if source.endswith((".yaml", ".yml")) or "/" in source:
        return Path(source).stem, source, read_yaml(Path(source))
    names = _shipped_names()
    if source not in names:
        raise UserError(f"{source}: not a shipped recipe (a file's name ends in .yaml){suggest(source, names)}")
    where = f"{source}.yaml"
    return source, where, parse_yaml(_shipped_text(source), where)


def _shipped_names() -> list[str]:
    folder = resources.files("gptlife.pipelines.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _shipped_text(name: str) -> str:
    return resources.files("gptlife.pipelines.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _refuse_unknown_variables(variables: Any, overrides: Sequence[str]) -> None:
    """Refuse `vars.dta=x`, which would define a variable that nothing reads."""
    defined = list(variables) if isinstance(variables, dict) else []
    for override in overrides:
        name = override.partition("=")[0].strip()
        if name.startswith("vars.") and name.removeprefix("vars.") not in defined:
            hint = suggest(name.removeprefix("vars."), defined) if defined else ""
            raise UserError(f"{override}: the recipe has no variable '{name.removeprefix('vars.')}'{hint}")


def _substituted(value: Any, variables: dict[str, Any], where: str) -> Any:
    """`value` with every `${name}` replaced; a string that is nothing but one variable also takes its type."""
    if isinstance(value, dict):
        return {key: _substituted(item, variables, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_substituted(item, variables, f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    look_up = _look_up(variables, where)
    whole = _VARIABLE.fullmatch(value)
    return look_up(whole[1]) if whole else _VARIABLE.sub(lambda match: str(look_up(match[1])), value)


def _look_up(variables: dict[str, Any], where: str) -> Callable[[str], Any]:
    def look_up(name: str) -> Any:
        if name not in variables:
            hint = suggest(name, [str(each) for each in variables]) if variables else "; define it under `vars`"
            raise UserError(f"{where}: no variable '{name}'{hint}")
        if variables[name] is None:
            raise UserError(f"{where}: variable '{name}' has no value yet; give it, as in vars.{name}=...")
        return variables[name]

    return look_up


def _table(step: Step, raw: dict[str, Any], shared: dict[str, Any], launcher: tuple[str, ...], where: str) -> Table:
    fields = dict(raw)
    if "adopt" in fields:
        if len(fields) > 1:
            others = ", ".join(f"'{key}'" for key in fields if key != "adopt")
            raise UserError(
                f"{where}: 'adopt' replaces all fields, found {others} besides it; "
                f"remove them (as an override: {step.name}={{adopt: ...}})"
            )
        return Table(step, None, _adopted(fields["adopt"], f"{where}.adopt"), ())
    if "launcher" in fields:
        launcher = _words(fields.pop("launcher"), f"{where}.launcher")
    return Table(step, decode(step.stage.config, {**shared, **fields}, where), None, launcher)


def _words(value: Any, where: str) -> tuple[str, ...]:
    """A command's prefix as words; a string is split as a shell would."""
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise UserError(f"{where}: {str(error).lower()}, found {value!r}; fix the quotes") from None
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise UserError(f"{where}: expected a command's words, found {value!r}; write it as one string")


def _adopted(source: Any, where: str) -> Adopted:
    """An existing directory, or `id@revision`. A branch is refused: its content changes, but the address would not."""
    if not isinstance(source, str) or not source:
        raise UserError(f"{where}: expected a directory or <hub id>@<revision>, found {source!r}")
    directory = Path(source).expanduser()
    if directory.is_dir():
        if not any(files_of(directory)):
            raise UserError(f"{where}: {source} is an empty directory; give the directory of a saved model")
        return Adopted(directory=directory.absolute())
    hub, at, revision = source.partition("@")
    if source.startswith(("/", ".", "~")) or hub.count("/") > 1:
        raise UserError(f"{where}: {source}: no such directory; give a directory or <hub id>@<revision>")
    if not at or not revision:
        raise UserError(
            f"{where}: {source} is not a directory, and as a hub id it needs a revision; "
            f"give {hub}@<commit of 40 hex digits, or tag>"
        )
    if revision in _MOVING:
        raise UserError(
            f"{where}: {source}: '{revision}' is a branch, whose content changes; "
            f"give {hub}@<commit of 40 hex digits, or tag>"
        )
    return Adopted(hub=hub, revision=revision)


def files_of(directory: Path) -> Iterator[Path]:
    """The files in a model's directory, sorted, without hidden ones (download caches, version control)."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts):
            yield path
