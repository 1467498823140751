"""`Stage.main`: exit codes, one-line messages, the partial directory, the manifest and the lock."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from gptlife.data.config import Execution, sha256_of_file
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.stages.runtime import artifact, trust
from gptlife.stages.runtime.device import described
from gptlife.stages.runtime.stage import Stage, StageConfig

pytestmark = pytest.mark.usefixtures("_alone")


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


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toy(tmp_path: Path, capsys: Any) -> Callable[..., Result]:
    """`toy("size=4", table={...})`: the stage's command line on a config in an empty folder."""
    (tmp_path / "base").mkdir(exist_ok=True)

    def command(*words: str, table: dict[str, Any] | str | None = None, stage: Stage = TOY) -> Result:
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


def test_a_finished_output(toy: Callable[..., Result], tmp_path: Path) -> None:
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


def test_its_stage_file_makes_it_again(toy: Callable[..., Result], tmp_path: Path) -> None:
    toy("size=7")
    written = (tmp_path / "out" / "stage.yaml").read_text("utf-8")
    assert toy(f"output={tmp_path / 'again'}", table=written).code == 0
    assert (tmp_path / "again" / "model" / "weights.bin").read_bytes() == b"w" * 7


def test_a_complete_output_is_left_alone(toy: Callable[..., Result], tmp_path: Path) -> None:
    toy()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    result = toy()
    assert result == (0, f"toy: {tmp_path / 'out'} is complete already\n", "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_complete_output_of_another_config(toy: Callable[..., Result], tmp_path: Path) -> None:
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
def test_other_inputs(size: str, how: str, toy: Callable[..., Result], tmp_path: Path) -> None:
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
    toy: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    assert toy(f"inputs.base={tmp_path / 'link'}").code == 0
    monkeypatch.chdir(tmp_path / "base")
    assert toy("inputs.base=.").code == 0
    (tmp_path / "another").mkdir()
    assert toy(f"inputs.base={tmp_path / 'another'}").code == 2


def test_finished_meanwhile(toy: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_work_of_another_config(toy: Callable[..., Result], tmp_path: Path) -> None:
    assert toy("size=-1").code == 130
    assert (tmp_path / "out.partial").is_dir()
    result = toy("size=4")
    assert result.code == 2
    assert result.err == (
        f"toy: {tmp_path / 'out.partial'}: begun with another config (differs in: size); remove it, or give another "
        "output\n"
    )
    assert toy("size=-1", "workers=2").code == 130  # how the work is done may change


def test_interrupted(toy: Callable[..., Result], tmp_path: Path) -> None:
    result = toy("size=-1")
    assert result == (130, "", "toy: interrupted; run the same command again to resume\n")
    assert not (tmp_path / "out").exists()


def test_a_bug_is_not_hidden(toy: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        toy("size=101")
    assert not (tmp_path / "out").exists()


def test_a_damaged_input_is_refused(toy: Callable[..., Result], tmp_path: Path) -> None:
    assert toy("output=" + str(tmp_path / "first")).code == 0
    weights = tmp_path / "first" / "model" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(b"W" + whole[1:])
    result = toy(f"inputs.base={tmp_path / 'first'}")
    assert result.code == 2
    assert f"{weights}: damaged (not the bytes that its manifest lists); make it again" in result.err
    weights.write_bytes(whole)
    assert toy(f"inputs.base={tmp_path / 'first'}").code == 0


class Micro(ToyConfig):
    """A toy that trains."""

    micro_batch_tokens: Execution[int] = 4096
    """At once."""
    gradient_checkpointing: Execution[bool] = False
    """Again."""


AGAIN = "and run again to resume\n"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/s/x"), ToyConfig,
         f"toy: /s/x: No space left on device; make room, or choose another place, {AGAIN}"),
        (OSError(errno.EROFS, "Read-only file system", "/s/x"), ToyConfig,
         f"toy: /s/x: Read-only file system; make room, or choose another place, {AGAIN}"),
        (MemoryError(), ToyConfig, f"toy: out of memory (MemoryError); give it more memory, {AGAIN}"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), Micro,
         "toy: out of memory (CUDA out of memory. Tried to allocate 2 GiB.); lower micro_batch_tokens, or set "
         f"gradient_checkpointing: true, {AGAIN}"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_one_line(
    error: Exception, kind: type[ToyConfig], said: str, toy: Callable[..., Result], tmp_path: Path
) -> None:
    def lacks(config: ToyConfig, output: Path, **_: Path) -> dict[str, Any]:
        raise error

    assert toy(stage=Stage("toy", kind, lacks, inputs=("base",))) == (2, "", said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wanted", [False, True])
def test_the_same_bits_each_time(wanted: bool, toy: Callable[..., Result], tmp_path: Path) -> None:
    seen = []

    def look(config: ToyConfig, output: Path, **_: Path) -> dict[str, Any]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return {}

    assert toy(f"deterministic={wanted}", stage=Stage("toy", ToyConfig, look, inputs=("base",))).code == 0
    assert seen == [wanted]
    assert not torch.are_deterministic_algorithms_enabled()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert (manifest["device"], manifest["threads"], manifest["same_bits"]) == ("cpu", torch.get_num_threads(), True)


@pytest.mark.parametrize("wanted", [False, True])
def test_code_beside_a_model_is_trusted_where_the_config_says_so(wanted: bool, toy: Callable[..., Result]) -> None:
    seen = []

    def look(config: ToyConfig, output: Path, **_: Path) -> dict[str, Any]:
        seen.append(trust.trusted())
        return {}

    assert toy(f"trust_remote_code={wanted}", stage=Stage("toy", ToyConfig, look, inputs=("base",))).code == 0
    assert seen == [wanted]
    assert not trust.trusted()


def test_an_operation_that_has_no_such_algorithm(toy: Callable[..., Result], tmp_path: Path) -> None:
    def scatter(config: ToyConfig, output: Path, **_: Path) -> dict[str, Any]:
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return {}

    stage = Stage("toy", ToyConfig, scatter, inputs=("base",))
    refused = toy("deterministic=true", stage=stage)
    assert refused.code == 2
    assert refused.err.startswith("toy: put_ does not have a deterministic implementation")
    assert refused.err.endswith("(set deterministic: false)\n")
    assert toy(stage=stage).code == 0


@pytest.mark.parametrize(
    ("kind", "wanted", "same"),
    [("cpu", False, True), ("cuda", False, False), ("cuda", True, True), ("mps", True, False)],
)
def test_where_bits_are_the_same(kind: str, wanted: bool, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Big One")
    found = described(torch.device(kind), wanted)
    assert found["same_bits"] is same
    assert found["device"] == ("cuda (A Big One)" if kind == "cuda" else kind)


@pytest.mark.parametrize(
    ("message", "said"),
    [("toy: step 2: loss is nan", "toy: step 2: loss is nan\n"), ("toy.data: no text", "toy.data: no text\n"),
     ("/x/toy: damaged", "toy: /x/toy: damaged\n"), ("toys: none", "toy: toys: none\n")],
)  # fmt: skip
def test_a_stage_says_its_name_once(message: str, said: str, toy: Callable[..., Result]) -> None:
    def refuses(config: ToyConfig, output: Path, **_: Path) -> dict[str, Any]:
        raise UserError(message)

    assert toy(stage=Stage("toy", ToyConfig, refuses, inputs=("base",))) == (2, "", said)


def test_memory_that_torch_cannot_have(toy: Callable[..., Result]) -> None:
    """The real words of torch's allocator on the CPU, which has no error class of its own."""

    def greedy(config: ToyConfig, output: Path, **_: Path) -> dict[str, Any]:
        torch.empty(1 << 48)
        return {}

    result = toy(stage=Stage("toy", Micro, greedy, inputs=("base",)))
    assert result.code == 2
    assert re.fullmatch(
        r"toy: out of memory \(.*can't allocate memory.*\); lower micro_batch_tokens, .* to resume\n", result.err
    )


def test_data_that_changes_meanwhile(toy: Callable[..., Result], tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "one"}\n', encoding="utf-8")

    def slow(config: ToyConfig, output: Path, **_: Path) -> dict[str, Any]:
        data.write_text('{"text": "two"}\n', encoding="utf-8")
        return {}

    stage, out = Stage("toy", ToyConfig, slow, inputs=("base",)), tmp_path / "out"
    result = toy(f"data={data}", stage=stage)
    assert result.code == 2
    assert result.err == (
        f"toy: {out}: its data changed while it worked (differs in: data), so it is nobody's; "
        f"remove {out}.partial, and run again\n"
    )
    assert not out.exists()
    assert "begun with another config (differs in: data)" in toy(f"data={data}", stage=stage).err
    shutil.rmtree(f"{out}.partial")
    assert toy(f"data={data}", stage=stage).code == 0  # it is written anew, and the same


@pytest.mark.parametrize(
    ("words", "table", "message"),
    [
        (["sise=4"], None, "stage.yaml.sise: no such field; did you mean 'size'?"),
        (["size=many"], None, "found 'many'"),
        (["size"], None, "size: expected field=value"),
        (["inputs.bose=x"], None, "inputs.bose: toy has no such input; did you mean 'base'?"),
        (["inputs.base=null"], None, "inputs.base: required; give the directory, inputs.base=..."),
        (["inputs.base=gone"], None, "inputs.base: gone is no directory; run the stage that makes it first"),
        (["output=null"], None, "no `output`; name the directory to write, as in output=runs/toy"),
        (["stage=sft"], None, "is of stage 'sft', not 'toy'"),
        (["processes=2"], None, "processes is 2, but 1 started; check the launcher"),
        (["data=gone.jsonl"], None, "gone.jsonl: no such file; correct the path"),
        ([], "size: 3\nsize: 4\n", "stage.yaml:2: 'size' is given twice"),
        ([], "- 1\n", "stage.yaml: expected a table of fields, found [1]"),
        ([], "", "stage.yaml: expected a table of fields, found nothing"),
    ],
)
def test_refusals(
    words: list[str], table: str | None, message: str, toy: Callable[..., Result], tmp_path: Path
) -> None:
    result = toy(*words, table=table)
    assert result.code == 2
    assert result.err.startswith("toy: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_the_optional_input(toy: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    toy(f"inputs.extra={tmp_path / 'more'}")
    assert (tmp_path / "out" / "extra.txt").read_text("utf-8") == "more"


def test_the_world_must_be_as_expected(toy: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = toy("processes=1")
    assert result.code == 2
    assert "processes is 1, but 2 started" in result.err
    monkeypatch.setenv("RANK", "1")
    assert toy("processes=1") == (2, "", "")  # only the first process speaks


BUSY = "is working on it; wait for it, or stop it"


def test_a_held_lock(toy: Callable[..., Result], tmp_path: Path) -> None:
    with artifact.locked(tmp_path / "out"):
        result = toy()
        assert result.code == 2
        assert result.err == f"toy: {tmp_path / 'out'}: another process ({os.getpid()}) {BUSY}\n"
        for told, who in ((b"4711 far-away", " (4711 on far-away)"), (b"", ""), (b"\xff", "")):
            (tmp_path / ".out.lock").write_bytes(told)
            assert toy().err == f"toy: {tmp_path / 'out'}: another process{who} {BUSY}\n"
    assert toy().code == 0


def test_the_lock_goes_with_its_process(toy: Callable[..., Result], tmp_path: Path) -> None:
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


def test_a_folder_that_is_in_the_way(toy: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = toy()
    assert result.code == 2
    assert "exists but is no finished output (no manifest.json); move it away, then run again" in result.err


def test_no_config_file(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        TOY.main(["--config", "gone.yaml"])
    assert capsys.readouterr().err == "toy: gone.yaml: no such file; give the path of a YAML file\n"


def test_a_real_stage_by_its_command(tiny: Any, tmp_path: Path) -> None:
    """The module as a person runs it: a subprocess, its exit codes, and nothing but one line of fault."""
    table = {"data": str(tiny.text), "vocabulary": 300, "output": str(tmp_path / "tokenizer")}
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(table), encoding="utf-8")
    command = [sys.executable, "-m", "gptlife.stages.tokenizer", "--config", str(path)]
    wrong = subprocess.run([*command, "vocabulry=1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr == f"tokenizer: {path}.vocabulry: no such field; did you mean 'vocabulary'?\n"
    right = subprocess.run(command, capture_output=True, text=True, check=False)
    assert right.returncode == 0, right.stderr
    assert "Traceback" not in right.stderr
    assert artifact.is_complete(tmp_path / "tokenizer")
