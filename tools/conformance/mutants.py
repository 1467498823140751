"""Break our code one detail at a time, and count which breaks the suite catches.

    python tools/conformance/mutants.py [detail ...]

Each mutation (mutations.yaml) is written into a copy of the package, and the one test that is named after its detail
runs on that copy. The mutant is caught when the test fails; an escaped one, a text that isn't found exactly once, a
detail without a mutation, or a suite that is red before anything is broken end the script with 1.

Every run is a fork of this process, which has imported torch and transformers (but nothing of ours), so a mutant costs
about a second. Needs an operating system that can fork.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import yaml

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests" / "conformance"
ROOMS = ("data", "reward", "stages", "pipelines")
LIMIT = 300
"""Seconds after which a run is killed (and its mutant counts as caught: a loop that doesn't end is seen)."""
FAILED = 1
"""What pytest ends with when a test failed."""
ODD = 99
"""What a fork ends with when it is its own fault."""


class Mutation(NamedTuple):
    """One wrong line."""

    detail: str
    """The test that must catch it, without test_."""
    file: str
    old: str
    """Occurs exactly once in the file."""
    new: str
    unseen: str = ""
    """Why it can't change a run (see on_runs.py); a mutation that can has none."""


def main() -> None:
    """Run all mutants, or those of some details; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("details", nargs="*", help="names of tests without test_; all of them by default")
    wanted = parser.parse_args().details
    started, places = time.monotonic(), tests()
    every = mutations()
    wrong = complaints(places, every)
    if wrong:
        sys.exit("\n".join(wrong))
    preload()
    with tempfile.TemporaryDirectory() as folder:
        copy_package(Path(folder) / "gptlife")
        chosen = [m for m in every if not wanted or m.detail in wanted]
        nodes = sorted({places[m.detail] for m in chosen})
        code, output = run(Path(folder), nodes)
        if code:
            sys.exit(f"{output}\nthe suite is red before anything is broken")
        print(f"unbroken: {len(nodes)} tests green, {time.monotonic() - started:.0f} s")
        escaped = [m for m in chosen if not caught(Path(folder), m, places[m.detail])]
    details = len({m.detail for m in chosen})
    print(f"{len(chosen) - len(escaped)} of {len(chosen)} mutants of {details} details caught, "
          f"{len(escaped)} escaped, {time.monotonic() - started:.0f} s")  # fmt: skip
    sys.exit(bool(escaped))


def mutations() -> list[Mutation]:
    """All that are committed."""
    return [Mutation(**row) for row in yaml.safe_load((SUITE / "mutations.yaml").read_text(encoding="utf-8"))]


def tests() -> dict[str, str]:
    """Each detail's test, as pytest names it; those of the vectors have no detail of their own."""
    found = {}
    for path in sorted(SUITE.glob("test_*.py")):
        if path.name != "test_vectors.py":
            for name in re.findall(r"^def test_(\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
                found[name] = f"{path}::test_{name}"
    return found


def complaints(places: dict[str, str], every: Sequence[Mutation]) -> list[str]:
    """What is wrong with the list of mutations."""
    found = [f"no mutation for the detail {name}" for name in places if name not in {m.detail for m in every}]
    for mutation in every:
        if mutation.detail not in places:
            found.append(f"{mutation.detail}: no test of this name")
        path = ROOT / mutation.file
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        if source.count(mutation.old) != 1:
            found.append(f"{mutation.detail}: {mutation.file} has {source.count(mutation.old)} times {mutation.old!r}")
        else:
            compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")
    return found


def preload() -> None:
    """Import what is slow and not ours."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    import accelerate  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import torch._dynamo
    import transformers

    torch.set_num_threads(1)
    _ = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.GPT2ForSequenceClassification)
    assert not [name for name in sys.modules if name.startswith("gptlife.")]
    gc.freeze()  # so that the forks' collectors have little to go through


def copy_package(package: Path) -> None:
    """Our source under `package`."""
    package.mkdir()
    shutil.copy(ROOT / "src" / "gptlife" / "__init__.py", package)
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))


@contextmanager
def written(folder: Path, mutation: Mutation) -> Iterator[None]:
    """The copy of the package under `folder` with the mutation in it."""
    path = folder / "gptlife" / mutation.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(source, encoding="utf-8")


def caught(folder: Path, mutation: Mutation, node: str) -> bool:
    """Whether the detail's test fails on the copy with the mutation in it; prints a line of the table."""
    began = time.monotonic()
    with written(folder, mutation):
        code, output = run(folder, [node])
    state = {FAILED: "caught", -signal.SIGALRM: "caught (did not end)", 0: "ESCAPED"}.get(code, f"pytest ended {code}")
    new, how = " ".join(mutation.new.split()), re.search(r"^E +(\w+)", output, re.MULTILINE)
    by = how[1] if how else ""
    took = time.monotonic() - began
    print(f"{state:8} {took:5.1f} s  {by:15} {mutation.detail:44} {mutation.file:23} {new[:80]}", flush=True)
    if not state.startswith(("caught", "ESCAPED")):
        print(output)
    return state.startswith("caught")


def run(folder: Path, nodes: list[str]) -> tuple[int, str]:
    """pytest in a fork that imports our package from `folder`: its exit status (negative: a signal), its output."""
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            signal.alarm(LIMIT)
            in_fork(folder, nodes)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode("utf-8", "replace")


def in_fork(folder: Path, nodes: list[str]) -> NoReturn:
    """The tests, on the package in `folder` and without bytecode: two mutants may have one size and one second."""
    code = ODD
    try:
        code = run_tests(folder, nodes)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_tests(folder: Path, nodes: list[str]) -> int:
    """In the fork; never the package that is installed."""
    import pytest

    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(folder))
    os.chdir(ROOT)
    # What takes longer than the tests: rewriting assertions for prettier messages, and plugins that aren't used here.
    options = ["-x", "-q", "--assert=plain", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    for plugin in ("cacheprovider", "hypothesispytest", "anyio", "unraisableexception"):
        options += ["-p", f"no:{plugin}"]
    code = int(pytest.main([*nodes, *options, "--basetemp", str(folder / "tests")]))
    loaded = [
        module.__file__ for name, module in sys.modules.items() if name.startswith("gptlife.") and module.__file__
    ]
    return code if all(str(file).startswith(str(folder)) for file in loaded) else ODD


if __name__ == "__main__":
    main()
