"""Files that exist whole or not at all, and pieces that say when they are damaged."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from gptlife.data.errors import UserError
from gptlife.stages.runtime.files import keep_piece, kept_piece, read_json, write_json


def test_a_piece_is_as_it_was_or_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some" / "piece"
    assert kept_piece(path) is None
    keep_piece(path, {"answers": ["Grüße\n", None, 1.5]})
    assert kept_piece(path) == {"answers": ["Grüße\n", None, 1.5]}
    whole = path.read_bytes()
    for damaged in (whole.replace(b"1.5", b"1.4"), whole[:-5], b"", b"\xff", whole[10:]):
        path.write_bytes(damaged)
        assert kept_piece(path) is None
        assert capsys.readouterr().err == f"{path}: damaged; made again\n"


def test_a_text_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}


def test_no_nan_in_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan})
    assert not (tmp_path / "a.json").exists()


def test_damaged_json(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(UserError, match=r"manifest\.json: missing; run the stage that makes it$"):
        read_json(path)
    path.write_text('{"a": 1,\n "b": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json:2: damaged \(.*\); run its stage again with --fresh$"):
        read_json(path)
