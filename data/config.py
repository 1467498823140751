"""Configs: frozen, strict, complete; and the one error type that a user is meant to read.

A config is a pydantic model whose fields carry their docstring (unit, source). Unknown keys are refused with a
suggestion, values are not silently coerced, and every refusal is one line that names the place, the value and
the next act. `identity` is what a config contributes to its stage's address: everything but the fields marked
`Execution` (micro-batch, workers, device), which change how a result is computed but not which result.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

T = TypeVar("T")
HashFile = Callable[[str], str]


class UserError(Exception):
    """Something the user can mend. Its text is one line: place, value, next act. The command exits with 2.

    What a value holds (line ends, control characters, terminal codes) is spelled out, so that it stays one line.
    """

    def __init__(self, message: str) -> None:
        spelled = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(spelled))


class _ExecutionMark:
    """Marks a field that says how to compute, not what."""


Execution = Annotated[T, _ExecutionMark()]
"""`micro_batch_size: Execution[int] = 8`: a field that stays out of the address."""


Share = Annotated[float, Field(ge=0, le=1)]
"""Field type of a part of a whole, both ends included."""
BelowOne = Annotated[float, Field(ge=0, lt=1)]
"""Field type of a decay, a dropout, or a part that leaves something."""


class Config(BaseModel):
    """Base of every config: frozen, unknown keys and numbers that are not finite refused, docstrings kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def identity(self, hash_file: HashFile) -> dict[str, Any]:
        """Canonical JSON-able content of this config without its `Execution` fields, nested configs included.

        `hash_file` maps a data file's path to its content hash, so that paths never enter an address.
        """
        kept = {}
        for name, field in type(self).model_fields.items():
            if not any(isinstance(mark, _ExecutionMark) for mark in field.metadata):
                kept[name] = _identity_of(getattr(self, name), hash_file)
        return kept


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


def suggest(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?`, or the list of what there is when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"


ConfigT = TypeVar("ConfigT", bound=Config)


def decode(model: type[ConfigT], raw: Any, where: str) -> ConfigT:
    """Build `model` from decoded YAML.

    Raises:
        UserError: one line for the first problem: `where.field: what is wrong`, with a suggestion for a misspelt
            field.
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
"""pydantic's complaints about a value of the right kind."""


def _one_line(model: type[Config], error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    # A union reports one problem per member; the unknown key (deepest) is what the user can act on.
    # Of what a union refuses, the part of the right kind is meant: its complaint is about the value.
    problem = max(problems, key=lambda p: (p["type"] == "extra_forbidden", p["type"] in _OF_A_VALUE, len(p["loc"])))
    place = ".".join([where, *(str(part) for part in problem["loc"] if not _is_union_tag(part))])
    if problem["type"] == "extra_forbidden":
        parent = _model_at(model, problem["loc"][:-1])
        known = list(parent.model_fields) if parent else []
        return f"{place}: no such field{suggest(str(problem['loc'][-1]), known) if known else ''}"
    if problem["type"] == "missing":
        return f"{place}: required, but not given"
    text = re.sub(r"^(Value|Assertion) error, ", "", problem["msg"])
    parent = _model_at(model, problem["loc"])
    if parent and text.partition(":")[0] in parent.model_fields:  # of a validator that looks at several fields
        return f"{place}.{text}"
    shown = "" if problem["type"] in ("value_error", "assertion_error") else f", found {problem['input']!r}"
    return f"{place}: {text[:1].lower() + text[1:]}{shown}"


def _is_union_tag(part: object) -> bool:
    kinds = ("str", "int", "float", "bool", "constrained-float", "constrained-int")
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in kinds)


def _model_at(model: type[Config], path: tuple[int | str, ...]) -> type[Config] | None:
    """The config class that stands at `path` inside `model`, through optionals, lists and unions."""
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
            if found := _first_config(argument):
                return found
    return None


_LARGEST = 1_000_000
"""Values in one YAML file: far more than any recipe has, far fewer than ten lines of aliases can make."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML keeps the last one without a word)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            fault = None
            if not isinstance(key, (str, int, float, bool)):
                fault = f"{type(key).__name__} can't be a name"
            elif key in seen and key != "<<":
                fault = f"'{key}' is given twice"
            if fault:
                raise yaml.constructor.ConstructorError(None, None, fault, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-4` as a string; everybody who writes a learning rate means a number.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Decode YAML text, by the safe loader.

    Raises:
        UserError: with file and line where the text is no YAML or has a key twice, and where aliases make it too large.
    """
    try:
        found = yaml.load(text, _UniqueKeyLoader)
        if _size(found, {}) > _LARGEST:
            raise UserError(
                f"{where}: more than {_LARGEST:,} values once its aliases are written out; write it plainly"
            )
        return found
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem or error.context}; mend the YAML there") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: no valid YAML ({str(error).splitlines()[0]})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply, or inside itself; write it plainly") from None
    except (ValueError, OverflowError) as error:  # a date that is none, say
        raise UserError(f"{where}: a value can't be read ({str(error).splitlines()[0]}); put it in quotes") from None


def _size(value: Any, known: dict[int, int]) -> int:
    """Values in a decoded YAML, with what aliases share counted as often as it stands there."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML table from a file.

    Raises:
        UserError: when it is missing, empty, not UTF-8, or no table.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a YAML file") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as text ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a table of fields, found {'nothing' if raw is None else repr(raw)[:60]}")
    return raw


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `raw` with every `a.b=value` set; values are read as YAML (`1e-4`, `true`, `[1, 2]`).

    Raises:
        UserError: where an override has no `=` or goes through something that is no table.
    """
    result = copied(raw)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise UserError(f"{override}: expected field=value, as in sft.learning_rate=1e-4")
        put(result, path.strip(), parse_yaml(text, override), override)
    return result


def put(table: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set the field at a dotted path inside nested tables, making those that are not there.

    Raises:
        UserError: when the path goes through something that is no table.
    """
    *parents, last = path.split(".")
    for part in parents:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"{where}: '{part}' is no table, so it has no field '{last}'")
    table[last] = value


def copied(value: Any) -> Any:
    """A copy of nested tables; what is no table is shared."""
    return {key: copied(item) for key, item in value.items()} if isinstance(value, dict) else value
