"""A recipe's steps in forks: run once unbroken, under a trace, and run again to see what differs.

The parent imports nothing of ours and computes nothing. Every fork runs a copy of the package, with whatever is broken
in it, from the plan to the stage's own `main`: a default that a config leaves open is broken too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from mutants import ROOT

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
    processes: int
    lines: Lines
    content: dict[str, Any]


def unbroken(folder: Path) -> list[Step]:
    """Every step of the recipe, by the package in `folder`, into `folder/store`."""
    shutil.copy(RECIPE, folder)
    listed, words = folder / "steps.json", folder / "plan.txt"
    for before in (partial(foreign, folder / "foreign"), partial(write_names, folder, listed)):
        if forked([before], words):
            sys.exit(words.read_text(encoding="utf-8"))
    steps = []
    for name, count in json.loads(listed.read_text(encoding="utf-8")).items():
        words, lines, began = folder / f"{name}.txt", folder / f"{name}.lines.json", time.monotonic()
        ranks = [partial(traced, folder, name, lines), *[partial(take, folder, name)] * (count - 1)]
        if forked(ranks, words):
            sys.exit(f"{words.read_text(encoding='utf-8')}\n{name}: the recipe fails before anything is broken")
        ran = {file: set(hits) for file, hits in json.loads(lines.read_text(encoding="utf-8")).items()}
        steps.append(Step(name, count, ran, content(folder / "store" / name)))
        if by := difference(folder, steps[-1]):
            sys.exit(f"{name}: differs from itself, unbroken ({by}), so a mutant's difference would mean nothing")
        print(f"unbroken {time.monotonic() - began:5.1f} s  {name}", flush=True)
    return steps


def difference(folder: Path, step: Step) -> str:
    """In what a mutant's step differs from the unbroken one: the first of its files, or how it failed; "": nothing."""
    output, words = folder / "broken" / step.name, folder / "broken.txt"
    shutil.rmtree(output.parent, ignore_errors=True)
    words.unlink(missing_ok=True)
    code = forked([partial(take, folder, step.name, output)] * step.processes, words)
    if code:
        last = (words.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        return "did not end" if code == -signal.SIGALRM else f"fails: {last[:100]}"
    found = content(output)
    changed = [name for name in sorted({*found, *step.content}) if found.get(name) != step.content.get(name)]
    return ", ".join(changed[:3])


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


def planned(folder: Path, store: Path) -> tuple[list[Any], Any]:
    """(steps of the recipe as a plan has them, the store), by the package in the folder."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(ROOT)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    from gptlife.pipelines.lifecycle import LIFECYCLE
    from gptlife.pipelines.planner import plan
    from gptlife.pipelines.recipe import load
    from gptlife.pipelines.store import Store

    assert str(sys.modules["gptlife.pipelines.store"].__file__).startswith(str(folder))
    there = Store(store)
    return plan(load(str(folder / RECIPE.name), [f"vars.foreign={folder / 'foreign'}"], LIFECYCLE), there), there


def write_names(folder: Path, path: Path) -> None:
    """The steps that something has to make, and how many processes each wants."""
    steps, _ = planned(folder, folder / "store")
    wanted = {step.name: step.config.processes or 1 for step in steps if step.config is not None}
    path.write_text(json.dumps(wanted), encoding="utf-8")


def take(folder: Path, name: str, output: Path | None = None) -> None:
    """Run a step from the unbroken outputs; its own output is among them unless another is given."""
    from_store = folder / f"plan-{name}-{os.environ.get('RANK', '0')}"
    steps, store = planned(folder, from_store)
    step = next(step for step in steps if step.name == name)
    from gptlife.pipelines.launch import command

    inputs = [
        f"inputs.{key}={folder / 'foreign' if up.config is None else folder / 'store' / up.name}"
        for key, up in step.inputs.items()
    ]
    words = command(step, store)
    words = ["--config", words[words.index("--config") + 1], *inputs, f"output={output or folder / 'store' / name}"]
    importlib.import_module(step.module).STAGE.main(words)


def traced(folder: Path, name: str, path: Path) -> None:
    """`take`, and the lines of the package that ran, imports included."""
    package = f"{folder / 'gptlife'}{os.sep}"
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
        take(folder, name)
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
    own = {"tokenizer_object": backend, "eos_token": end, "pad_token": end, "chat_template": chat}
    PreTrainedTokenizerFast(**own).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(symbols), n_embd=16, n_layer=1, n_head=2, n_positions=512, bos_token_id=0,
                        eos_token_id=0, pad_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)


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
