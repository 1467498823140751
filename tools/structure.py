"""Measure the house: rooms, arrows, floors, climbing imports and circles, from the syntax trees.

    python tools/structure.py [FOLDER ...]        # by default stages/ and the whole project
    python tools/structure.py --root ../other-checkout stages

A room of a folder is a file or a folder directly in it; an arrow is an import between two rooms, imports
inside functions and under TYPE_CHECKING included. Floors are the longest chain of arrows (a circle counts as one
room). A circle is a set of rooms that import each other; a climbing arrow is one that has to go for the circles to go
(the fewest that a greedy search finds). `files` are the same measures between single files.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOMS = ("data", "reward", "stages", "pipelines")
"""The four rooms, from the ground up; each imports only itself and those before it."""
FLOORS = ("runtime", "modeling", "training", "generation", ("rl", "preferences", "evals"))
"""The folders of stages/, from the ground up; those side by side don't import each other, and the stages lie on top."""
Graph = dict[str, set[str]]


class Measures(NamedTuple):
    """Of a graph of rooms."""

    rooms: int
    arrows: int
    floors: int
    climbing: int
    circles: list[list[str]]


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


def files_of(root: Path) -> dict[str, Path]:
    """Every module of the four rooms by its name without `gptlife.`, as `stages.rl.loop`; a package by its folder's."""
    modules = {}
    for path in (path for room in ROOMS for path in sorted((root / room).rglob("*.py"))):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def graph_of(root: Path) -> Graph:
    """Which module imports which, by name; the import of a name counts for the module that it lies in."""
    modules = files_of(root)
    graph: Graph = {name: set() for name in modules}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for wanted in imported(ast.parse(path.read_text(encoding="utf-8")), f"gptlife.{package}"):
            parts = wanted.removeprefix("gptlife.").split(".") if wanted.startswith("gptlife.") else []
            while parts and ".".join(parts) not in modules:
                parts.pop()
            # Importing a module runs its package's own file too.
            for target in {".".join(parts), ".".join(parts[:-1])} & modules.keys() - {name}:
                graph[name].add(target)
    return graph


def inside(graph: Graph, folder: str) -> Graph:
    """The rooms of a folder ("" for the project) and their arrows."""
    start = f"{folder}." if folder else ""

    def room(name: str) -> str | None:
        return name.removeprefix(start).split(".")[0] if name.startswith(start) and name != folder else None

    rooms: Graph = {}
    for name, targets in graph.items():
        if (source := room(name)) is not None:
            rooms.setdefault(source, set()).update(r for t in targets if (r := room(t)) is not None and r != source)
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Sets of two rooms and more that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return groups


def floors(graph: Graph) -> int:
    """The longest chain of rooms, circles taken as one room."""
    owner = {name: group[0] for group in circles(graph) for name in group}
    merged: Graph = {}
    for name, targets in graph.items():
        merged.setdefault(owner.get(name, name), set()).update(owner.get(target, target) for target in targets)
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max((height(target) for target in merged[name] if target != name), default=0)
        return heights[name]

    return max((height(name) for name in merged), default=0)


def climbing(graph: Graph) -> int:
    """Arrows that point up in an order of the rooms with few of them (Eades, Lin and Smyth 1993)."""
    left, first, last = {name: set(targets) for name, targets in graph.items()}, [], []
    while left:
        into = {name: sum(name in targets for targets in left.values()) for name in left}
        sinks = [name for name in sorted(left) if not left[name] & left.keys()]
        sources = [name for name in sorted(left) if not into[name]]
        if sinks or sources:
            taken = sinks[0] if sinks else sources[0]
            last.append(taken) if sinks else first.append(taken)
        else:
            taken = max(sorted(left), key=lambda name: len(left[name] & left.keys()) - into[name])
            first.append(taken)
        del left[taken]
    order = {name: number for number, name in enumerate([*first, *reversed(last)])}
    return sum(order[target] < order[name] for name, targets in graph.items() for target in targets)


def measure(graph: Graph) -> Measures:
    """All of it."""
    arrows = sum(len(targets) for targets in graph.values())
    return Measures(len(graph), arrows, floors(graph), climbing(graph), circles(graph))


def wrong_ways(graph: Graph) -> list[str]:
    """Imports that the order of rooms and floors forbids: up, between stages, between folders side by side."""
    return [
        f"{name} imports {target}"
        for name, targets in sorted(graph.items())
        for target in sorted(targets)
        if target != name.rpartition(".")[0] and not _allowed(name, target)
    ]


def _allowed(name: str, target: str) -> bool:
    room, other = (ROOMS.index(each.split(".")[0]) for each in (name, target))
    if room != other or name.split(".")[0] != "stages":
        return other <= room
    (floor, folder), (target_floor, target_folder) = _floor(name), _floor(target)
    return target_floor < floor or target_folder == folder


def _floor(name: str) -> tuple[int, str]:
    """(height, folder or stage) of a module of stages/."""
    part = name.split(".")[1] if "." in name else ""
    for height, floor in enumerate(FLOORS):
        if part == floor or (isinstance(floor, tuple) and part in floor):
            return height, part
    return len(FLOORS), part


def sizes(root: Path) -> tuple[int, list[tuple[int, str]], list[tuple[int, str]]]:
    """(source lines, the longest files, the longest functions)."""
    total, files, functions = 0, list[tuple[int, str]](), list[tuple[int, str]]()
    for path in files_of(root).values():
        text = path.read_text(encoding="utf-8")
        name, lines = str(path.relative_to(root)), text.count("\n")
        total += lines
        files.append((lines, name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}: {node.name}"))
    return total, sorted(files, reverse=True)[:3], sorted(functions, reverse=True)[:3]


def _below(graph: Graph, start: str) -> Graph:
    """The modules whose names begin so, and the arrows between them."""
    return {n: {t for t in targets if t.startswith(start)} for n, targets in graph.items() if n.startswith(start)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the measures of some folders, of all files, and the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", default=["stages", ""])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    arguments = parser.parse_args(argv)
    graph = graph_of(arguments.root)
    print("| what | rooms | arrows | floors | climbing | circles |\n|---|---:|---:|---:|---:|---:|")
    of: Mapping[str, Graph] = {
        **{f"{folder or 'project'}/": inside(graph, folder) for folder in arguments.folders},
        "files of stages/": _below(graph, "stages."),
        "all files": graph,
    }
    for title, rooms in of.items():
        measures = measure(rooms)
        row = (title, *measures[:4], len(measures.circles))
        print(f"| {' | '.join(map(str, row))} |")
        for circle in measures.circles:
            print(f"|   circle: {', '.join(circle)} | | | | | |")
    total, files, functions = sizes(arguments.root)
    print(f"\n{total:,} source lines; longest files and functions:")
    for lines, name in [*files, *functions]:
        print(f"  {lines:4} {name}")
    for wrong in wrong_ways(graph):
        print(f"wrong way: {wrong}")


if __name__ == "__main__":
    main()
