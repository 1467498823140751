"""Requests to stop: Ctrl-C (SIGINT), a cluster (SIGTERM) or a closed terminal (SIGHUP).

A stage in a training loop finishes its step, saves it and ends with exit code 130; any other stage is interrupted at
once, since its finished work is on disk already. A second Ctrl-C always interrupts at once. (A SIGTERM after a Ctrl-C
does not: launchers pass on as SIGTERM what their children have received as SIGINT.)
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gptlife.stages.runtime.notices import notice

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Request:
    """The request made of this process; signals are the process's, so there is one."""

    deferred = False
    """Whether the running code checks `stop_requested` after each step."""
    made = False


def stop_requested() -> bool:
    """Whether this process was asked to stop."""
    return _Request.made


@contextmanager
def handle_signals(name: str) -> Iterator[None]:
    """Handle the signals as this module says; `name` begins the notice. An ignored signal stays ignored."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            detach_terminal()
        if not _Request.deferred or (_Request.made and number == signal.SIGINT):
            raise KeyboardInterrupt
        if not _Request.made:
            notice(f"\n{name}: stops after this step, and keeps it; Ctrl-C stops it at once")
        _Request.made = True

    before = {n: signal.signal(n, handle) for n in NUMBERS if signal.getsignal(n) is not signal.SIG_IGN}
    _Request.made = False
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def detach_terminal() -> None:
    """Send stdout and stderr to nowhere where they are a terminal: after a hang-up, writing to it is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def stop_after_step() -> Iterator[None]:
    """Inside, a request to stop is only noted: the caller checks `stop_requested` after each step."""
    _Request.deferred = True
    try:
        yield
    finally:
        _Request.deferred = False
