"""A toy stage and its command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from gptlife.data.config import Execution
from gptlife.data.sources import Data
from gptlife.stages.runtime.stage import Stage, StageConfig


class ToyConfig(StageConfig):
    """A toy."""

    data: Data | None = None
    """Text."""
    size: int = 3
    """How much."""
    rate: float = 0.5
    """How fast."""
    workers: Execution[int] = 1
    """How many."""


def work(config: ToyConfig, output: Path, *, base: Path, extra: Path | None = None) -> dict[str, Any]:
    if config.size < 0:
        raise KeyboardInterrupt
    if config.size > 100:
        raise RuntimeError("a bug")
    (output / "checkpoints").mkdir(exist_ok=True)
    (output / "checkpoints" / "old").write_text("x", encoding="utf-8")
    (output / "model").mkdir(exist_ok=True)
    (output / "model" / "weights.bin").write_bytes(b"w" * config.size)
    (output / "extra.txt").write_text(extra.name if extra else "none", encoding="utf-8")
    return {"size": config.size, "seconds": 1.5}


TOY = Stage("toy", ToyConfig, work, inputs=("base",), optional=("extra",), version=3)


class Result(NamedTuple):
    """What one command gave."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toy(tmp_path: Path, capsys: Any) -> Callable[..., Result]:
    """`toy("size=4", table={...}, run=work)`: a stage's command line on a config in an empty folder."""
    (tmp_path / "base").mkdir(exist_ok=True)

    def command(
        *words: str,
        table: dict[str, Any] | str | None = None,
        run: Callable[..., Any] | None = None,
        config: type[StageConfig] = ToyConfig,
    ) -> Result:
        stage = TOY if run is None else Stage("toy", config, run, inputs=("base",))
        usual = {"inputs": {"base": str(tmp_path / "base")}, "output": str(tmp_path / "out")}
        content = table if isinstance(table, str) else yaml.safe_dump({**usual, **(table or {})})
        (tmp_path / "stage.yaml").write_text(content, encoding="utf-8")
        capsys.readouterr()
        code = 0
        try:
            stage.main(["--config", str(tmp_path / "stage.yaml"), *words])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return command
