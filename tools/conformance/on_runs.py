"""Does the suite vouch for what runs? Trace a committed recipe, then run its steps on each mutant.

    python tools/conformance/on_runs.py [detail ...]

1. Every step of life.yaml runs in a fork and on a copy of the package: once under a trace of the package's lines, once
   more without, and both times makes the same.
2. Every executable line that a mutation (mutations.yaml) breaks must have been hit, and every function of ours that the
   suite names must have run: no detail is vouched for on code that no run executes.
3. Each mutant runs the first step that hits its lines, from the unbroken outputs upstream of it, then the next one. It
   is seen when the step fails, or when weights, rows, metrics or log differ from the unbroken step's.

A step is started as `gptlife run` starts it: `launch.command` writes its stage.yaml, and the stage's own `main` reads
it; a step of two processes is two forks, told of each other as a launcher tells them. Ends with 1 when a line is not
hit or a mutant changes nothing, except where the mutation gives the reason (`unseen`). `mutants.py` is the other half:
there each mutant turns its detail's test red.
"""

from __future__ import annotations

import argparse
import ast
import dis
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import CodeType

from mutants import ROOT, SUITE, Mutation, copy_package, mutations, preload, written
from steps import RECIPE, Step, difference, unbroken


def main() -> None:
    """Trace the recipe, then run all mutants, or those of some details; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("details", nargs="*", help="names of tests without test_; all of them by default")
    wanted, started = parser.parse_args().details, time.monotonic()
    chosen = [m for m in mutations() if not wanted or m.detail in wanted]
    preload()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_package(folder / "gptlife")
        steps = unbroken(folder)
        everything = [lines_of(m) for m in chosen]
        missed = [(m, lines) for m, lines in zip(chosen, everything, strict=True) if not hit(steps, m.file, lines)]
        for mutation, lines in missed:
            print(f"NOT RUN  {mutation.detail:44} {mutation.file}:{min(lines)} {' '.join(mutation.old.split())[:80]}")
        vouched = {(m.file, line) for m, lines in zip(chosen, everything, strict=True) for line in lines}
        ran = [(file, line) for file, line in vouched if any(line in step.lines.get(file, ()) for step in steps)]
        print(f"{len(ran)} of {len(vouched)} vouched lines run by the {len(steps)} steps of {RECIPE.name}, "
              f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
        idle = [name for name, (file, lines) in imported().items() if not any(hit(steps, file, [n]) for n in lines)]
        print(f"{len(imported()) - len(idle)} of {len(imported())} functions that the suite names run"
              f"{''.join(f'; NOT RUN: {name}' for name in idle)}", flush=True)  # fmt: skip
        verdicts = [verdict(folder, steps, m, lines) for m, lines in zip(chosen, everything, strict=True)]
    nothing = verdicts.count("NOTHING")
    seen, unseen = verdicts.count("seen"), verdicts.count("unseen")
    print(f"{seen} of {len(chosen)} mutants change a run, {nothing} change nothing, {unseen} can't "
          f"(reasons in mutations.yaml), {time.monotonic() - started:.0f} s")  # fmt: skip
    sys.exit(bool(nothing or missed or idle))


def verdict(folder: Path, steps: Sequence[Step], mutation: Mutation, lines: frozenset[int]) -> str:
    """`seen`, `unseen` (for a reason) or `NOTHING`; prints a line of the table."""
    began, by, tried = time.monotonic(), "", 0
    hitting = [step for step in steps if lines & step.lines.get(mutation.file, set())]
    with written(folder, mutation):
        for step in sorted(hitting, key=lambda step: not lines <= step.lines[mutation.file]):
            tried += 1
            if by := difference(folder, step):
                by = f"{step.name}: {by}"
                break
    state = "seen" if by else "unseen" if mutation.unseen else "NOTHING"
    new = " ".join(mutation.new.split())
    print(f"{state:8} {time.monotonic() - began:5.1f} s  {mutation.detail:44} {mutation.file:31} {new[:60]:60} "
          f"{by or mutation.unseen or f'{tried} steps tried'}", flush=True)  # fmt: skip
    return state


def lines_of(mutation: Mutation) -> frozenset[int]:
    """The executable lines that a mutation breaks; where its text has none, those of the statement around it."""
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    start = source.index(mutation.old)
    stripped = mutation.old.strip()
    first = source.count("\n", 0, source.index(stripped, start)) + 1
    last = first + stripped.count("\n")
    executable = set(executable_lines(compile(source, mutation.file, "exec")))
    there = executable & {*range(first, last + 1)}
    if not there:
        statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
        around = [node for node in statements if node.lineno <= first <= (node.end_lineno or node.lineno)]
        inner = max(around, key=lambda node: node.lineno)
        there = executable & {*range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)}
    return frozenset(there)


def imported() -> dict[str, tuple[str, range]]:
    """The functions of ours that the suite's files name: where each is, and the lines of its body."""
    found: dict[str, tuple[str, range]] = {}
    for path in sorted(SUITE.glob("*.py")):
        for file, names in named_in(ast.parse(path.read_text(encoding="utf-8"))).items():
            for function in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
                if isinstance(function, ast.FunctionDef) and function.name in names:
                    body = range(function.body[0].lineno, (function.end_lineno or function.lineno) + 1)
                    found[f"{file}: {function.name}"] = (file, body)
    return found


def named_in(tree: ast.Module) -> dict[str, set[str]]:
    """Names by file of ours: those that are imported from it, and those that follow a dot behind it."""
    found: dict[str, set[str]] = {}
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptlife."):
            folder = str(node.module).removeprefix("gptlife.").replace(".", "/")
            for alias in node.names:
                if (ROOT / folder / f"{alias.name}.py").is_file():
                    modules[alias.asname or alias.name] = f"{folder}/{alias.name}.py"
                else:
                    found.setdefault(f"{folder}.py", set()).add(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.setdefault(modules[node.value.id], set()).add(node.attr)
    return found


def executable_lines(code: CodeType) -> Iterable[int]:
    """The lines that have instructions, those of functions and classes inside included."""
    yield from (line for _, line in dis.findlinestarts(code) if line)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from executable_lines(constant)


def hit(steps: Sequence[Step], file: str, lines: Iterable[int]) -> bool:
    """Whether the steps together ran all of the lines."""
    return {*lines} <= set().union(*(step.lines.get(file, set()) for step in steps))


if __name__ == "__main__":
    main()
