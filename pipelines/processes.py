"""Child processes and the signals that reach them.

Every child leads a process group of its own, and a signal goes to the whole group, as a terminal's Ctrl-C would:
launchers start children that must receive it too, and each receives it once.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

from gptlife.stages.runtime import signals


class Caught:
    """The last signal that arrived while children run; it is passed on to every one of them."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._groups: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGHUP:
            signals.detach_terminal()
        for group in [*self._groups]:
            self._pass_on(group)

    def start(
        self, words: Sequence[str], output: IO[bytes] | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command; it writes to `output`, or where this process does. Call `ended` once it has ended."""
        errors = subprocess.STDOUT if output else None
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, process_group=0, env=env
        )
        self._groups.append(child.pid)
        self._pass_on(child.pid)  # a signal that came before the child started
        return child

    def ended(self, child: subprocess.Popen[bytes]) -> None:
        """Forget a child that was waited for: the system may give its number to another process."""
        self._groups.remove(child.pid)

    def _pass_on(self, group: int) -> None:
        if self.number is not None:
            try:
                os.killpg(group, self.number)
            except ProcessLookupError:
                return


@contextmanager
def caught_signals() -> Iterator[Caught]:
    """Interrupt, termination and hang-up go to the children instead of ending this process."""
    caught = Caught()
    # A signal that is ignored (nohup) stays ignored.
    before = {n: signal.signal(n, caught) for n in signals.NUMBERS if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait(words: Sequence[str]) -> tuple[int, int | None]:
    """Run a command to its end; its exit code, and the signal that was passed on to it, if any."""
    with caught_signals() as caught:
        child = caught.start(words)
        code = child.wait()
        caught.ended(child)
        return code, caught.number


def sharing_cores(jobs: int) -> dict[str, str]:
    """The environment of each of `jobs` parallel children: its share of the cores as threads, unless a number is set.

    Two trainings with two threads each on two cores ran at a twentieth to a fifth of the speed of one thread each:
    threads wait, spinning, for others that have no core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} if jobs > 1 else {}
    return {**share, **os.environ}
