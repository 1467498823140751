"""What a stage is: its config, its inputs, and what `stage.yaml` must have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Toy = Callable[..., Any]


@pytest.mark.parametrize(
    ("words", "table", "message"),
    [
        (["sise=4"], None, "stage.yaml: sise: no such field; did you mean 'size'?"),
        (["size=many"], None, "found 'many'"),
        (["size"], None, "size: expected field=value"),
        (["inputs.bose=x"], None, "inputs.bose: toy has no such input; did you mean 'base'?"),
        (["inputs.base=null"], None, "inputs.base: required; give the directory, inputs.base=..."),
        (["inputs.base=gone"], None, "inputs.base: gone is not a directory; run the stage that makes it first"),
        (["output=null"], None, "no `output`; name the directory to write, as in output=runs/toy"),
        (["stage=sft"], None, "is of stage 'sft', not 'toy'"),
        (["processes=2"], None, "processes is 2, but 1 started; check the launcher"),
        (["data=gone.jsonl"], None, "gone.jsonl: no such file; correct the path"),
        ([], "size: 3\nsize: 4\n", "stage.yaml:2: 'size' is given twice"),
        ([], "- 1\n", "stage.yaml: expected a table of fields, found [1]"),
        ([], "", "stage.yaml: expected a table of fields, found nothing"),
    ],
)
def test_refusals(words: list[str], table: str | None, message: str, toy: Toy, tmp_path: Path) -> None:
    result = toy(*words, table=table)
    assert result.code == 2
    assert result.err.startswith("toy: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_the_optional_input(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    toy(f"inputs.extra={tmp_path / 'more'}")
    assert (tmp_path / "out" / "extra.txt").read_text("utf-8") == "more"


def test_the_world_must_be_as_expected(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = toy("processes=1")
    assert result.code == 2
    assert "processes is 1, but 2 started" in result.err
    monkeypatch.setenv("RANK", "1")
    assert toy("processes=1") == (2, "", "")  # only the first process speaks
