"""The fields that every stage has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from gptlife.data.config import Config, Execution


class StageConfig(Config):
    """What every stage has."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random in the stage."""
    device: Execution[str | None] = None
    """`cpu`, `cuda`, `mps`; None: the best one available."""
    processes: Execution[PositiveInt | None] = None
    """Number of processes expected; the stage refuses to run in another number. None: any."""
    trust_remote_code: Execution[bool] = False
    """Run Python code that lies beside an adopted model's weights: only for code that you have read."""
    deterministic: Execution[bool] = False
    """On a GPU, use only algorithms that give the same bits each time: slower, and some operations have none."""
    track: Execution[list[Literal["tensorboard", "wandb"]]] = ["tensorboard"]
    """Trackers that get the curves besides log.jsonl: `tensorboard`, `wandb`. One that is not installed is left out."""
