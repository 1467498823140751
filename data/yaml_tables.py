"""YAML as tables of fields: strict decoding, and overrides by dotted names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gptlife.data.errors import UserError

_LARGEST = 1_000_000
"""Most values in one YAML file: far more than any recipe has, far fewer than ten lines of aliases can make."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML silently keeps the last one)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            # Merges are refused: lists of them grow tenfold per line, before any value could be counted.
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merges else self.construct_object(key_node, deep=True)
            fault = None
            if merges:
                fault = "'<<' can't be used to merge tables"
            elif not isinstance(key, (str, int, float, bool)):
                fault = f"{type(key).__name__} can't be a name"
            elif key in seen:
                fault = f"'{key}' is given twice"
            if fault:
                raise yaml.constructor.ConstructorError(None, None, fault, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-4` as a string, but in a config it is always meant as a number.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Decode YAML text with the safe loader.

    Raises:
        UserError: the text is not YAML or has a key twice (with file and line), or its aliases make it too large.
    """
    try:
        value = yaml.load(text, _UniqueKeyLoader)
        if _size(value, {}) > _LARGEST:
            raise UserError(f"{where}: more than {_LARGEST:,} values with its aliases expanded; write it without them")
        return value
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem or error.context}; fix the YAML there") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML ({str(error).splitlines()[0]}); fix it") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply, or an alias contains itself; simplify it") from None
    except (ValueError, OverflowError) as error:  # an impossible date, say
        raise UserError(f"{where}: a value can't be read ({str(error).splitlines()[0]}); put it in quotes") from None


def _size(value: Any, size_of: dict[int, int]) -> int:
    """Values in a decoded YAML; what aliases share is counted at each use. `size_of` keeps the size of each object."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in size_of:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        size_of[id(value)] = 1 + sum(_size(part, size_of) for part in parts)
    return size_of[id(value)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML table from a file.

    Raises:
        UserError: the file is missing, empty, not UTF-8, or not a table.
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
        UserError: an override has no `=`, or its path goes through a value that is not a table.
    """
    result = copied(raw)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise UserError(f"{override}: expected field=value, as in sft.learning_rate=1e-4")
        put(result, path.strip(), parse_yaml(text, override), override)
    return result


def put(table: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set the field at a dotted path inside nested tables, and add the tables that are missing.

    Raises:
        UserError: the path goes through a value that is not a table.
    """
    *parents, last = path.split(".")
    for part in parents:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"{where}: '{part}' is not a table, so it has no field '{last}'")
    table[last] = value


def copied(value: Any) -> Any:
    """A copy of nested tables; values other than tables are shared."""
    return {key: copied(item) for key, item in value.items()} if isinstance(value, dict) else value
