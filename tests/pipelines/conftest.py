"""A lifecycle of toy stages (toys/), so that the chain is tested in milliseconds and without torch."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

TOYS = Path(__file__).parent / "toys"

RECIPE = """\
# Toy: a life in milliseconds
seed: 5
vars: {data: corpus.txt}
tokenizer: {data: "${data}"}
pretrain: {}
sft: {}
comparisons: {}
reward_model: {}
"""


class Result(NamedTuple):
    """What one `gptlife` command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """The toy lifecycle; its modules can be imported here and in child processes."""
    monkeypatch.syspath_prepend(str(TOYS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(TOYS), os.environ.get("PYTHONPATH")))))
    return importlib.import_module("toy_chain").CHAIN


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with `corpus.txt` and the recipe `toy.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("once upon a time", encoding="utf-8")
    (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def report(chain: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A report module of one line a step in place of the real one."""
    import gptlife.pipelines.report

    module = importlib.import_module("toy_chain").fake_report()
    monkeypatch.setitem(sys.modules, "gptlife.pipelines.report.page", module)
    monkeypatch.setattr(gptlife.pipelines.report, "page", module, raising=False)
    return module


@pytest.fixture
def gptlife(
    chain: tuple[Any, ...], report: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> Callable[..., Result]:
    """`gptlife("run", "toy.yaml")`: the command line on the toy lifecycle, in this process, in `folder`."""
    from gptlife.pipelines.cli import app as cli
    from gptlife.pipelines.cli import run

    monkeypatch.setattr(run, "lifecycle", lambda: chain)

    def command(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["gptlife", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capfd.readouterr()
        return Result(int(exit_info.value.code or 0), out, err)

    return command


@pytest.fixture
def addresses(chain: tuple[Any, ...], folder: Path) -> Callable[..., dict[str, str]]:
    """`addresses("sft.learning_rate=1")`: step -> address of toy.yaml with overrides."""
    from gptlife.pipelines import planner, recipe
    from gptlife.pipelines.store import Store

    def plan(*overrides: str, recipe_file: str = "toy.yaml") -> dict[str, str]:
        loaded = recipe.load(recipe_file, list(overrides), chain)
        return {step.name: step.address for step in planner.plan(loaded, Store(Path("store")))}

    return plan


@pytest.fixture
def refusal(chain: tuple[Any, ...], folder: Path) -> Callable[..., str]:
    """`refusal(table, *overrides)`: the one line with which a recipe (a dict, or YAML text) is refused."""
    from gptlife.data.errors import UserError
    from gptlife.pipelines import planner, recipe
    from gptlife.pipelines.store import Store

    def message(content: dict[str, Any] | str, *overrides: str) -> str:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        Path("bad.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            planner.plan(recipe.load("bad.yaml", list(overrides), chain), Store(Path("store")))
        assert "\n" not in str(error.value)
        return str(error.value)

    return message


@pytest.fixture
def attempts(folder: Path) -> Callable[[], dict[str, int]]:
    """Address -> how often its stage was started, of all outputs and unfinished ones."""
    return lambda: {
        path.parent.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in folder.glob("store/*/attempts.txt")
    }


@pytest.fixture
def launcher(folder: Path) -> Callable[[str], Path]:
    """A launcher that runs some words of shell ($2 is the stage's module, $4 its stage.yaml) and then the stage."""

    def write(words: str) -> Path:
        path = folder / "launch"
        path.write_text(f'#!/bin/sh\n{words}\nexec {sys.executable} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        return path

    return write
