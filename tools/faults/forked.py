"""Stages as forked children of a process that has done the imports: real processes to kill, without the wait.

A child leads a process group, receives signals as a fresh process does, runs the stage's own command line and
ends with its exit code. A step in several processes is one child a rank, told of each other as a launcher tells them.
The parent computes nothing: threads would not survive the fork.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from gptlife.pipelines.launch import command
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.store import Store

HEAVY = (
    "torch",
    "accelerate",
    "peft",
    "trl",
    "torch.utils.tensorboard",
    "transformers.models.gpt2.modeling_gpt2",
    "gptlife.stages.preferences.trl_loop",
    "gptlife.stages.rl.loop",
    "gptlife.stages.evals.tables",
    "gptlife.stages.evals.outputs",
    "gptlife.stages.evals.judging",
)


def environment() -> dict[str, str]:
    """The environment of a `gptlife run`: one thread, processes on the CPU, `torchrun` on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def load() -> None:
    """Import what the stages import."""
    for name in HEAVY:
        importlib.import_module(name)


class Child:
    """A stage at work on a step of a plan, in as many processes as its config expects."""

    def __init__(self, step: Planned, store: Store, words: Path) -> None:
        config = command(step, store)[-1]
        self.words, self.started = words, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        world = (step.config and step.config.processes) or 1
        port = _free_port() if world > 1 else 0
        self.codes: dict[int, int | None] = {}
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                if world > 1:
                    os.environ.update(_told_by_a_launcher(rank, world, port))
                os._exit(_work(step.module, config, words))
            self.codes[pid] = None

    @property
    def code(self) -> int | None:
        """None while a process of it is at work; then 0, or a failed one's: first of all the signal that struck it."""
        codes = [code for code in self.codes.values() if code is not None]
        return None if len(codes) < len(self.codes) else min(filter(None, codes), default=0)

    def poll(self) -> bool:
        """Whether it has ended, or one of its processes failed: then the others are ended, as a launcher does."""
        self._look(os.WNOHANG)
        if self.code is None and any(code not in (None, 0, 130) for code in self.codes.values()):
            time.sleep(0.2)
            self._send(signal.SIGKILL)
            self._look(0)
        return self.code is not None

    def end(self, number: int = 0) -> int:
        """Send a signal (0: none) and wait for its end; the exit code, negative for a signal.

        SIGKILL strikes one process, and the others up to a quarter of a second later, when a launcher has noticed.
        """
        if self.code is None:
            alive = [pid for pid, code in self.codes.items() if code is None]
            if number == signal.SIGKILL and len(alive) > 1:
                os.kill(random.choice(alive), number)
                time.sleep(random.random() / 4)
            if number:
                self._send(number)
            while not self.poll():
                time.sleep(0.005)
        assert self.code is not None
        return self.code

    def _send(self, number: int) -> None:
        for pid, code in self.codes.items():
            if code is None:
                os.kill(pid, number)

    def _look(self, options: int) -> None:
        for pid, code in self.codes.items():
            if code is None:
                ended, status = os.waitpid(pid, options)
                if ended:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _told_by_a_launcher(rank: int, world: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    words = {name: str(value) for name, value in numbers.items()}
    return {**words, "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}


def _work(module: str, config: str, words: Path) -> int:
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with open(words, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        import torch

        torch.set_num_threads(1)
        importlib.import_module(module).STAGE.main(["--config", config])
        return 0
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
