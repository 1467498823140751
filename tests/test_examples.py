"""Every script in examples/ runs to its end, in one workspace, on a life of seconds.

Each step runs in this process instead of one of its own, which saves the imports of torch; the command is the same.
"""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gptlife.pipelines import processes

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
FIRST = "own_data"
"""Makes the life that the others start from."""


def in_this_process(words: Sequence[str]) -> tuple[int, int | None]:
    """Run `python -m MODULE --config FILE` here; its exit code and no signal."""
    _, flag, module, *arguments = words
    assert flag == "-m"
    try:
        importlib.import_module(module).STAGE.main(arguments)
    except SystemExit as error:
        return int(error.code or 0), None
    return 0, None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all examples run, after the first one has."""
    folder = tmp_path_factory.mktemp("examples")
    run_example(FIRST, folder)
    return folder


def run_example(name: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(processes, "wait", in_this_process)
        patch.setattr(sys, "argv", [f"{name}.py"])
        patch.syspath_prepend(str(ROOT))  # for `examples.<name>`, as `python -m` has it
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != FIRST])
def test_every_example_runs(name: str, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example(name, workspace)
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_the_first_one_makes_a_life_and_makes_nothing_twice(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(workspace)
    run_example(FIRST, workspace)
    out = capsys.readouterr().out
    assert "running" not in out
    assert out.splitlines()[-1] == "with ppo.kl_coef=0.2, to do: ppo"
    assert files(workspace) == before
    outputs = {path.parent.name.partition("-")[0] for path in workspace.rglob("manifest.json")}
    assert {"tokenizer", "pretrain", "sft", "reward_model", "ppo"} <= outputs


def test_examples_write_only_under_build(workspace: Path) -> None:
    assert {path.name for path in workspace.iterdir()} == {"build"}


def test_every_example_says_what_one_learns_and_is_listed() -> None:
    listed = re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == SCRIPTS
    for name in SCRIPTS:
        doc = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))) or ""
        assert re.search(rf"^    python (examples/{name}\.py|-m examples\.{name})", doc, re.MULTILINE), name
        assert "You learn" in doc, name


def test_an_example_that_fails_would_be_seen(tmp_path: Path) -> None:
    # own_data.py has not run here, so there is no life to read.
    with pytest.raises(Exception, match="own_data:ppo: not a directory, an address or a recipe"):
        run_example("read_a_life", tmp_path)
