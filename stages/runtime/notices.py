"""Notices: one line on stderr, and other libraries kept from writing theirs."""

from __future__ import annotations

import logging
import sys


def notice(text: str) -> None:
    """Write one line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Turn off the warnings and progress bars of transformers, accelerate and torch for this process.

    They write to stderr, between the lines of the stage's own progress. A stage calls this once, before it loads
    anything.
    """
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    # Tied weights are stored once; accelerate would say so at every checkpoint.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
