"""`Stage.main`: exit codes, and which exceptions become one line."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptlife.data.config import Execution
from gptlife.data.errors import UserError
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.stage import Stage, StageConfig

Toy = Callable[..., Any]


def test_interrupted(toy: Toy, tmp_path: Path) -> None:
    result = toy("size=-1")
    assert result == (130, "", "toy: interrupted; run the same command again to resume\n")
    assert not (tmp_path / "out").exists()


def test_a_bug_is_not_hidden(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        toy("size=101")
    assert not (tmp_path / "out").exists()


class Micro(StageConfig):
    """A toy that trains."""

    micro_batch_tokens: Execution[int] = 4096
    """At once."""
    gradient_checkpointing: Execution[bool] = False
    """Again."""


AGAIN = "and run again to resume\n"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/s/x"), StageConfig,
         f"toy: /s/x: No space left on device; make room, or choose another place, {AGAIN}"),
        (OSError(errno.EROFS, "Read-only file system", "/s/x"), StageConfig,
         f"toy: /s/x: Read-only file system; make room, or choose another place, {AGAIN}"),
        (MemoryError(), StageConfig, f"toy: out of memory (MemoryError); give it more memory, {AGAIN}"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), Micro,
         "toy: out of memory (CUDA out of memory. Tried to allocate 2 GiB.); lower micro_batch_tokens, or set "
         f"gradient_checkpointing: true, {AGAIN}"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_one_line(
    error: Exception, kind: type[StageConfig], said: str, toy: Toy, tmp_path: Path
) -> None:
    def lacks(config: Any, output: Path, **_: Path) -> dict[str, Any]:
        raise error

    assert toy(run=lacks, config=kind) == (2, "", said)
    assert not (tmp_path / "out").exists()


def test_an_operation_that_has_no_such_algorithm(toy: Toy, tmp_path: Path) -> None:
    def scatter(config: Any, output: Path, **_: Path) -> dict[str, Any]:
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return {}

    refused = toy("deterministic=true", run=scatter)
    assert refused.code == 2
    assert refused.err.startswith("toy: put_ does not have a deterministic implementation")
    assert refused.err.endswith("(set deterministic: false)\n")
    assert toy(run=scatter).code == 0


@pytest.mark.parametrize(
    ("message", "said"),
    [("toy: step 2: loss is nan", "toy: step 2: loss is nan\n"), ("toy.data: no text", "toy.data: no text\n"),
     ("/x/toy: damaged", "toy: /x/toy: damaged\n"), ("toys: none", "toy: toys: none\n")],
)  # fmt: skip
def test_a_stage_says_its_name_once(message: str, said: str, toy: Toy) -> None:
    def refuses(config: Any, output: Path, **_: Path) -> dict[str, Any]:
        raise UserError(message)

    assert toy(run=refuses) == (2, "", said)


def test_memory_that_torch_cannot_have(toy: Toy) -> None:
    """The real words of torch's allocator on the CPU, which has no error class of its own."""

    def greedy(config: Any, output: Path, **_: Path) -> dict[str, Any]:
        torch.empty(1 << 48)
        return {}

    result = toy(run=greedy, config=Micro)
    assert result.code == 2
    assert re.fullmatch(
        r"toy: out of memory \(.*can't allocate memory.*\); lower micro_batch_tokens, .* to resume\n", result.err
    )


def test_no_config_file(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        Stage("toy", StageConfig, dict).main(["--config", "gone.yaml"])
    assert capsys.readouterr().err == "toy: gone.yaml: no such file; give the path of a YAML file\n"


def test_a_real_stage_by_its_command(tiny: Any, tmp_path: Path) -> None:
    """The module as a person runs it: a subprocess, its exit codes, and nothing but one line of fault."""
    table = {"data": str(tiny.text), "vocabulary": 300, "output": str(tmp_path / "tokenizer")}
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(table), encoding="utf-8")
    command = [sys.executable, "-m", "gptlife.stages.tokenizer", "--config", str(path)]
    wrong = subprocess.run([*command, "vocabulry=1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr == f"tokenizer: {path}: vocabulry: no such field; did you mean 'vocabulary'?\n"
    right = subprocess.run(command, capture_output=True, text=True, check=False)
    assert right.returncode == 0, right.stderr
    assert "Traceback" not in right.stderr
    assert artifact.is_complete(tmp_path / "tokenizer")
