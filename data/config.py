"""Configs: frozen, strict, complete.

A config is a pydantic model whose fields have a docstring each (unit, source). Unknown keys are refused with a
suggestion, values are not silently coerced, and every refusal is one line with the place, the value and the next act.
`identity` is a config's part of its stage's address: all fields but those marked `Execution` (micro-batch, workers,
device), which change how a result is computed but not which result.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from gptlife.data.errors import UserError, suggest

T = TypeVar("T")
HashFile = Callable[[str], str]


class _ExecutionMark:
    """Marks a field that changes how a result is computed, not which result."""


Execution = Annotated[T, _ExecutionMark()]
"""`micro_batch_size: Execution[int] = 8`: a field that does not enter the address."""


class Was:
    """`gamma: Annotated[float, Was("discount")]`: a renamed field. It enters the address under its old name."""

    def __init__(self, name: str) -> None:
        self.name = name


class _AddedMark:
    """Marks a field that was added when outputs without it existed already."""


Added = Annotated[T, _AddedMark()]
"""`group_by: Added[str] = "use_case"`: a field that enters the address only when it differs from its default."""


Share = Annotated[float, Field(ge=0, le=1)]
"""Field type of a share of a whole, from 0 to 1, both included."""
BelowOne = Annotated[float, Field(ge=0, lt=1)]
"""Field type of a decay, a dropout rate, or a share that leaves a rest: from 0 to below 1."""


class Config(BaseModel):
    """Base of every config: frozen; unknown keys and non-finite numbers are refused; fields keep their docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def identity(self, hash_file: HashFile) -> dict[str, Any]:
        """Canonical JSON-able content of this config without its `Execution` fields, nested configs included.

        A renamed field (`Was`) has its old name here, and an `Added` one is left out at its default, so that existing
        outputs keep their addresses. `hash_file` maps a data file's path to its content hash, so that paths never
        enter an address.
        """
        kept = {}
        for name, field in type(self).model_fields.items():
            value, marks = getattr(self, name), field.metadata
            if any(isinstance(mark, _ExecutionMark) for mark in marks):
                continue
            if any(isinstance(mark, _AddedMark) for mark in marks) and value == field.get_default(
                call_default_factory=True
            ):
                continue
            kept[_old_name(field) or name] = _identity_of(value, hash_file)
        return kept


def _old_name(field: FieldInfo) -> str | None:
    return next((mark.name for mark in field.metadata if isinstance(mark, Was)), None)


def sha256_of_file(path: str) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity_of(value: Any, hash_file: HashFile) -> Any:
    if isinstance(value, Config):
        return value.identity(hash_file)
    if isinstance(value, Mapping):
        return {str(key): _identity_of(item, hash_file) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity_of(item, hash_file) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} has no canonical JSON form, so it can't be part of an address")


def walk_configs(value: Any) -> Iterator[Config]:
    """Every config inside `value`, itself first, depth first."""
    if isinstance(value, Config):
        yield value
        for name in type(value).model_fields:
            yield from walk_configs(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from walk_configs(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from walk_configs(item)


ConfigT = TypeVar("ConfigT", bound=Config)


def decode(model: type[ConfigT], raw: Any, where: str) -> ConfigT:
    """Build a config of class `model` from decoded YAML.

    Raises:
        UserError: one line for the first problem: `where.field: what is wrong` (`file.yaml: field: ...` where `where`
            is a file), with a suggestion for a misspelt field.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: expected a table of fields, found {raw!r}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(_one_line(model, error, where)) from None


_OF_A_VALUE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
"""pydantic's problems with a value of the right type."""


def _one_line(model: type[Config], error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    # A union reports one problem per member. The user can act on an unknown key (the deepest), then on a value of the
    # right type.
    problem = max(problems, key=lambda p: (p["type"] == "extra_forbidden", p["type"] in _OF_A_VALUE, len(p["loc"])))
    parts = [str(part) for part in problem["loc"] if not _is_union_tag(part)]
    place = _place(where, *parts)
    if problem["type"] == "extra_forbidden":
        parent = _model_at(model, problem["loc"][:-1])
        names = list(parent.model_fields) if parent else []
        for name, field in parent.model_fields.items() if parent else ():
            if _old_name(field) == problem["loc"][-1]:
                return f"{place}: this field is called '{name}' now; rename it"
        return f"{place}: no such field{suggest(str(problem['loc'][-1]), names) if names else ''}"
    if problem["type"] == "missing":
        return f"{place}: required, but not given"
    text = re.sub(r"^(Value|Assertion) error, ", "", problem["msg"])
    parent = _model_at(model, problem["loc"])
    if parent and text.partition(":")[0] in parent.model_fields:  # from a validator of several fields
        return _place(where, *parts, text)
    shown = "" if problem["type"] in ("value_error", "assertion_error") else f", found {problem['input']!r}"
    return f"{place}: {text[:1].lower() + text[1:]}{shown}"


def _place(where: str, *fields: str) -> str:
    """The dotted path of a field in `where`; a file and what is in it are parted by a colon."""
    path = ".".join(fields)
    return f"{where}: {path}" if path and where.endswith((".yaml", ".yml")) else ".".join(filter(None, (where, path)))


def _is_union_tag(part: object) -> bool:
    kinds = ("str", "int", "float", "bool", "constrained-float", "constrained-int")
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in kinds)


def _model_at(model: type[Config], path: tuple[int | str, ...]) -> type[Config] | None:
    """The config class at `path` inside `model`, through optionals, lists and unions."""
    current: type[Config] | None = model
    for part in path:
        if current is None:
            return None
        if isinstance(part, str) and part in current.model_fields:
            current = _first_config(current.model_fields[part].annotation)
    return current


def _first_config(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if get_origin(annotation) is not None:
        for argument in get_args(annotation):
            if model := _first_config(argument):
                return model
    return None
