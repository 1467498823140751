"""Work that is resumed elsewhere: with the threads it was begun with, or with a notice of what differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlife.data.config import decode
from gptlife.stages import pretrain
from gptlife.stages.comparisons import ComparisonsConfig
from gptlife.stages.runtime.files import keep_piece, read_piece
from gptlife.stages.runtime.provenance import machines_of, versions
from gptlife.stages.training import setup
from gptlife.stages.training.setup import accelerator_for


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads is the process's; it is given back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., None]:
    """`begin(threads, generation_batch_size=...)`: a stage begins, or goes on, in a process of so many threads."""

    def start(number: int, **fields: Any) -> None:
        torch.set_num_threads(number)
        raw = {"prompts": "p.jsonl", "labelers": {"village": "training"}, "device": "cpu", **fields}
        accelerator_for(decode(ComparisonsConfig, raw, "x"), tmp_path)

    return start


@pytest.mark.parametrize(("now", "taken"), [(3, 2), (2, 2), (1, 1)])
def test_never_more_threads_than_it_was_begun_with(begin: Any, now: int, taken: int) -> None:
    begin(2)
    begin(now)
    assert torch.get_num_threads() == taken


def test_nothing_is_said_where_it_goes_on_as_it_was_begun(begin: Any, tmp_path: Path, capsys: Any) -> None:
    begin(2)
    begin(2)
    begin(3)
    assert capsys.readouterr().err == ""
    assert [machine["threads"] for machine in machines_of(tmp_path)] == [2]


def test_what_is_another_is_told_and_kept(begin: Any, tmp_path: Path, capsys: Any) -> None:
    begin(2)
    begin(1, generation_batch_size=64)
    said = capsys.readouterr().err
    told = "begun with threads 2, generation_batch_size 256; resumed with threads 1, generation_batch_size 64: the same"
    assert said.startswith(f"{tmp_path}: {told}")
    assert said.count("\n") == 1
    begin(2)
    assert capsys.readouterr().err == ""
    assert [(machine["threads"], machine["generation_batch_size"]) for machine in machines_of(tmp_path)] == [
        (2, 256),
        (1, 64),
    ]


@pytest.mark.parametrize(("name", "value"), [("processes", 4), ("torch", "1.0"), ("instructions", "x86_64 MMX")])
def test_what_the_machine_itself_is(begin: Any, tmp_path: Path, capsys: Any, name: str, value: Any) -> None:
    begin(1)
    path = tmp_path / "checkpoints" / "machines.json"
    keep_piece(path, [{**read_piece(path)[0], name: value}])
    begin(1)
    assert f"begun with {name} {value}; resumed with {name} " in capsys.readouterr().err


def test_from_a_gpu_to_a_cpu(begin: Any, tmp_path: Path, capsys: Any) -> None:
    begin(1)
    path = tmp_path / "checkpoints" / "machines.json"
    there = read_piece(path)[0]
    keep_piece(path, [{key: there[key] for key in there if key != "threads"} | {"device": "cuda (A Big One)"}])
    begin(2)
    assert torch.get_num_threads() == 2
    assert "begun with device cuda (A Big One); resumed with device cpu, threads 2" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_begun_with_one_thread_it_ends_with_the_bits_of_one(
    kept: bool, tiny: Any, run: Any, tmp_path: Path, digests: Any, cut_short: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with others where the number is not kept to, or the test could not fail."""
    fields = {
        "data": str(tiny.text), "validation": str(tiny.held_out), "sequence_length": 64, "tokens": 4096,
        "batch_tokens": 1024, "architecture": {"model_type": "gpt2", "fields":
            {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 64}},
    }  # fmt: skip
    inputs = {"tokenizer": tiny.tokenizer}
    torch.set_num_threads(1)
    run(pretrain.STAGE, fields, tmp_path / "whole", **inputs)
    cut_short(2, lambda: run(pretrain.STAGE, fields, tmp_path / "parts", **inputs))
    torch.set_num_threads(2)
    if not kept:
        monkeypatch.setattr(setup, "resume_as_begun", lambda output, fields: None)
    run(pretrain.STAGE, fields, tmp_path / "parts", **inputs)
    assert (digests(tmp_path / "parts") == digests(tmp_path / "whole")) is kept


def test_the_manifest_names_them_where_they_are_several(tiny: Any, tmp_path: Path, cut_short: Any) -> None:
    output = tmp_path / "out"
    raw = {
        "data": str(tiny.text), "validation": str(tiny.held_out), "sequence_length": 32, "tokens": 1024,
        "batch_tokens": 256, "device": "cpu", "track": [], "inputs": {"tokenizer": str(tiny.tokenizer)},
        "output": str(output), "architecture": {"model_type": "gpt2", "fields":
            {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}},
    }  # fmt: skip
    cut_short(2, lambda: pretrain.STAGE.execute(raw, "x"))
    pretrain.STAGE.execute({**raw, "micro_batch_tokens": 64}, "x")
    machines = json.loads((output / "manifest.json").read_text("utf-8"))["machines"]
    assert [machine["micro_batch_tokens"] for machine in machines] == [4096, 64]
    pretrain.STAGE.execute({**raw, "output": str(tmp_path / "at once")}, "x")
    assert "machines" not in json.loads((tmp_path / "at once" / "manifest.json").read_text("utf-8"))


def test_what_a_result_depends_on() -> None:
    installed = versions()
    assert {"python", "torch", "transformers", "numpy"} <= set(installed)
    import torch

    assert installed["torch"] == torch.__version__.partition("+")[0] or installed["torch"] == torch.__version__
