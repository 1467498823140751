"""Stages as forked children of a process that has imported everything: a real process to kill, without the wait.

A child is a process group of its own, hears signals as a fresh process does, runs the stage's own command line and
ends with its exit code. The parent computes nothing: threads would not survive the fork.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from gptlife.pipelines.planner import Planned
from gptlife.pipelines.runner import command
from gptlife.pipelines.store import Store

HEAVY = (
    "torch",
    "accelerate",
    "peft",
    "trl",
    "torch.utils.tensorboard",
    "transformers.models.gpt2.modeling_gpt2",
    "gptlife.stages.dpo_loop",
    "gptlife.stages.online_step",
    "gptlife.stages.ppo_step",
    "gptlife.stages.rloo_step",
    "gptlife.stages.comparing",
    "gptlife.stages.capabilities",
    "gptlife.stages.judging",
)


def load() -> None:
    """Import what the stages import."""
    for name in HEAVY:
        importlib.import_module(name)


class Child:
    """A stage at work on a step of a plan."""

    def __init__(self, step: Planned, store: Store, words: Path) -> None:
        config = command(step, store)[-1]
        self.words, self.code = words, None
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_work(step.module, config, words))

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def end(self, number: int = 0) -> int:
        """Send a signal (0: none) and wait for its end; the exit code, negative for a signal."""
        if self.code is None:
            if number:
                os.kill(self.pid, number)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


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
