"""Several processes that meet over gloo on one machine, for the tests that compare them with one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any


def in_processes(
    count: int, script: str, fields: dict[str, Any], inputs: dict[str, str], folder: Path, *more: str
) -> None:
    """A script in so many processes, told of each other as a launcher tells them; argument 1 is the rest as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-c", script, json.dumps([fields, inputs, str(folder)]), *more]
    ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count))
    running = [
        subprocess.Popen(command, env={**os.environ, **told}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for told in ranks
    ]
    for process in running:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error[-3000:]


def script(stage: str, algorithm: str, twins: str) -> str:
    """A script for `in_processes`: an online stage by plain descent, with every step's advantages kept beside it.

    Its first run is called `processes`; with a second argument it goes on with `twins`, code that breaks something and
    calls `go` with a name.
    """
    return _SCRIPT.format(stage=stage, algorithm=algorithm, twins=indent(twins, "    "))


_SCRIPT = """\
import json, os, pathlib, sys
import torch
from gptlife.data.config import decode
from gptlife.reward import advantage
from gptlife.stages import {stage} as stage
from gptlife.stages.rl import loop

RANK = int(os.environ.get("RANK", "0"))
fields, inputs, folder = json.loads(sys.argv[1])
inputs = {{name: pathlib.Path(path) for name, path in inputs.items()}}
torch.optim.AdamW = lambda groups, lr, **_: torch.optim.SGD([p for g in groups for p in g["params"]], lr=lr)
experience_of = stage.{algorithm}.experience

def kept(self, *arguments):
    experience = experience_of(self, *arguments)
    advantages.append(experience.advantages_BR.tolist())
    return experience

stage.{algorithm}.experience = kept

def go(name):
    global advantages
    advantages, output = [], pathlib.Path(folder) / name
    output.mkdir(parents=True, exist_ok=True)
    stage.run(decode(stage.STAGE.config, fields, "{stage}"), output, **inputs)
    (output / f"advantages-{{RANK}}.json").write_text(json.dumps(advantages))

go("processes")
if len(sys.argv) > 2:
{twins}
"""
