"""Writes docs/configuration.md: every field of every stage, from the config classes.

    python tools/configuration.py

The fields' docstrings are the text; a test compares the committed page with what this writes. A field that a class
inherits unchanged is listed once, in the table of the class that defines it.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from gptlife.data.config import Config, Execution
from gptlife.data.sources import Source
from gptlife.pipelines.lifecycle import LIFECYCLE, Step
from gptlife.stages.evals.tasks.catalogue import TASKS
from gptlife.stages.evals.tasks.task import Task
from gptlife.stages.generation.config import SamplingConfig
from gptlife.stages.runtime.stage import StageConfig
from gptlife.stages.training.config import FinetuningConfig, TrainingConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
_EXECUTION = get_args(Execution[int])[1]
_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null", Any: "any value"}
_SHARED: dict[str, type[Config]] = {
    "Every fine-tuning stage": FinetuningConfig,
    "Every training stage": TrainingConfig,
    "Every sampling stage": SamplingConfig,
    "Every stage": StageConfig,
}
"""Sections of the fields that several stages have, each before those that it inherits."""
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

_HEAD = """\
# Configuration

Made by `python tools/configuration.py` from the configs; edit the docstrings there, not this page.

A recipe has a table for each step; `stage.yaml`, for one stage run by hand, has the same fields on top plus `inputs`
(name: directory) and `output`. Unknown fields are refused. Required ones are in bold. Fields marked ° say how a
result is computed, not which: they stay out of the output's address, so a change of them makes no step run again.

Besides its fields a table may have `launcher` (the words in front of the stage's command; `null`: none), or only
`adopt` (a directory, or `<hub id>@<revision>`, used as the step's output). At its top level a recipe may have `seed`
(of every stage that sets none), `vars` (values for `${name}` in any string), `launcher`, `trust_remote_code` and
`deterministic` (of every stage).

A field of type *data* is a path, a [source](#source), or a list of either.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    parts += [_section(title, model) for title, model in reversed(_SHARED.items())]
    parts += [_stage(step) for step in LIFECYCLE]
    models = [step.stage.config for step in LIFECYCLE]
    parts += [_section(_title(model), model) for model in _nested([*_SHARED.values(), *models])]
    return "\n".join(parts)


def _stage(step: Step) -> str:
    model = step.stage.config
    titles = [title.lower() for title, base in _SHARED.items() if issubclass(model, base)]
    bases = [f"[{title}](#{title.replace(' ', '-')})" for title in titles]
    optional = dict.fromkeys(step.droppable, " (optional)")
    wired = [f"`{name}` = the output of `{step.inputs[name]}`{optional.get(name, '')}" for name in step.inputs]
    about = f"Inputs: {', '.join(wired) or 'none'}. Also has the fields of {', '.join(bases)}.\n"
    return _section(f"`{step.name}`", model, about)


def _section(title: str, model: type[Config], about: str = "") -> str:
    lines = [f"## {title}", "", _cell(model.__doc__ or ""), ""]
    if about:
        lines += [about]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    lines += [_row(name, model.model_fields[name]) for name in _own(model)]
    return "\n".join(lines) + "\n"


def _own(model: type[Config]) -> list[str]:
    """Fields that `model` brings or changes, in the order in which they stand in its source."""
    bases = [base for base in model.__mro__ if base is model or base not in _SHARED.values()]
    kept = {name for base in bases for name in inspect.get_annotations(base)}
    return [name for name in model.model_fields if name in kept]


def _row(name: str, field: FieldInfo) -> str:
    mark = "°" if _EXECUTION in field.metadata else ""
    default = "**required**" if field.is_required() else f"`{_value(field.default)}`"
    return f"| `{name}`{mark} | {_type(field)} | {default} | {_cell(field.description or '')} |"


def _type(field: FieldInfo) -> str:
    return _bounded(_type_of(field.annotation), field.metadata)


def _bounded(text: str, marks: Sequence[Any]) -> str:
    inside = [mark for outer in marks for mark in getattr(outer, "metadata", [outer])]
    bounds = [f"{sign} {getattr(mark, key)}" for mark in inside for key, sign in _BOUNDS.items() if hasattr(mark, key)]
    return " ".join([text, ", ".join(bounds)]).strip()


def _type_of(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(_type_of(arguments[0]), arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(_type_of(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if annotation == list[Source]:
        return "[data](#source)"
    if origin is list:
        return f"list of {_type_of(arguments[0])}"
    if origin is dict:
        return f"table of {_type_of(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return f"[{_title(annotation)}](#{_title(annotation).lower()})"
    return _NAMES[annotation]


def _nested(models: list[type[Config]]) -> list[type[Config]]:
    """The configs inside the fields of `models`, each once, outer before inner."""
    configs: list[type[Config]] = []
    queue = list(models)
    while queue:
        for field in queue.pop(0).model_fields.values():
            for inner in _configs_in(field.annotation):
                if inner not in configs:
                    configs.append(inner)
                    queue.append(inner)
    return configs


def _configs_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation, *TASKS] if annotation is Task else [annotation]
    return [config for argument in get_args(annotation) for config in _configs_in(argument)]


def _title(model: type[Config]) -> str:
    return model.__name__.removesuffix("Config")


def _value(value: Any) -> str:
    """As it is written in YAML."""
    if isinstance(value, Config):
        given = {name: getattr(value, name) for name in type(value).model_fields if name in value.model_fields_set}
        return "{" + ", ".join(f"{name}: {_value(item)}" for name, item in given.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:_}"
    if isinstance(value, str) and not re.fullmatch(r"\w[\w. -]*", value):
        return '"' + value.replace("\n", "\\n") + '"'
    return "{}" if value == {} else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
