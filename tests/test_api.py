"""The public names of `import gptlife`: all there, light to import, and enough to plan, run and open a life."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
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


OWN_STAGE = '''
from pathlib import Path

from gptlife import Config, Stage, StageConfig


class Greeting(Config):
    """Whom to greet."""

    name: str
    """A name."""


class HelloConfig(StageConfig):
    """A greeting."""

    greeting: Greeting
    """Whom to greet."""


def run(config: HelloConfig, output: Path) -> dict[str, int]:
    (output / "hello.txt").write_text(f"hello {config.greeting.name}")
    return {"letters": len(config.greeting.name)}


STAGE = Stage("hello", HelloConfig, run, title="Hello", family="greeting", about="A greeting.")
if __name__ == "__main__":
    STAGE.main()
'''


@pytest.fixture
def own_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a stage of its own, where this process and its children find it."""
    (tmp_path / "hello_stage.py").write_text(OWN_STAGE, encoding="utf-8")
    (tmp_path / "toy.yaml").write_text("hello: {greeting: {name: Ulf}}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(str(gptlife.__file__)).parents[1]}")
    import hello_stage

    yield hello_stage.STAGE
    del sys.modules["hello_stage"]


def test_a_stage_of_ones_own_is_planned_run_and_opened(own_stage: Any, tmp_path: Path) -> None:
    steps = (*gptlife.LIFECYCLE, gptlife.step(own_stage))
    planned = gptlife.plan("./toy.yaml", steps=steps)
    assert [(step.name, step.state) for step in planned] == [("hello", "to do")]
    with pytest.raises(gptlife.UserError, match="not made yet"):
        planned.output("hello")
    other = gptlife.plan("./toy.yaml", {"hello.greeting.name": "Ada"}, steps=steps)
    assert other["hello"].address != planned["hello"].address
    made = gptlife.run("./toy.yaml", report=tmp_path / "page.html", steps=steps)
    assert made["hello"].address == planned["hello"].address
    output = made.output("hello")
    assert output.metrics["letters"] == 3
    assert output.config["greeting"] == {"name": "Ulf"}
    assert (output.path / "hello.txt").read_text(encoding="utf-8") == "hello Ulf"
    assert gptlife.open_output(made["hello"].address, steps=steps).path.samefile(output.path)


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(str(gptlife.__file__)).with_name("py.typed").is_file()
