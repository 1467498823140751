"""Several processes that meet over gloo on one machine, for the tests that compare them with one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
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
