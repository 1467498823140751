"""One run of a stage: the partial directory, the lock, verified inputs, the manifest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlife.data.config import sha256_of_file
from gptlife.stages.runtime import artifact, trust

Toy = Callable[..., Any]


def test_a_finished_output(toy: Toy, tmp_path: Path) -> None:
    assert toy("size=4", "rate=1e-4") == (0, "", "")
    output = tmp_path / "out"
    assert not (tmp_path / "out.partial").exists()
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert files >= {"model/weights.bin", "extra.txt", "stage.yaml", "metrics.json", "manifest.json"}
    assert not any("checkpoints" in name for name in files)
    assert json.loads((output / "metrics.json").read_text("utf-8")) == {"size": 4}  # equal runs, equal files
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    assert set(manifest["files"]) == files - {"manifest.json"}
    for name, recorded in manifest["files"].items():
        assert recorded == {"bytes": (output / name).stat().st_size, "sha256": sha256_of_file(str(output / name))}
    assert (manifest["stage"], manifest["version"], manifest["address"]) == ("toy", 3, "out")
    assert (manifest["seconds"], manifest["processes"], manifest["inputs"]) == (1.5, 1, {"base": "base"})
    assert manifest["cost"] == {"seconds": 1.5}
    identity = manifest["identity"]["config"]
    assert (identity["size"], identity["rate"]) == (4, 1e-4)
    assert not {"workers", "device", "track", "processes"} & set(identity)


def test_its_stage_file_makes_it_again(toy: Toy, tmp_path: Path) -> None:
    toy("size=7")
    written = (tmp_path / "out" / "stage.yaml").read_text("utf-8")
    assert toy(f"output={tmp_path / 'again'}", table=written).code == 0
    assert (tmp_path / "again" / "model" / "weights.bin").read_bytes() == b"w" * 7


def test_a_complete_output_is_left_alone(toy: Toy, tmp_path: Path) -> None:
    toy()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    result = toy()
    assert result == (0, f"toy: {tmp_path / 'out'} is complete already\n", "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_complete_output_of_another_config(toy: Toy, tmp_path: Path) -> None:
    toy("size=4")
    result = toy("size=5")
    assert result.code == 2
    assert result.err == (
        f"toy: {tmp_path / 'out'}: made with another config (differs in: size); remove it, or give another output\n"
    )
    assert toy("size=4", "workers=2").out == f"toy: {tmp_path / 'out'} is complete already\n"


def output_named(path: Path, address: str) -> Path:
    """A directory that some stage has finished under an address."""
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"address": address}), encoding="utf-8")
    return path


@pytest.mark.parametrize(("size", "how"), [("size=-1", "out.partial: begun"), ("size=4", "out: made")])
def test_other_inputs(size: str, how: str, toy: Toy, tmp_path: Path) -> None:
    one, moved = (output_named(tmp_path / name / "sft", "sft-1") for name in ("here", "there"))
    other = output_named(tmp_path / "other" / "sft", "sft-2")
    usual = toy(size, f"inputs.base={one}").code
    assert toy(size, f"inputs.base={moved}").code == usual  # the same output at another place
    for words, names in (
        ([f"inputs.base={other}"], "inputs.base"),
        ([f"inputs.extra={one}"], "inputs.base, inputs.extra"),
    ):
        result = toy(size, *words)
        assert result.code == 2
        expected = f"{how} with other inputs (differs in: {names}); remove it, or give another output\n"
        assert result.err == f"toy: {tmp_path}/{expected}"


def test_a_folder_from_elsewhere_is_known_by_its_name(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    assert toy(f"inputs.base={tmp_path / 'link'}").code == 0
    monkeypatch.chdir(tmp_path / "base")
    assert toy("inputs.base=.").code == 0
    (tmp_path / "another").mkdir()
    assert toy(f"inputs.base={tmp_path / 'another'}").code == 2


def test_finished_meanwhile(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run ends between the look and the lock: alone that is as good; of several processes none may wait."""
    toy("size=4")
    output, locked = tmp_path / "out", artifact.locked

    @contextmanager
    def late(path: Path) -> Iterator[None]:
        with locked(path):
            (tmp_path / "away").rename(output)
            yield

    monkeypatch.setattr(artifact, "locked", late)
    for size, world, code, says in (
        (4, "1", 0, "is complete already"),
        (5, "1", 2, "made with another config (differs in: size)"),
        (4, "2", 2, "out: finished meanwhile by another run; run again\n"),
    ):
        output.rename(tmp_path / "away")
        monkeypatch.setenv("WORLD_SIZE", world)
        result = toy(f"size={size}")
        assert result.code == code
        assert says in result.out + result.err


def test_work_of_another_config(toy: Toy, tmp_path: Path) -> None:
    assert toy("size=-1").code == 130
    assert (tmp_path / "out.partial").is_dir()
    result = toy("size=4")
    assert result.code == 2
    assert result.err == (
        f"toy: {tmp_path / 'out.partial'}: begun with another config (differs in: size); remove it, or give another "
        "output\n"
    )
    assert toy("size=-1", "workers=2").code == 130  # how the work is done may change


def test_a_damaged_input_is_refused(toy: Toy, tmp_path: Path) -> None:
    assert toy("output=" + str(tmp_path / "first")).code == 0
    weights = tmp_path / "first" / "model" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(b"W" + whole[1:])
    result = toy(f"inputs.base={tmp_path / 'first'}")
    assert result.code == 2
    assert f"{weights}: damaged (its bytes differ from the manifest's); make it again" in result.err
    weights.write_bytes(whole)
    assert toy(f"inputs.base={tmp_path / 'first'}").code == 0


@pytest.mark.parametrize("wanted", [False, True])
def test_the_same_bits_each_time(wanted: bool, toy: Toy, tmp_path: Path) -> None:
    seen = []

    def look(config: Any, output: Path, **_: Path) -> dict[str, Any]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return {}

    assert toy(f"deterministic={wanted}", run=look).code == 0
    assert seen == [wanted]
    assert not torch.are_deterministic_algorithms_enabled()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert (manifest["device"], manifest["threads"], manifest["same_bits"]) == ("cpu", torch.get_num_threads(), True)


@pytest.mark.parametrize("wanted", [False, True])
def test_code_beside_a_model_is_trusted_where_the_config_says_so(wanted: bool, toy: Toy) -> None:
    seen = []

    def look(config: Any, output: Path, **_: Path) -> dict[str, Any]:
        seen.append(trust.trusted())
        return {}

    assert toy(f"trust_remote_code={wanted}", run=look).code == 0
    assert seen == [wanted]
    assert not trust.trusted()


def test_data_that_changes_meanwhile(toy: Toy, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "one"}\n', encoding="utf-8")

    def slow(config: Any, output: Path, **_: Path) -> dict[str, Any]:
        data.write_text('{"text": "two"}\n', encoding="utf-8")
        return {}

    out = tmp_path / "out"
    result = toy(f"data={data}", run=slow)
    assert result.code == 2
    assert result.err == (
        f"toy: {out}: the input data changed during the run (differs in: data), so this output was discarded; "
        f"remove {out}.partial, and run again\n"
    )
    assert not out.exists()
    assert "begun with another config (differs in: data)" in toy(f"data={data}", run=slow).err
    shutil.rmtree(f"{out}.partial")
    assert toy(f"data={data}", run=slow).code == 0  # it is written anew, and the same


BUSY = "is working on it; wait for it, or stop it"


def test_a_held_lock(toy: Toy, tmp_path: Path) -> None:
    with artifact.locked(tmp_path / "out"):
        result = toy()
        assert result.code == 2
        assert result.err == f"toy: {tmp_path / 'out'}: another process ({os.getpid()}) {BUSY}\n"
        for told, who in ((b"4711 far-away", " (4711 on far-away)"), (b"", ""), (b"\xff", "")):
            (tmp_path / ".out.lock").write_bytes(told)
            assert toy().err == f"toy: {tmp_path / 'out'}: another process{who} {BUSY}\n"
    assert toy().code == 0


def test_the_lock_goes_with_its_process(toy: Toy, tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from gptlife.stages.runtime import artifact\n"
        f"with artifact.locked(Path({str(tmp_path / 'out')!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert toy().code == 2
    finally:
        holder.kill()
        holder.communicate()
    assert toy().code == 0


def test_a_folder_that_is_in_the_way(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = toy()
    assert result.code == 2
    assert "exists but is not a finished output (no manifest.json); move it away, then run again" in result.err
