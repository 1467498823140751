"""The public names of `import gptlife`: all there, light to import, and enough to plan, run and open a life."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gptlife

HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate", "peft", "matplotlib", "pandas")


def modules_after(code: str) -> set[str]:
    """Names of the modules that a new process has after some code."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_every_public_name_is_there_and_documented() -> None:
    assert {"plan", "run", "open_output", "UserError", "Stage", "Config", "LIFECYCLE", "step"} <= {*gptlife.__all__}
    for name in gptlife.__all__:
        value = getattr(gptlife, name)
        assert name in dir(gptlife)
        assert inspect.getdoc(value) or name == "LIFECYCLE", name


def test_type_checkers_see_the_same_names() -> None:
    # The block under TYPE_CHECKING, `__all__` and what is imported lazily are three lists of one thing.
    tree = ast.parse(Path(str(gptlife.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    listed = {
        f"{node.module}.{alias.name}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    lazy = {f"gptlife.{module}.{name}" for module, names in gptlife._MODULES.items() for name in names}
    assert listed == lazy
    assert sorted(name.rpartition(".")[2] for name in lazy) == sorted(gptlife.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gptlife' has no attribute 'train'"):
        _ = gptlife.train


def test_importing_gptlife_imports_nothing_else() -> None:
    loaded = modules_after("import gptlife")
    assert "gptlife" in loaded
    assert not {name for name in loaded if name.startswith("gptlife.")}
    assert not loaded & {*HEAVY, "pydantic"}


def test_planning_from_python_imports_nothing_heavy(tmp_path: Path) -> None:
    loaded = modules_after(f"from gptlife import *\nassert len(plan('smoke', store={str(tmp_path)!r})) > 5")
    assert "gptlife.pipelines.planner" in loaded
    assert not loaded & {*HEAVY}


def block_with(text: str) -> str:
    """The Python block of docs/api.md that has a text."""
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if text in block)
    return str(block)


@pytest.fixture
def shout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stage of docs/api.md, where this process and its children find it."""
    (tmp_path / "shout.py").write_text(block_with("class ShoutConfig"), encoding="utf-8")
    (tmp_path / "my.yaml").write_text("shout: {word: hello}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(str(gptlife.__file__)).parents[1]}")
    yield importlib.import_module("shout").STAGE
    del sys.modules["shout"]


def test_a_stage_of_ones_own_is_planned_run_and_opened(shout: Any, tmp_path: Path) -> None:
    steps = (*gptlife.LIFECYCLE, gptlife.step(shout))
    planned = gptlife.plan("my.yaml", steps=steps)
    assert [(step.name, step.state) for step in planned] == [("shout", "to do")]
    with pytest.raises(gptlife.UserError, match="not made yet"):
        planned.output("shout")
    assert gptlife.plan("my.yaml", {"shout.word": "bye"}, steps=steps)["shout"].address != planned["shout"].address
    names: dict[str, Any] = {}
    exec(compile(block_with("gptlife.step(shout.STAGE)"), "api.md", "exec"), names)
    assert names["life"]["shout"].address == planned["shout"].address
    output = names["life"].output("shout")
    assert (output.metrics["letters"], output.config["word"]) == (5, "hello")
    assert (output.path / "word.txt").read_text(encoding="utf-8") == "HELLO"
    assert gptlife.open_output(output.path.name, steps=steps).path.samefile(output.path)


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(str(gptlife.__file__)).with_name("py.typed").is_file()
