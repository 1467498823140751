"""Being asked to stop, by Ctrl-C (SIGINT), by a cluster (SIGTERM) or by a terminal that is gone (SIGHUP).

A stage in a training loop finishes its step, saves it and ends with exit code 130; anything else is interrupted at
once, since what it has is on disk already. A second Ctrl-C interrupts in any case. (A SIGTERM after a Ctrl-C does not:
launchers pass on as one what their children have heard as the other.)
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Request:
    """What was asked of this process; signals are the process's, so there is one."""

    waiting = False
    """Whether somebody looks at `asked` soon."""
    asked = False


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _Request.asked


@contextmanager
def heard(name: str) -> Iterator[None]:
    """Take the signals in this module's way; `name` says who is stopping. A signal that is ignored stays so."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            let_go_of_the_terminal()
        if not _Request.waiting or (_Request.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        if not _Request.asked:
            print(
                f"\n{name}: stops after this step, and keeps it; Ctrl-C stops it at once", file=sys.stderr, flush=True
            )
        _Request.asked = True

    before = {n: signal.signal(n, handle) for n in NUMBERS if signal.getsignal(n) is not signal.SIG_IGN}
    _Request.asked = False
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def let_go_of_the_terminal() -> None:
    """Send what would go to a terminal nowhere: after a hang-up writing there is an error, and not one to die of."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def after_the_step() -> Iterator[None]:
    """While this lasts, being asked to stop is only noted: the caller looks at `asked` after every step."""
    _Request.waiting = True
    try:
        yield
    finally:
        _Request.waiting = False
