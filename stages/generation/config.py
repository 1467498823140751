"""The fields that stages have which sample answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import PositiveFloat, PositiveInt

from gptlife.data.config import Execution, Was
from gptlife.stages.runtime.stage import StageConfig


class SamplingConfig(StageConfig):
    """What every stage has that samples answers."""

    max_new_tokens: PositiveInt = 256
    """Longest answer, in tokens."""
    temperature: PositiveFloat = 1.0
    """Of sampling. [InstructGPT C.4]"""
    generation_batch_size: Annotated[Execution[PositiveInt], Was("rows")] = 256
    """Answers decoded together on one process."""
