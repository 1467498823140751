"""Does the suite vouch for what runs? Trace a committed recipe, then run its steps on each mutant.

    python tools/conformance/on_runs.py [detail ...]

1. Every step of life.yaml runs once, in a fork and on a copy of the package, under a trace of the package's lines.
2. Every executable line that a mutation (mutations.yaml) breaks must have been hit: no detail is vouched for on code
   that no run executes.
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
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from mutants import ROOT, Mutation, copy_package, mutations, preload, written

RECIPE = Path(__file__).with_name("life.yaml")
LIMIT = 120
"""Seconds after which a step is killed: a loop that does not end is seen."""
CLOCK = ("seconds", "tokens_per_second", "peak_gpu_memory_mb", "checkpoint")
"""How the names of those metrics begin that tell of the machine and the day."""
KEPT = ("*.safetensors", "*.jsonl", "metrics.json", "tokenizer*.json", "config.json")
"""What counts of an output."""

Lines = dict[str, set[int]]
"""File of the package -> its lines that ran."""


class Step(NamedTuple):
    """A step of the recipe as it ran unbroken."""

    name: str
    output: Path
    lines: Lines
    content: dict[str, Any]
    seconds: float


class Work(NamedTuple):
    """Where everything lies: the copy of the package and the outputs."""

    folder: Path

    @property
    def store(self) -> Path:
        """The unbroken outputs, by step."""
        return self.folder / "store"


def main() -> None:
    """Trace the recipe, then run all mutants, or those of some details; print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("details", nargs="*", help="names of tests without test_; all of them by default")
    wanted, started = parser.parse_args().details, time.monotonic()
    chosen = [m for m in mutations() if not wanted or m.detail in wanted]
    preload()
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        copy_package(work.folder / "gptlife")
        steps = unbroken(work)
        everything = [lines_of(m) for m in chosen]
        missed = [(m, lines) for m, lines in zip(chosen, everything, strict=True) if not hit(steps, m.file, lines)]
        for mutation, lines in missed:
            print(f"NOT RUN  {mutation.detail:44} {mutation.file}:{min(lines)} {' '.join(mutation.old.split())[:80]}")
        vouched = {(m.file, line) for m, lines in zip(chosen, everything, strict=True) for line in lines}
        ran = [(file, line) for file, line in vouched if any(line in step.lines.get(file, ()) for step in steps)]
        print(f"{len(ran)} of {len(vouched)} vouched lines run by the {len(steps)} steps of {RECIPE.name}, "
              f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
        verdicts = [verdict(work, steps, m) for m in chosen]
    nothing = verdicts.count("NOTHING")
    print(f"{verdicts.count('seen')} of {len(chosen)} mutants change a run, {nothing} change nothing, "
          f"{verdicts.count('unseen')} can't be seen (reasons in mutations.yaml), {time.monotonic() - started:.0f} s")  # fmt: skip
    sys.exit(bool(nothing or missed))


def unbroken(work: Work) -> list[Step]:
    """Every step of the recipe, once."""
    if forked([lambda: foreign(work.folder / "foreign")], work.folder / "foreign.txt"):
        sys.exit((work.folder / "foreign.txt").read_text(encoding="utf-8"))
    listed = work.folder / "steps.json"
    if forked([lambda: write_names(work, listed)], work.folder / "plan.txt"):
        sys.exit((work.folder / "plan.txt").read_text(encoding="utf-8"))
    steps = []
    for name, count in json.loads(listed.read_text(encoding="utf-8")).items():
        output, words, began = work.store / name, work.folder / f"{name}.txt", time.monotonic()
        lines = work.folder / f"{name}.lines.json"
        if forked([lambda name=name: traced(work, name, lines)] + [lambda name=name: take(work, name)] * (count - 1),
                  words):  # fmt: skip
            sys.exit(f"{words.read_text(encoding='utf-8')}\n{name}: the recipe fails before anything is broken")
        ran = {file: set(hits) for file, hits in json.loads(lines.read_text(encoding="utf-8")).items()}
        steps.append(Step(name, output, ran, content(output), time.monotonic() - began))
        print(f"unbroken {steps[-1].seconds:5.1f} s  {name}", flush=True)
    return steps


def verdict(work: Work, steps: Sequence[Step], mutation: Mutation) -> str:
    """`seen`, `unseen` (for a reason) or `NOTHING`; prints a line of the table."""
    began, by, tried = time.monotonic(), "", 0
    lines = lines_of(mutation)
    hitting = [step for step in steps if lines & step.lines.get(mutation.file, set())]
    with written(work.folder, mutation):
        for step in sorted(hitting, key=lambda step: not lines <= step.lines[mutation.file]):
            tried += 1
            if by := difference(work, step):
                by = f"{step.name}: {by}"
                break
    state = "seen" if by else "unseen" if mutation.unseen else "NOTHING"
    new = " ".join(mutation.new.split())
    print(f"{state:8} {time.monotonic() - began:5.1f} s  {mutation.detail:44} {mutation.file:31} {new[:60]:60} "
          f"{by or mutation.unseen or f'{tried} steps tried'}", flush=True)  # fmt: skip
    return state


def difference(work: Work, step: Step) -> str:
    """In what a mutant's step differs from the unbroken one: the first of its files, or how it failed; "": nothing."""
    output, words = work.folder / "broken" / step.name, work.folder / "broken.txt"
    shutil.rmtree(output.parent, ignore_errors=True)
    count = 2 if "two" in step.name else 1
    code = forked([lambda: take(work, step.name, output)] * count, words)
    if code:
        last = (words.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        return "did not end" if code == -signal.SIGALRM else f"fails: {last[:100]}"
    found = content(output)
    changed = [name for name in sorted({*found, *step.content}) if found.get(name) != step.content.get(name)]
    return ", ".join(changed[:3])


# A step in a fork


def forked(works: Sequence[Callable[[], None]], words: Path) -> int:
    """The first exit code that is not 0 of forks that do `works`, told of each other if there are several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    sys.stdout.flush()
    for rank, work in enumerate(works):
        child = os.fork()
        if child == 0:
            if len(works) > 1:
                told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(works), "LOCAL_WORLD_SIZE": len(works),
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
                os.environ.update({name: str(value) for name, value in told.items()})
            in_child(work, words)
        children.append(child)
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:  # the others wait for it, as long as they may
            for other in {*children} - {*codes}:
                os.kill(other, signal.SIGKILL)
    return next((codes[child] for child in sorted(codes, key=lambda c: codes[c] == -signal.SIGKILL) if codes[child]), 0)


def in_child(work: Callable[[], None], words: Path) -> None:
    """In the fork: never comes back."""
    code = 1
    try:
        file = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.alarm(LIMIT)
        work()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def planned(work: Work, store: Path) -> tuple[list[Any], Any]:
    """(steps of the recipe as a plan has them, the store), by the package in the folder."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(work.folder))
    os.chdir(ROOT)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    from gptlife.pipelines.lifecycle import LIFECYCLE
    from gptlife.pipelines.planner import plan
    from gptlife.pipelines.recipe import load
    from gptlife.pipelines.store import Store

    assert str(sys.modules["gptlife.pipelines.store"].__file__).startswith(str(work.folder))
    there = Store(store)
    return plan(load(str(RECIPE), [f"vars.foreign={work.folder / 'foreign'}"], LIFECYCLE), there), there


def write_names(work: Work, path: Path) -> None:
    """The steps that something has to make, and how many processes each wants."""
    steps, _ = planned(work, work.store)
    path.write_text(json.dumps({s.name: s.config.processes or 1 for s in steps if s.config is not None}), "utf-8")


def take(work: Work, name: str, output: Path | None = None) -> None:
    """Run a step from the unbroken outputs; its own output is among them unless another is given."""
    from_store = work.folder / f"plan-{name}-{os.environ.get('RANK', '0')}"
    steps, store = planned(work, from_store)
    step = next(step for step in steps if step.name == name)
    from gptlife.pipelines.launch import command

    inputs = [
        f"inputs.{key}={work.folder / 'foreign' if up.config is None else work.store / up.name}"
        for key, up in step.inputs.items()
    ]
    words = command(step, store)
    words = ["--config", words[words.index("--config") + 1], *inputs, f"output={output or work.store / name}"]
    importlib.import_module(step.module).STAGE.main(words)


def traced(work: Work, name: str, path: Path) -> None:
    """`take`, and the lines of the package that ran, imports included."""
    package = f"{work.folder / 'gptlife'}{os.sep}"
    lines: Lines = {}

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(package):
            return None
        hits = lines.setdefault(file.removeprefix(package), set())

        def on_line(frame: FrameType, event: str, argument: Any) -> Any:
            hits.add(frame.f_lineno)
            return on_line

        return on_line(frame, event, argument)

    threading.settrace(on_call)
    sys.settrace(on_call)
    try:
        take(work, name)
    finally:
        sys.settrace(None)
        path.write_text(json.dumps({file: sorted(hits) for file, hits in lines.items()}), "utf-8")


def foreign(folder: Path) -> None:
    """A model as the hub has them: GPT-2's dropout in its config, PAD = EOS in its tokenizer, and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    end = "<|end|>"
    symbols = [end, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    chat = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '>' }}{% generation %}"
        "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ '<' + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '>' }}{% endif %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=end, chat_template=chat
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(symbols), n_embd=16, n_layer=1, n_head=2, n_positions=512, bos_token_id=0,
                        eos_token_id=0, pad_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)


# Lines and outputs


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
        around = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt) and n.lineno <= first <= n.end_lineno]
        inner = max(around, key=lambda node: node.lineno)
        there = executable & {*range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)}
    return frozenset(there)


def executable_lines(code: CodeType) -> Iterable[int]:
    """The lines that have instructions, those of functions and classes inside included."""
    yield from (line for _, line in dis.findlinestarts(code) if line)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from executable_lines(constant)


def hit(steps: Sequence[Step], file: str, lines: Iterable[int]) -> bool:
    """Whether the steps together ran all of the lines."""
    return {*lines} <= set().union(*(step.lines.get(file, set()) for step in steps))


def content(output: Path) -> dict[str, Any]:
    """What counts of an output, by file: weights by their bytes, rows, log and metrics without what the clock says."""
    found: dict[str, Any] = {}
    for path in sorted(path for pattern in KEPT for path in output.rglob(pattern)):
        name = str(path.relative_to(output))
        if path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text("utf-8").split("\n") if line]
        elif path.name == "metrics.json":
            found[name] = timeless(json.loads(path.read_text("utf-8")))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def timeless(row: dict[str, Any]) -> str:
    """A row without the metrics of the machine and the day; as text, in which a NaN is equal to itself."""
    return json.dumps({key: value for key, value in row.items() if not key.startswith(CLOCK)}, sort_keys=True)


if __name__ == "__main__":
    main()
