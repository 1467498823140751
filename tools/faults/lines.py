"""What a user sees when something breaks, and what is left on disk: docs/results/faults.md.

    python tools/faults/lines.py --page docs/results/faults.md

Every fault is brought about in a real `gptlife run` of the first steps of `life.yaml`; the page shows the line itself
(places shortened), the exit code and the files. Then the fault is fixed where it has to be, the same command is run
again, and what comes out is compared with an undisturbed run's by sha256. Exit code 1 when one differs. A full and a
read-only disk are file systems in memory, which need root; without it these two are left out, and the page says so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import forked

from gptlife.data.config import sha256_of_file
from gptlife.data.sources import Source
from gptlife.data.sources import rows as rows_of
from gptlife.stages.training.checkpoints import STATE

LIFE = Path(__file__).with_name("life.yaml")
TWO = "pretrain.launcher=torchrun --standalone --nproc_per_node 2"
LONG = "pretrain.tokens=240000"
LONGEST = 240.0


@dataclass
class Seen:
    """One fault, as the page tells it."""

    fault: str
    code: int
    lines: list[str]
    left: str
    again: str


class Ground:
    """A folder with a recipe, its data, an undisturbed store, and a store for each fault."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "whole"
        village = Source.model_validate({"village": {"part": "web", "count": 600}})
        with gzip.open(folder / "text.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row.fields) + "\n" for row in rows_of(village))
        (folder / "rewards.py").write_text(
            "calls = 0\n\n\ndef breaks(prompts, answers):\n    global calls\n    calls += 1\n"
            "    return [float('nan') if calls > 4 else 1.0 for _ in answers]\n"
        )
        (folder / "faults.yaml").write_text(
            f"extends: {LIFE}\npretrain: {{data: {folder}/text.jsonl.gz, tokens: 48_000}}\n"
            f"ppo: {{reward_function: {folder}/rewards.py:breaks, inputs: {{reward: null}}}}\n"
        )
        done = self.run("--until", "sft")
        assert done.returncode == 0, done.stderr
        self.whole = self.digest()

    def words(self, *more: str) -> list[str]:
        """The command that a user types."""
        until = [] if "--until" in more else ["--until", "pretrain"]
        store = ["--store", str(self.store)]
        return [
            sys.executable,
            "-m",
            "gptlife.pipelines.cli",
            "run",
            str(self.folder / "faults.yaml"),
            *store,
            *until,
            *more,
        ]

    def start(self, *more: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start it, as the leader of a process group."""
        return subprocess.Popen(
            [*prefix, *self.words(*more)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=forked.environment(),
        )  # fmt: skip

    def run(self, *more: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Do it to its end."""
        running = self.start(*more, prefix=prefix)
        out, err = running.communicate(timeout=LONGEST)
        return subprocess.CompletedProcess(running.args, running.returncode, out, err)

    def fresh(self, name: str, *, trained: bool = False) -> None:
        """A new store for a fault, with the tokenizer alone, or (`trained`) all that came before PPO."""
        root = self.folder / re.sub(r"\W+", "-", name)
        shutil.copytree(self.folder / "whole", root, ignore=shutil.ignore_patterns(".work"))
        self.store = root
        for step in () if trained else ("pretrain", "sft"):
            for output in root.glob(f"{step}-*"):
                shutil.rmtree(output)

    def begun(self, *more: str, lines: int = 12) -> subprocess.Popen[str]:
        """A pretraining at work that has logged some steps and kept checkpoints."""
        running, end = self.start(*more), time.monotonic() + LONGEST
        while True:
            logs = [path.read_text("utf-8").count("\n") for path in self.store.glob("pretrain-*.partial/log.jsonl")]
            if logs and logs[0] >= lines and len(self.checkpoints()) >= 2:
                return running
            if running.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"pretraining ended too early: {running.communicate()}")
            time.sleep(0.01)

    def interrupted(self) -> None:
        """A pretraining killed in the middle, whose newest checkpoint may be damaged."""
        running = self.begun()
        os.killpg(running.pid, signal.SIGKILL)
        for pid in _stages_on(self.store):  # a stage leads its own group
            os.kill(pid, signal.SIGKILL)
        running.communicate()
        while _stages_on(self.store):
            time.sleep(0.05)

    def checkpoints(self) -> list[Path]:
        """Pretraining's finished checkpoints, oldest first."""
        paths = self.store.glob("pretrain-*.partial/checkpoints/step-*")
        return sorted(path for path in paths if path.suffix == "")

    def digest(self) -> str:
        """sha256 of pretraining's weights; empty when it is not complete."""
        paths = [path for path in self.store.glob("pretrain-*/model.safetensors") if path.parent.suffix != ".partial"]
        return sha256_of_file(str(paths[0])) if paths else ""

    def shown(self, text: str) -> list[str]:
        """Its lines, with the places' common beginnings left out."""
        for path, short in ((str(self.store), "store"), (f"{self.folder}/", ""), (sys.executable, "python")):
            text = text.replace(path, short)
        return [line for line in text.splitlines() if line]

    def left(self) -> str:
        """What of the step is on the disk."""
        told = []
        for output in sorted(self.store.glob("p*-*")):
            if output.suffix != ".partial":
                told.append(f"`{output.name.partition('-')[0]}` complete")
                continue
            kept = [f"`{path.name}`" for path in sorted((output / "checkpoints").glob("*")) if path.is_dir()]
            told.append(f"`{output.name.partition('-')[0]}` partial, checkpoints {', '.join(kept) or 'none'}")
        return "; ".join(told) or "nothing of it"


def _stages_on(store: Path) -> list[int]:
    """Processes at work on a store."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if b"gptlife.stages." in words and str(store).encode() in words:
            pids.append(int(entry.parent.name))
    return pids


Make = Callable[[Ground], Iterator[Seen]]
FAULTS: list[Make] = []


def fault(make: Make) -> Make:
    """One that the page tells of."""
    FAULTS.append(make)
    return make


def ended_like_the_undisturbed(ground: Ground, *more: str) -> str:
    """Run the command again; what came of it."""
    done = ground.run(*more)
    if done.returncode != 0:
        return f"FAILED: {ground.shown(done.stderr)[-1:]}"
    return "the undisturbed run's sha256" if ground.digest() == ground.whole else "DIFFERS"


def seen(
    ground: Ground, name: str, done: subprocess.CompletedProcess[str], *, last: int = 1, run_again: bool = True
) -> Seen:
    """Tell of a run that met its fault, then run again."""
    lines, left = ground.shown(done.stderr)[-last:], ground.left()
    return Seen(name, done.returncode, lines, left, ended_like_the_undisturbed(ground) if run_again else "")


def finished(running: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for what was begun."""
    out, err = running.communicate(timeout=LONGEST)
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


@fault
def stopped(ground: Ground) -> Iterator[Seen]:
    for name, number in (("Ctrl-C", signal.SIGINT), ("SIGTERM to the command", signal.SIGTERM)):
        ground.fresh(name)
        running = ground.begun()
        running.send_signal(number)
        yield seen(ground, name, finished(running), last=2)


@fault
def killed(ground: Ground) -> Iterator[Seen]:
    ground.fresh("killed")
    running = ground.begun()
    for pid in _stages_on(ground.store):
        os.kill(pid, signal.SIGKILL)
    yield seen(ground, "SIGKILL of the stage", finished(running))


@fault
def killed_rank(ground: Ground) -> Iterator[Seen]:
    ground.fresh("rank")
    running = ground.begun(TWO)
    ranks = [pid for pid in _stages_on(ground.store) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(ranks[0], signal.SIGKILL)
    begun, done = time.monotonic(), finished(running)
    told = seen(
        ground,
        f"SIGKILL of one process of two (all ended {time.monotonic() - begun:.0f} s later)",
        done,
        run_again=False,
    )
    blamed = [
        line for line in ground.shown(done.stderr) if "rank" in line and ("SIGKILL" in line or "exitcode" in line)
    ]
    told.lines = [line.strip() for line in blamed[:1]] + told.lines
    again = ground.run(TWO)
    one = ground.digest()
    ground.fresh("rank undisturbed")
    ground.run(TWO)
    same = again.returncode == 0 and one == ground.digest() != ""
    told.again = "the sha256 of two undisturbed processes" if same else "DIFFERS"
    yield told


@fault
def another_world(ground: Ground) -> Iterator[Seen]:
    ground.fresh("world")
    ground.interrupted()
    done = ground.run(TWO)
    told = seen(ground, "Resumed by two processes where one began", done, run_again=False)
    told.lines = [line for line in ground.shown(done.stderr) if "resumed with" in line]
    told.again = "not needed: it goes on"
    yield told


def bytes_of(path: Path, change: Callable[[bytearray], bytearray]) -> None:
    path.write_bytes(bytes(change(bytearray(path.read_bytes()))))


def flipped(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 1
    return content


def halved(content: bytearray) -> bytearray:
    return content[: len(content) // 2]


@fault
def checkpoints(ground: Ground) -> Iterator[Seen]:
    damages: dict[str, Callable[[Path], None]] = {
        "A checkpoint's weights cut short": lambda path: bytes_of(path / "model.safetensors", halved),
        "One bit of a checkpoint's weights flipped": lambda path: bytes_of(path / "model.safetensors", flipped),
        "A checkpoint without its optimizer": lambda path: (path / "optimizer.bin").unlink(),
        "A checkpoint without its random states": lambda path: (path / "random_states_0.pkl").unlink(),
        "A checkpoint's list of files torn": lambda path: bytes_of(path / STATE, halved),
    }
    for name, damage in damages.items():
        ground.fresh(name)
        ground.interrupted()
        damage(ground.checkpoints()[-1])
        yield goes_on(ground, name)
    ground.fresh("all damaged")
    ground.interrupted()
    for path in ground.checkpoints():
        bytes_of(path / "optimizer.bin", flipped)
    yield goes_on(ground, "Every checkpoint damaged")


@fault
def pieces(ground: Ground) -> Iterator[Seen]:
    ground.fresh("shard")
    ground.interrupted()
    bytes_of(next(ground.store.glob("pretrain-*.partial/checkpoints/pretrain.data.tokens")), flipped)
    yield goes_on(ground, "One bit of the packed tokens flipped")
    ground.fresh("record")
    ground.interrupted()
    (partial,) = ground.store.glob("pretrain-*.partial")
    bytes_of(partial / "stage.yaml", lambda content: bytearray(len(content)))
    told = seen(ground, "An unfinished output's `stage.yaml` full of zeros", ground.run(), run_again=False)
    shutil.rmtree(partial)
    told.again = f"with that removed: {ended_like_the_undisturbed(ground)}"
    yield told


@fault
def numbers(ground: Ground) -> Iterator[Seen]:
    ground.fresh("numbers", trained=True)
    (made,) = ground.store.glob("sft-*")
    bytes_of(made / "metrics.json", flipped)
    words = [sys.executable, "-m", "gptlife.pipelines.cli", "show", made.name, "--store", str(ground.store)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told = seen(ground, "One bit of finished numbers flipped, and `gptlife show`", done, run_again=False)
    told.again = f"with `--fresh sft`: {ended_like_the_undisturbed(ground, '--until', 'sft', '--fresh', 'sft')}"
    yield told


def goes_on(ground: Ground, name: str) -> Seen:
    """Run again with a damage there: it is named, and the run comes to its end."""
    kept = ", ".join(f"`{path.name}`" for path in ground.checkpoints())
    done = ground.run()
    lines = [line for line in ground.shown(done.stderr) if "checkpoints/" in line or "no good" in line]
    same = "it goes on, and ends with the undisturbed run's sha256" if ground.digest() == ground.whole else "DIFFERS"
    return Seen(name, done.returncode, lines, f"before: {kept}; after: {ground.left()}", same)


@fault
def inputs(ground: Ground) -> Iterator[Seen]:
    for name, file, change in (
        ("A finished input's manifest torn", "manifest.json", halved),
        ("One bit of a finished input flipped", "tokenizer.json", flipped),
    ):
        ground.fresh(name)
        (tokenizer,) = ground.store.glob("tokenizer-*")
        bytes_of(tokenizer / file, change)
        told = seen(ground, name, ground.run(), run_again=False)
        told.again = f"with `--fresh tokenizer`: {ended_like_the_undisturbed(ground, '--fresh', 'tokenizer')}"
        yield told


@fault
def data(ground: Ground) -> Iterator[Seen]:
    text = ground.folder / "text.jsonl.gz"
    whole = text.read_bytes()
    ground.fresh("data changes")
    running = ground.begun()
    text.write_bytes(whole + gzip.compress(b'{"text": "One more."}\n'))
    done = finished(running)
    told = seen(ground, "The data changes while it trains", done, run_again=False)
    text.write_bytes(whole)
    told.again = f"with the old data back: {ended_like_the_undisturbed(ground)}"
    yield told
    ground.fresh("data cut")
    text.write_bytes(whole[: len(whole) // 2])
    done = ground.run()
    text.write_bytes(whole)
    yield seen(ground, "A packed data file cut short", done)


@fault
def twice(ground: Ground) -> Iterator[Seen]:
    ground.fresh("twice")
    running = ground.begun(LONG)
    second = ground.run(LONG)
    told = seen(ground, "A second `gptlife run` on the same store", second, run_again=False)
    first = finished(running)
    told.again = "the first is not disturbed" if first.returncode == 0 else "DIFFERS"
    yield told
    ground.fresh("stage twice")
    running = ground.begun(LONG)
    (config,) = ground.store.glob(".work/pretrain-*.stage.yaml")
    words = [sys.executable, "-m", "gptlife.stages.pretrain", "--config", str(config)]
    second = subprocess.run(words, capture_output=True, text=True, check=False)
    told = seen(ground, "One stage started twice", second, run_again=False)
    told.again = "the first is not disturbed" if finished(running).returncode == 0 else "DIFFERS"
    yield told


@fault
def not_finite(ground: Ground) -> Iterator[Seen]:
    ground.fresh("nan loss")
    done = ground.run("pretrain.learning_rate=1e30")
    told = seen(ground, "A loss that is not a number (learning rate 1e30)", done, last=2, run_again=False)
    told.again = "nothing to resume: the setting has to be fixed, which makes another address"
    yield told
    ground.fresh("nan reward", trained=True)
    done = ground.run("--until", "ppo")
    told = seen(ground, "A reward function that gives NaN at the fifth call", done, last=2, run_again=False)
    told.again = "nothing to resume: the function has to be fixed, which makes another address"
    yield told


@fault
def memory(ground: Ground) -> Iterator[Seen]:
    ground.fresh("memory")
    more = [f"pretrain.{name}=800000" for name in ("tokens", "batch_tokens", "micro_batch_tokens", "decay_tokens")]
    done = ground.run(*more, prefix=("bash", "-c", 'ulimit -v 3000000; exec "$@"', "-"))
    told = seen(ground, "No memory (3 GB, a micro-batch of 800,000 tokens)", done, run_again=False)
    again = ground.run(
        *more, "pretrain.micro_batch_tokens=8192", prefix=("bash", "-c", 'ulimit -v 3000000; exec "$@"', "-")
    )
    told.again = "with micro_batch_tokens 8192, the same address: " + ("done" if again.returncode == 0 else "FAILED")
    yield told


@fault
def disks(ground: Ground) -> Iterator[Seen]:
    for name, options, fixed in (
        ("A full disk", "size=6m", "size=64m"),
        ("A read-only disk", "size=64m", "rw"),
    ):
        ground.fresh(name)
        root = ground.store
        kept = root.with_name(f"{root.name}.kept")
        root.rename(kept)
        root.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(root)], capture_output=True, text=True
        )
        if mounted.returncode:
            yield Seen(name, 0, [f"not tried: {mounted.stderr.strip()}"], "", "")
            continue
        try:
            shutil.copytree(kept, root, dirs_exist_ok=True)
            if "read-only" in name:
                subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
            done = ground.run()
            lines, left = ground.shown(done.stderr)[-1:], ground.left()
            subprocess.run(["mount", "-o", f"remount,{fixed}", str(root)], check=True)
            yield Seen(name, done.returncode, lines, left, f"with room: {ended_like_the_undisturbed(ground)}")
        finally:
            subprocess.run(["umount", str(root)], check=False)


def page(told: list[Seen], seconds: float) -> str:
    """All of it as Markdown."""
    lines = [
        "# What breaks, and what a user sees",
        "",
        f"Made by `python tools/faults/lines.py --page docs/results/faults.md` in {seconds / 60:.0f} minutes: every "
        "fault is brought about in a real run of [tools/faults/life.yaml](../../tools/faults/life.yaml), and the same "
        "command is run again once it is fixed. Kills at random moments have [a page of their own](kills.md). A clock "
        "that jumps shows nothing: only monotonic time is looked at (`tests/stages/training/test_checkpoints.py`).",
    ]
    for one in told:
        lines += ["", f"**{one.fault}** (exit code {one.code})", "", "```text", *one.lines, "```", ""]
        lines += [f"Left: {one.left}. Again: {one.again}." if one.left else "Left: nothing to tell."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Bring them about, one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", help="names of functions above")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background, and its children, ignore it
    begun, told = time.monotonic(), list[Seen]()
    folder = Path(tempfile.mkdtemp(prefix="gptlife-faults-"))
    ground = Ground(folder)
    for make in FAULTS:
        if arguments.only and make.__name__ not in arguments.only:
            continue
        for one in make(ground):
            told.append(one)
            print(
                f"\n{one.fault} ({one.code})\n  "
                + "\n  ".join(one.lines)
                + f"\n  left: {one.left}\n  again: {one.again}",
                flush=True,
            )
    if arguments.page:
        arguments.page.write_text(page(told, time.monotonic() - begun), encoding="utf-8")
    shutil.rmtree(folder)
    return int(any("DIFFERS" in one.again or "FAILED" in one.again for one in told))


if __name__ == "__main__":
    sys.exit(main())
