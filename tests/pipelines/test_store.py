"""The store: hashes that are remembered only while they hold, damage that is seen, names that are found."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from gptlife.data.errors import UserError
from gptlife.pipelines import store as stores
from gptlife.pipelines.store import Store
from gptlife.stages.runtime import artifact

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc", FIPS 180-2
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def count(monkeypatch):
    """How often a file was really read."""
    reads: list[str] = []
    real = stores.sha256_of_file
    monkeypatch.setattr(stores, "sha256_of_file", lambda path: (reads.append(path), real(path))[1])
    return reads


def settled(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    time.sleep(0.12)
    return str(path)


def test_a_file_is_read_once_also_by_the_next_process(tmp_path, count):
    file = settled(tmp_path / "a.txt", "abc")
    first = Store(tmp_path / "store")
    assert [first.hash_file(file), first.hash_file(file)] == [ABC, ABC]
    first.save_hashes()
    assert Store(tmp_path / "store").hash_file(file) == ABC
    assert len(count) == 1


def test_a_changed_file_is_read_again_even_with_its_old_time_and_size(tmp_path, count):
    file = settled(tmp_path / "a.txt", "abd")
    store = Store(tmp_path / "store")
    before = os.stat(file)
    assert store.hash_file(file) != ABC
    settled(Path(file), "abc")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.hash_file(file) == ABC
    assert len(count) == 2


def test_a_file_written_this_moment_is_not_remembered(tmp_path, count):
    file = tmp_path / "a.txt"
    file.write_text("abc", encoding="utf-8")
    store = Store(tmp_path / "store")
    store.hash_file(str(file))
    store.save_hashes()
    assert not (tmp_path / "store").exists()
    assert store.hash_file(str(file)) == ABC
    assert len(count) == 2


@pytest.mark.parametrize("damage", ["", "[1", "[]", "{}", "3"])
def test_a_damaged_memory_of_hashes_is_forgotten(tmp_path, damage):
    (tmp_path / ".hashes.json").write_text(damage, encoding="utf-8")
    file = settled(tmp_path / "a.txt", "")
    store = Store(tmp_path)
    assert store.hash_file(file) == EMPTY
    store.save_hashes()
    assert list(json.loads((tmp_path / ".hashes.json").read_text())) == [os.path.realpath(file)]


def test_a_file_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        Store(tmp_path).hash_file("gone.txt")
    assert str(error.value) == "gone.txt: can't be read (No such file or directory); check the path"


def test_a_store_that_cannot_be_written_still_plans_but_does_not_run(tmp_path):
    (tmp_path / "store").write_text("a file", encoding="utf-8")
    store = Store(tmp_path / "store")
    assert store.hash_file(settled(tmp_path / "a.txt", "abc")) == ABC
    store.save_hashes()
    with pytest.raises(UserError) as error:
        store.write("runs/x.json", "{}")
    assert str(error.value) == (
        f"{tmp_path}/store/runs/x.json: can't be written (Not a directory); choose another store"
    )


def finished(store: Store, address: str, **files: str) -> Path:
    """An output as the stages leave it."""
    partial = artifact.partial_of(store.path(address))
    partial.mkdir(parents=True)
    for name, text in files.items():
        (partial / name).write_text(text, encoding="utf-8")
    artifact.commit(partial, store.path(address), {"address": address, "inputs": {}})
    return store.path(address)


def test_damage_is_seen_and_names_the_file(tmp_path):
    store = Store(tmp_path)
    path = finished(store, "sft-1", model="weights", config="{}")
    store.check(path, "sft")
    (path / "model").write_text("weight", encoding="utf-8")
    with pytest.raises(UserError) as error:
        store.check(path, "sft")
    assert (
        str(error.value) == f"{path}/model: damaged (6 bytes instead of 7); make it again (gptlife run ... --fresh sft)"
    )
    (path / "model").unlink()
    with pytest.raises(UserError) as error:
        store.check(path, "sft")
    assert str(error.value) == (
        f"{path}/model: missing, though the manifest lists it; make it again (gptlife run ... --fresh sft)"
    )


def test_artefacts_are_the_finished_ones(tmp_path):
    store = Store(tmp_path)
    finished(store, "sft-2", model="x")
    finished(store, "sft-1", model="x")
    (tmp_path / "sft-3.partial").mkdir()
    (tmp_path / "sft-3.partial" / "manifest.json").write_text("{}", encoding="utf-8")
    assert [path.name for path in store.outputs()] == ["sft-1", "sft-2"]


def test_remove_takes_the_output_and_its_partial_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    path, other = finished(store, "sft-1", model="x"), finished(store, "sft-12", model="x")
    artifact.partial_of(path).mkdir()
    store.remove(path)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == [other.name]
    store.remove(path)  # nothing there: nothing to do


def test_what_another_process_works_on_is_not_removed(tmp_path):
    store = Store(tmp_path)
    path = finished(store, "sft-1", model="x")
    with artifact.locked(path), pytest.raises(UserError, match=r"another process \(\d+\) is working on it"):
        store.remove(path)
    assert artifact.is_complete(path)


@pytest.fixture
def ran(tmp_path):
    """A store where recipe `life` has made pretrain and sft, but not ppo."""
    store = Store(tmp_path / "store")
    for address in ("pretrain-1", "sft-1"):
        finished(store, address, model="x")
    assert remember(store) is False
    assert remember(store) is True
    assert remember(store, 2) is False
    assert remember(store) is False
    return store


def remember(store: Store, n_steps: int = 3) -> bool:
    names = ("pretrain", "sft", "ppo")[:n_steps]
    steps = {name: {"address": f"{name}-1", "path": str(store.path(f"{name}-1"))} for name in names}
    return store.record_run("life", {"recipe": "my/life.yaml", "overrides": ["seed=3"], "steps": steps})


@pytest.mark.parametrize("damage", [b"", b'{"recipe": "my/li', b"[1]", b'{"steps": {}}', b"\xff"])
def test_a_damaged_memory_of_a_run_is_told_and_written_anew(ran, damage):
    kept = ran.root / "runs" / "life.json"
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    with pytest.raises(UserError) as error:
        ran.find("life")
    assert str(error.value) == f"{kept}: damaged; gptlife run life replaces it"
    assert remember(ran) is False
    assert kept.read_bytes() == whole


def test_an_output_is_found_by_address_recipe_step_or_directory(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ran.find("pretrain-1") == ran.root / "pretrain-1"
    assert ran.find("life") == ran.root / "sft-1"
    assert ran.find("my/life.yaml") == ran.root / "sft-1"
    assert ran.find("life:pretrain") == ran.root / "pretrain-1"
    assert ran.find("life", lambda path: path.name == "pretrain-1") == ran.root / "pretrain-1"
    assert ran.find("store/sft-1") == ran.root / "sft-1"
    run = ran.last_run("life")
    assert (run["recipe"], run["overrides"]) == ("my/life.yaml", ["seed=3"])
    assert run["steps"]["ppo"] == {"address": "ppo-1", "path": str(ran.root / "ppo-1")}


def test_a_store_that_was_copied_means_its_own_outputs(ran, tmp_path):
    adopted = tmp_path / "mine"
    adopted.mkdir()
    run = ran.last_run("life")
    run["steps"]["base"] = {"address": "pretrain-9", "path": str(adopted)}
    ran.record_run("life", run)
    shutil.copytree(ran.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    assert copy.find("life:sft") == tmp_path / "copy" / "sft-1"
    assert copy.find("life") == tmp_path / "copy" / "sft-1"
    shutil.rmtree(ran.root)
    assert copy.find("life:sft") == tmp_path / "copy" / "sft-1"
    assert copy.find("life:base") == adopted  # adopted: it never lay in the store


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("life:ppo", "life:ppo: not made yet; gptlife run life --until ppo"),
        ("life:sfd", "life:sfd: the recipe has no such step; did you mean 'sft'?"),
        ("sft-2", "sft-2: not a directory, an address or a recipe that was run in {root}; did you mean 'sft-1'?"),
    ],
)
def test_what_is_not_found_is_one_line(ran, target, line):
    with pytest.raises(UserError) as error:
        ran.find(target)
    assert str(error.value) == line.format(root=ran.root)


def test_nothing_that_suits_and_an_empty_store_are_one_line(ran, tmp_path):
    with pytest.raises(UserError) as error:
        ran.find("life", lambda path: False)
    assert str(error.value) == f"life: no finished output in {ran.root} fits here; gptlife run life"
    with pytest.raises(UserError) as error:
        Store(tmp_path / "new").find("life")
    assert str(error.value) == (
        f"life: not a directory, an address or a recipe that was run in {tmp_path}/new; start with: gptlife run RECIPE"
    )
