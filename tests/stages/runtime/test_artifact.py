"""Files that are whole or absent, the one rename, and what a damaged file says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gptlife.data.errors import UserError
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.files import read_json


def test_commit_is_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, output = tmp_path / "out.partial", tmp_path / "out"
    partial.mkdir()
    (partial / "a.txt").write_text("a", encoding="utf-8")
    moved: list[tuple[str, bool]] = []
    rename = os.rename

    def watched(source: Path, target: Path) -> None:
        moved.append((Path(target).name, (Path(source) / artifact.MANIFEST).is_file()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    artifact.commit(partial, output, {"stage": "toy"})
    assert moved == [("out", True)]  # once, with the manifest already inside
    # sha256 of the letter a.
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    assert manifest.pop("sum")
    assert manifest == {"stage": "toy", "files": {"a.txt": {"bytes": 1, "sha256": digest}}}


def test_killed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, output = artifact.begin(tmp_path / "out", {"identity": 1}), tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            artifact.commit(partial, output, {})
    assert not artifact.is_complete(output)
    assert artifact.begin(output, {"identity": 1}) == partial
    artifact.commit(partial, output, {})
    assert artifact.is_complete(output)


def test_checkpoints_outlive_whatever_comes_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while gigabytes are hashed must not cost the work that they are of."""
    partial, output = artifact.begin(tmp_path / "out", {"identity": 1}), tmp_path / "out"
    (partial / "checkpoints").mkdir()
    (partial / "checkpoints" / "step-1").write_text("days of work", encoding="utf-8")
    rename = os.rename
    there = []

    def watched(source: Path, target: Path) -> None:
        there.append((Path(source) / "checkpoints" / "step-1").is_file())
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    artifact.commit(partial, output, {})
    assert there == [True]
    assert not (output / "checkpoints").exists()
    assert set(read_json(output / "manifest.json")["files"]) == {"stage.yaml"}


def test_a_finished_output_is_verified_to_the_byte(tmp_path: Path) -> None:
    partial, output = artifact.begin(tmp_path / "out", {"identity": 1}), tmp_path / "out"
    (partial / "model").mkdir()
    weights = output / "model" / "weights.bin"
    (partial / "model" / "weights.bin").write_bytes(b"0123456789")
    artifact.commit(partial, output, {"stage": "toy", "cost": {"seconds": 1.25}, "name": "Grüße"})
    artifact.verify(output)
    weights.write_bytes(b"0123456780")  # the same size
    with pytest.raises(
        UserError, match=r"weights\.bin: damaged \(its bytes differ from the manifest's\); make it again"
    ):
        artifact.verify(output)
    artifact.verify(output, ["metrics.json", "no such file"])
    weights.unlink()
    with pytest.raises(UserError, match=r"weights\.bin: missing, though the manifest lists it"):
        artifact.verify(output)
    weights.write_bytes(b"0123456789")
    manifest = output / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace("1.25", "1.75"), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json: damaged \(its content does not match its sum\)"):
        artifact.verify(output)


def test_what_a_killed_write_left_is_swept(tmp_path: Path) -> None:
    partial = artifact.begin(tmp_path / "out", {"identity": 1})
    (partial / "metrics.json.123.tmp").write_text("{", encoding="utf-8")
    artifact.begin(tmp_path / "out", {"identity": 1})
    assert [path.name for path in partial.iterdir()] == ["stage.yaml"]


def test_begin(tmp_path: Path) -> None:
    first = {"identity": {"a": 1}, "inputs": {"base": "x"}, "workers": 1}
    partial = artifact.begin(tmp_path / "out", first)
    (partial / "work").write_text("kept", encoding="utf-8")
    artifact.begin(tmp_path / "out", {**first, "inputs": {"base": "y"}, "workers": 2})
    assert (partial / "work").read_text("utf-8") == "kept"
    with pytest.raises(UserError, match=r"begun with another config \(differs in: a\); remove it"):
        artifact.begin(tmp_path / "out", {**first, "inputs": {"base": "y"}, "workers": 2, "identity": {"a": 2}})


def test_begin_names_the_first_fields_that_differ(tmp_path: Path) -> None:
    config = {"a": 1, "b": {"c": [1, 2], "d": 1e-5}, "e": 1}
    first = {"identity": {"stage": "toy", "config": config}, "input_addresses": {"base": "x", "more": "y"}}
    artifact.begin(tmp_path / "out", first)
    artifact.begin(tmp_path / "out", first)  # the same after its way through YAML

    def refusal(**changes: object) -> str:
        with pytest.raises(UserError) as error:
            artifact.begin(tmp_path / "out", {**first, **changes})
        return str(error.value).partition("begun with ")[2]

    other = {"a": 2, "b": {"c": [1, 3], "d": 1e-6}, "f": 1}
    act = "remove it, or give another output"
    expected = f"another config (differs in: a, b.c, b.d, ...); {act}"
    assert refusal(identity={"stage": "toy", "config": other}) == expected
    assert refusal(identity={"stage": "toi", "config": config}) == f"another config (differs in: stage); {act}"
    assert refusal(input_addresses={"base": "z"}) == f"other inputs (differs in: inputs.base, inputs.more); {act}"


@pytest.mark.parametrize("damage", ["", "identity: {a", "5", "\x00"])
def test_begin_where_it_can_no_longer_be_told_what_was_begun(tmp_path: Path, damage: str) -> None:
    partial = artifact.begin(tmp_path / "out", {"identity": {"a": 1}})
    (partial / "stage.yaml").write_text(damage, encoding="utf-8")
    with pytest.raises(UserError) as error:
        artifact.begin(tmp_path / "out", {"identity": {"a": 1}})
    assert str(error.value) == f"{partial}/stage.yaml: damaged; remove {partial}, and run again"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        pytest.raises(UserError, match=r"file: can't be written \(.*\); choose another place$"),
        artifact.locked(tmp_path / "file" / "out"),
    ):
        pass
