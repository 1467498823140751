"""The four rooms: imports only go down, and what plans imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "reward", "stages", "pipelines")
HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate", "peft")
LIGHT_ROOMS = ("data", "pipelines")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of every import below `tree`; relative ones are resolved against `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


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


def climbs(source: str, package: str) -> list[str]:
    """Imports of a source that go up, from a room to one above it."""
    room = ROOMS.index(package.split(".")[1])
    names = [name.split(".") for name in imported(ast.parse(source), package)]
    return [
        ".".join(parts)
        for parts in names
        if parts[0] == "gptlife" and (len(parts) < 2 or parts[1] not in ROOMS[: room + 1])
    ]


def heavy(source: str, package: str) -> list[str]:
    """Heavy libraries that importing a source would import directly."""
    names = [name for node in at_module_level(ast.parse(source)) for name in imported(node, package)]
    return [name for name in names if name.split(".")[0] in HEAVY]


def test_all_rooms_are_there():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_only_go_down(path):
    assert climbs(path.read_text(encoding="utf-8"), package_of(path)) == []


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


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("from gptlife.stages import artifact", "gptlife.data", ["gptlife.stages.artifact"]),
        ("def f():\n    import gptlife.pipelines.cli", "gptlife.stages", ["gptlife.pipelines.cli"]),
        ("from gptlife import reward", "gptlife.data.village", ["gptlife.reward"]),
        ("import gptlife", "gptlife.pipelines", ["gptlife"]),
        ("from ..stages import loop", "gptlife.reward", ["gptlife.stages.loop"]),
        ("from ...stages import loop", "gptlife.data.village", ["gptlife.stages.loop"]),
        ("from . import config\nfrom gptlife.data import config", "gptlife.data", []),
        ("from gptlife.reward import kl", "gptlife.stages", []),
    ],
)
def test_the_walk_finds_every_way_up(source, package, found):
    assert climbs(source, package) == found


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
