"""A user's Python function, named `package.module:name` or `path/file.py:name` in a recipe."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from gptlife.data.config import HashFile
from gptlife.data.errors import UserError
from gptlife.reward.judges.verdicts import Judge, Prompt, Verdict

_SHOWN = 60  # characters of an answer in an error
_LARGEST = 1e15
"""Scores are squared in fp32: those of 1.8e19 would be infinite, and every advantage 0."""
_NO_NAME = "names no function; write package.module:name or path/file.py:name"


def identity_of_function(reference: str, hash_file: HashFile) -> str:
    """What the reference adds to an address: a file enters by its content, a module by its name.

    Raises:
        UserError: when the reference has no name, or the file is missing or does not have the name anywhere. Whether a
            module has it is only known by importing it (`load_function`), which can cost seconds.
    """
    path, colon, name = reference.partition(":")
    if not colon:
        raise UserError(f"'{reference}' {_NO_NAME}")
    if not path.endswith(".py"):
        return reference
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; give path/file.py:name")
    source = Path(path).read_text(encoding="utf-8", errors="replace")
    if name not in source and "import *" not in source:
        raise UserError(f"{path}: has no function '{name}'; check the name")
    return f"{hash_file(path)}:{name}"


def load_function(reference: str, field: str) -> Callable[..., Any]:
    """The function that the reference names; `field` is the config field that errors name.

    Raises:
        UserError: when the module can't be imported, or has no function of that name.
    """
    module_name, colon, name = reference.partition(":")
    if not colon:
        raise UserError(f"{field}: '{reference}' {_NO_NAME}")
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        function = getattr(module, name)
    except (ImportError, FileNotFoundError, AttributeError, SyntaxError) as error:
        raise UserError(f"{field}: '{reference}' can't be loaded ({error}); check the path and the name") from None
    if not callable(function):
        raise UserError(f"{field}: '{reference}' is {function!r}; name a function (prompts, answers) -> scores")
    return function


def checked(function: Callable[[Sequence[Prompt], Sequence[str]], Sequence[Any]], name: str) -> Judge:
    """A user's function as a judge. It returns one result per answer: a number, or a dict of numbers with "score".

    Raises:
        UserError: by the judge, for a function that raises, another number of results, a dict without "score" or a
            value that is not a number below `_LARGEST`.
    """

    def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        try:
            returned = function(deepcopy(prompts), list(answers))  # the caller's stay as they are
        except Exception as error:
            raise UserError(f"{name}: {_place_of(error)}{type(error).__name__}: {error}; fix the function") from error
        if isinstance(returned, str | Mapping) or not isinstance(returned, Iterable):
            raise UserError(f"{name}: returned {str(returned)[:_SHOWN]!r}; return a list with a number per answer")
        results = list(returned)
        if len(results) != len(answers):
            raise UserError(
                f"{name}: returned {len(results)} results for {len(answers)} answers; return one per answer"
            )
        return [_verdict(*pair, name) for pair in zip(results, answers, strict=True)]

    return judge


def _verdict(result: Any, answer: str, name: str) -> Verdict:
    verdict = result if isinstance(result, Mapping) else {"score": result}
    if "score" not in verdict:
        raise UserError(
            f"{name}: returned keys {sorted(map(str, verdict))} for the answer {answer[:_SHOWN]!r}; add the key 'score'"
        )
    for key, value in verdict.items():
        if not _is_usable(value):
            raise UserError(
                f"{name}: returned {value!r} as '{key}' of the answer {answer[:_SHOWN]!r}; return a finite number "
                f"below {_LARGEST:g}"
            )
    return {str(key): float(value) for key, value in verdict.items()}


def _is_usable(value: Any) -> bool:
    try:
        return abs(float(value)) < _LARGEST  # false of nan
    except (TypeError, ValueError, OverflowError):
        return False


def _place_of(error: BaseException) -> str:
    """`line 12 of own.py: `, where the user's code raised; empty where it was the call itself."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f"line {frames[-1].lineno} of {Path(frames[-1].filename).name}: " if frames else ""
