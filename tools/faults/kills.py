"""Kill every stage at random moments, resume it, and compare what it ends with: `make test-faults`.

    python tools/faults/kills.py --kills 120 --seed 0 [--page docs/results/kills.md]

Each step of `life.yaml` is made once undisturbed. Then it is made again under another store, and again, and in each
making it is killed one to four times, by

    SIGKILL  at a moment drawn evenly over the step's undisturbed time (training, sampling, loading)
             while a checkpoint or a piece of work is being written
             while the finished output is written and committed
    SIGTERM, SIGINT  at such a moment: it must end with 130, having kept its step

The last run of a step, which is not killed, must end with the same files as the undisturbed one: weights, tokenizer,
answers, metrics, model card, and a log with no step twice and none missing. The orchestrator (`gptlife run`) is killed
likewise. Exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import forked
from compare_stores import differences, fingerprint

from gptlife.data.config import sha256_of_file
from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.planner import Planned, plan
from gptlife.pipelines.recipe import load
from gptlife.pipelines.store import Store

RECIPE = Path(__file__).with_name("life.yaml")
MOMENTS = ("random", "random", "saving", "committing", "sigterm", "sigint")
SLOWEST = 300.0


@dataclass
class Tally:
    """What happened to one step."""

    seconds: float = 0.0
    weights: str = ""
    kills: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    differing: list[str] = field(default_factory=list)


class Harness:
    """Two stores: one undisturbed, one in which steps are killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.whole, self.hurt = Store(folder / "whole"), Store(folder / "hurt")
        recipe = load(str(RECIPE), [], LIFECYCLE)
        self.steps, hurt = plan(recipe, self.whole), plan(recipe, self.hurt)
        self.twins = {step.name: twin for step, twin in zip(self.steps, hurt, strict=True)}
        self.tallies = {step.name: Tally() for step in self.steps}

    def live(self) -> None:
        """Make every step undisturbed."""
        for step in self.steps:
            child = forked.Child(step, self.whole, self.folder / "whole.out")
            if child.end() != 0 or step.state != "done":
                raise SystemExit(f"{step.name}: can't be made undisturbed; see {child.words}")
            self.tallies[step.name].seconds = time.monotonic() - child.started
            print(f"{step.name:<14} undisturbed in {self.tallies[step.name].seconds:.1f} s", flush=True)
            if (made := step.path / "model.safetensors").is_file():
                self.tallies[step.name].weights = sha256_of_file(str(made))[:12]
        for step in self.steps:  # what a step reads is the undisturbed
            shutil.copytree(step.path, self.twins[step.name].path)

    def torment(self, step: Planned, kills: int) -> None:
        """Make a step again and again until it was killed so many times; compare each time that it is whole."""
        twin, tally = self.twins[step.name], self.tallies[step.name]
        wanted = fingerprint(step.path)
        while sum(tally.kills.values()) < kills:
            self.hurt.remove(twin.path)
            for _ in range(min(self.rng.randint(1, 4), kills - sum(tally.kills.values()))):
                if not self.kill_once(twin, tally):
                    break
            self.finish(twin)
            tally.compared += 1
            if wrong := differences(wanted, fingerprint(twin.path)):
                tally.differing += [f"{name} after {tally.kills}" for name in wrong]
                shutil.copytree(twin.path, self.folder / "differing" / f"{twin.address}-{tally.compared}")
                print(f"{step.name}: DIFFERS in {', '.join(wrong)}", flush=True)

    def kill_once(self, step: Planned, tally: Tally) -> bool:
        """Start the step and kill it at a moment; False when it ended first."""
        moment, partial = self.rng.choice(MOMENTS), step.path.with_name(f"{step.path.name}.partial")
        after = self.rng.random() * tally.seconds
        reached: dict[str, Callable[[], bool]] = {
            "saving": lambda: any((partial / "checkpoints").glob("*.partial")) or any(partial.rglob("*.tmp")),
            "committing": lambda: (partial / "metrics.json").is_file(),
        }
        child = forked.Child(step, self.hurt, self.folder / "hurt.out")
        late = child.started + (SLOWEST if moment == "committing" else after)
        # To kill a saving, wait for one after the drawn time.
        due = reached.get(moment, lambda: True)
        while not child.poll():
            now = time.monotonic()
            if (now >= late or moment == "committing") and due():
                break
            time.sleep(0.0005 if moment in reached else 0.005)
            if now > child.started + SLOWEST:
                child.end(signal.SIGKILL)
                raise SystemExit(f"{step.name}: hangs; see {child.words}")
        if child.code is not None:
            if child.code != 0:
                raise SystemExit(f"{step.name}: ended with {child.code} by itself; see {child.words}")
            return False
        number = {"sigterm": signal.SIGTERM, "sigint": signal.SIGINT}.get(moment, signal.SIGKILL)
        code = child.end(number)
        # One that is asked while it starts (before it hears) dies of the signal; one that was done is done.
        if code not in (-number, 0) and (number == signal.SIGKILL or code != 130):
            raise SystemExit(f"{step.name}: ended with {code} after {number.name}; see {child.words}")
        tally.kills[moment] += 1
        print(f"{step.name:<14} {moment:<10} after {time.monotonic() - child.started:5.2f} s: {code}", flush=True)
        return code != 0

    def finish(self, step: Planned) -> None:
        """Let the step come to its end."""
        child = forked.Child(step, self.hurt, self.folder / "hurt.out")
        if child.end() != 0 or step.state != "done":
            raise SystemExit(f"{step.name}: does not go on after its kills; see {child.words}")

    def torment_the_orchestrator(self, kills: int) -> Tally:
        """`gptlife run`, killed alone or with its stages, one step at a time or two; then every output is compared."""
        tally, lives = Tally(), 0
        while sum(tally.kills.values()) < kills:
            store, lives = Store(self.folder / f"orchestrated-{lives}"), lives + 1
            self._run_and_kill(store, tally, kills)
            for step, made in zip(self.steps, plan(load(str(RECIPE), [], LIFECYCLE), store), strict=True):
                tally.compared += 1
                tally.differing += differences(fingerprint(step.path), fingerprint(made.path))
        return tally

    def _run_and_kill(self, store: Store, tally: Tally, kills: int) -> None:
        """Run the recipe again and again until it is done; every run but the last ones is killed."""
        words = [sys.executable, "-m", "gptlife.pipelines.cli", "run", str(RECIPE), "--store", str(store.root)]
        with open(self.folder / "orchestrated.out", "ab") as out:
            while True:
                jobs = self.rng.choice(("1", "2"))
                run = subprocess.Popen(
                    [*words, "--jobs", jobs], stdout=out, stderr=out, start_new_session=True, env=forked.environment()
                )
                killing = sum(tally.kills.values()) < kills
                try:
                    code = run.wait(timeout=self.rng.uniform(1, 25) if killing else 1800)
                except subprocess.TimeoutExpired:
                    number = self.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
                    run.send_signal(number)
                    run.wait()
                    print(f"gptlife run    {number.name}, --jobs {jobs}: {run.returncode}", flush=True)
                    if run.returncode == 0:  # it was done just then
                        return
                    tally.kills[number.name.lower()] += 1
                    continue
                if code == 0:
                    return
                time.sleep(1)  # a stage that outlived its orchestrator holds its lock until it is done


def page(tallies: dict[str, Tally], seed: int, seconds: float, kills: int) -> str:
    """The table as Markdown."""
    moments = list(dict.fromkeys((*MOMENTS, "sigkill")))
    lines = [
        "# Killed and resumed",
        "",
        f"Made by `python tools/faults/kills.py --kills {kills} --seed {seed} --page docs/results/kills.md` in "
        f"{seconds / 60:.0f} minutes. A step of [tools/faults/life.yaml](../../tools/faults/life.yaml) is killed one "
        "to four times in each making, and then left to finish; the result is compared with the undisturbed one, file "
        "by file: weights, tokenizer, answers, metrics.json, model card, and the log without its times. `committing`: "
        "SIGKILL while the finished output is written; `saving`: while a checkpoint or a piece of work is. `ppo_two` "
        "is PPO in two processes, of which SIGKILL strikes one first; `gptlife run` makes the whole recipe (`--jobs` 1 "
        "or 2); what it began lives on or dies with it. The last column has the sha256 that a step's weights ended "
        "with, each time.",
        "",
        "| step | " + " | ".join(moments) + " | kills | makings compared | differing | weights |",
        "| --- | " + "--: | " * (len(moments) + 3) + "--- |",
    ]
    for name, tally in tallies.items():
        cells = [str(tally.kills[moment] or "") for moment in moments]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {sum(tally.kills.values())} | {tally.compared} | "
            f"{len(tally.differing)} | {f'`{tally.weights}`' if tally.weights else ''} |"
        )
    totals = [sum(t.kills[m] for t in tallies.values()) for m in moments]
    lines.append(
        f"| all | {' | '.join(map(str, totals))} | {sum(totals)} | {sum(t.compared for t in tallies.values())} | "
        f"{sum(len(t.differing) for t in tallies.values())} | |"
    )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Live, torment, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=120, help="of stages, shared out over the steps")
    parser.add_argument("--orchestrator", type=int, default=12, help="kills of `gptlife run`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", nargs="*", help="only these")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background, and its children, ignore it
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="gptlife-kills-"))
    print(f"seed {arguments.seed}, in {folder}", flush=True)
    forked.load()
    harness = Harness(folder, arguments.seed)
    harness.live()
    steps = [step for step in harness.steps if not arguments.steps or step.name in arguments.steps]
    for step in steps:
        harness.torment(step, -(-arguments.kills // len(steps)))
    tallies = {step.name: harness.tallies[step.name] for step in steps}
    if arguments.orchestrator:
        tallies["gptlife run"] = harness.torment_the_orchestrator(arguments.orchestrator)
    told = page(tallies, arguments.seed, time.monotonic() - begun, arguments.kills)
    print(told)
    if arguments.page:
        arguments.page.write_text(told, encoding="utf-8")
    if any(tally.differing for tally in tallies.values()):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
