"""Reading what lies in an output: a log that is still being written, and a stage.yaml from before a rename."""

from __future__ import annotations

from typing import Annotated

from gptlife.data.config import Config, Execution, Was
from gptlife.pipelines import outputs


class Renamed(Config):
    """One renamed field of each kind, and one that kept its name."""

    gamma: Annotated[float, Was("discount")] = 1.0
    """In the address."""
    generation_batch_size: Annotated[Execution[int], Was("rows")] = 256
    """Out of the address."""
    steps: int = 1
    """Never renamed."""


def test_fields_of_an_old_stage_file_have_todays_names():
    old = {"stage": "ppo", "version": 1, "identity": {}, "output": "x", "discount": 0.5, "rows": 8, "steps": 3}
    assert outputs.fields_of(old, Renamed) == {"gamma": 0.5, "generation_batch_size": 8, "steps": 3}
    assert outputs.fields_of({"gamma": 0.25}, Renamed) == {"gamma": 0.25}
    assert outputs.fields_of({"inputs": {}, "discount": 0.5}, None) == {"discount": 0.5}


def test_a_log_with_a_half_written_line(tmp_path):
    assert outputs.read_log(tmp_path) == []
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n[1]\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo\xff')
    assert outputs.read_log(tmp_path) == [{"step": 1}, {"step": 2, "loss": 0.5}]
