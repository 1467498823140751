"""The four rooms and the floors of stages/: imports only go down, in no circle; planning imports nothing heavy."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gptlife

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate", "peft")
LIGHT_ROOMS = ("data", "pipelines")


def load_structure() -> ModuleType:
    """tools/structure.py, which also prints what is held here."""
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tools" / "structure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module
    spec.loader.exec_module(module)
    return module


structure = load_structure()
PUBLIC = {f"gptlife.{name}" for name in gptlife.__all__}
FILES = list(structure.files_of(ROOT).values())
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def at_module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not those inside functions or under TYPE_CHECKING."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        handlers = [
            s for child in ast.iter_child_nodes(node) if isinstance(child, ast.ExceptHandler) for s in child.body
        ]
        waiting += inner + handlers
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def package_of(path: Path) -> str:
    return ".".join(["gptlife", *path.relative_to(ROOT).parent.parts])


def heavy(source: str, package: str) -> list[str]:
    """Heavy libraries that importing a source would import directly."""
    names = [name for node in at_module_level(ast.parse(source)) for name in structure.imported(node, package)]
    return [name for name in names if name.split(".")[0] in HEAVY]


def test_all_rooms_are_there():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(structure.ROOMS)


def test_imports_only_go_down():
    # Between the rooms, between the floors of stages/, and no stage imports another.
    assert structure.wrong_ways(structure.graph_of(ROOT)) == []


def test_no_circle():
    # Imports inside functions and under TYPE_CHECKING included.
    assert structure.circles(structure.graph_of(ROOT)) == []


def test_nothing_imports_the_public_names():
    # They import everything, so whatever imported them would be in a circle.
    for path in FILES:
        names = set(structure.imported(ast.parse(path.read_text(encoding="utf-8")), package_of(path)))
        assert not {name for name in names if name == "gptlife" or name in PUBLIC}, path


def test_no_stage_and_no_pipeline_knows_the_village():
    # It reaches them as data, labelers and a judge; recipes name it.
    named = [
        str(path.relative_to(ROOT))
        for room in ("stages", "pipelines")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".html", ".css") and "village" in path.read_text(encoding="utf-8").lower()
    ]
    assert named == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_data_and_pipelines_import_nothing_heavy_at_module_level(path):
    if path.relative_to(ROOT).parts[0] in LIGHT_ROOMS:
        assert heavy(path.read_text(encoding="utf-8"), package_of(path)) == []


def test_importing_all_that_plans_loads_nothing_heavy():
    # Also through others: reward/ may import torch, so data/ and pipelines/ may reach it inside functions only.
    modules = [
        ".".join([package_of(path), path.stem]).removesuffix(".__init__")
        for path in FILES
        if path.relative_to(ROOT).parts[0] in LIGHT_ROOMS
    ]
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def project(root: Path, files: dict[str, str]) -> Path:
    """A project of a few modules under `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("data/a.py", "from gptlife.stages.runtime import stage", "data.a imports stages.runtime.stage"),
        ("reward/a.py", "def f():\n    import gptlife.pipelines.b", "reward.a imports pipelines.b"),
        ("data/sub/a.py", "from ...stages import sft", "data.sub.a imports stages.sft"),
        ("stages/ppo.py", "from gptlife.stages import sft", "stages.ppo imports stages.sft"),
        ("stages/runtime/a.py", "from gptlife.stages.rl import loop", "stages.runtime.a imports stages.rl.loop"),
        ("stages/rl/a.py", "from gptlife.stages.evals import tables", "stages.rl.a imports stages.evals.tables"),
        (
            "stages/evals/a.py",
            "if TYPE_CHECKING:\n    from gptlife.stages.sft import STAGE",
            "stages.evals.a imports stages.sft",
        ),
    ],
)
def test_the_walk_finds_every_way_up(name, text, wrong, tmp_path):
    modules = ("runtime/stage", "rl/loop", "evals/tables", "sft")
    below = {**{f"stages/{module}.py": "" for module in modules}, "pipelines/b.py": ""}
    down = {
        "pipelines/c.py": "from gptlife.stages import sft",
        "stages/dpo.py": "from gptlife.stages.rl import loop\nfrom gptlife.stages.runtime.stage import Stage",
    }
    root = project(tmp_path, {**below, **down, name: text})
    assert structure.wrong_ways(structure.graph_of(root)) == [wrong]


def test_the_walk_finds_circles(tmp_path):
    files = {
        "data/a.py": "from gptlife.data.b import x",
        "data/b.py": "def f():\n    from gptlife.data import c",
        "data/c.py": "if TYPE_CHECKING:\n    from gptlife.data.a import y",
        "data/d.py": "from gptlife.data import a",
    }
    graph = structure.graph_of(project(tmp_path, files))
    assert structure.circles(graph) == [["data.a", "data.b", "data.c"]]
    measured = structure.measure(graph)
    assert (measured.rooms, measured.arrows, measured.floors, measured.climbing) == (4, 4, 2, 1)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn as nn", ["torch.nn"]),
        ("try:\n    import numpy\nexcept ImportError:\n    import datasets", ["datasets"]),
        ("class A:\n    from transformers import Trainer", ["transformers.Trainer"]),
        ("if True:\n    import trl", ["trl"]),
        ("def f():\n    import torch", []),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("import torchlight", []),
    ],
)
def test_the_walk_finds_heavy_imports(source, found):
    assert heavy(source, "gptlife.data") == found
