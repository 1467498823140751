"""This process's place among those of one job, as torchrun and accelerate set it in the environment."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number in the job; 0 when it is the only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))
