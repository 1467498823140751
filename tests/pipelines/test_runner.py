"""Running a plan: order, resume, damage, --until, --fresh, launchers, signals, two at once."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.files import read_json

SHORT = "tokenizer: {data: corpus.txt}\npretrain: {}\n"


@pytest.fixture
def short(folder):
    """`short.yaml`: a recipe of two steps."""
    (folder / "short.yaml").write_text(SHORT, encoding="utf-8")
    return folder


def made(folder: Path) -> list[str]:
    """Steps whose outputs are finished in the store, sorted."""
    return sorted(path.parent.name.partition("-")[0] for path in folder.glob("store/*/manifest.json"))


def attempts(folder: Path, step: str) -> int:
    (path,) = folder.glob(f"store/{step}-*/attempts.txt")
    return len(path.read_text(encoding="utf-8").splitlines())


def test_a_whole_life_runs_once_and_the_second_run_does_nothing(gptlife, addresses, folder):
    first = gptlife("run", "toy.yaml")
    assert first.code == 0, first.err
    planned = addresses()
    assert [line for line in first.out.splitlines() if "running" in line] == [
        f"{name:<14}running   {address}" for name, address in planned.items()
    ]
    assert made(folder) == sorted(planned)
    page = folder / "store" / "reports" / "toy.html"
    assert page.read_text(encoding="utf-8") == "".join(f"{name} done\n" for name in planned)
    page.write_text("not written again", encoding="utf-8")

    started = time.monotonic()
    second = gptlife("run", "toy.yaml")
    assert time.monotonic() - started < 3
    assert (second.code, second.err) == (0, "")
    assert second.out.splitlines() == [
        *(f"{name:<14}done      {address}" for name, address in planned.items()),
        f"report        {page}",
    ]
    assert page.read_text(encoding="utf-8") == "not written again"
    # What the stage records of itself is what the plan promised.
    manifest = read_json(folder / "store" / planned["reward_model"] / "manifest.json")
    assert manifest["address"] == planned["reward_model"]
    assert manifest["inputs"] == {"base": planned["sft"], "comparisons": planned["comparisons"]}


def test_a_sweep_shares_what_lies_upstream(gptlife, short):
    assert gptlife("run", "short.yaml").code == 0
    page = short / "store" / "reports" / "short.html"
    page.write_text("the first run's", encoding="utf-8")
    again = gptlife("run", "short.yaml", "pretrain.learning_rate=0.3")
    assert [line.split()[:2] for line in again.out.splitlines()[:2]] == [["tokenizer", "done"], ["pretrain", "running"]]
    assert made(short) == ["pretrain", "pretrain", "tokenizer"]
    page.write_text("the second run's", encoding="utf-8")
    assert gptlife("run", "short.yaml").code == 0  # nothing to make, but the page was the other run's
    assert page.read_text(encoding="utf-8") == "tokenizer done\npretrain done\n"
    page.write_text("kept", encoding="utf-8")
    assert gptlife("run", "short.yaml").code == 0
    assert page.read_text(encoding="utf-8") == "kept"


def test_after_a_crash_the_next_run_resumes_in_the_same_place(gptlife, short, addresses):
    (short / "act").write_text("crash", encoding="utf-8")
    address = addresses(recipe_file="short.yaml")["pretrain"]
    crashed = gptlife("run", "short.yaml", "pretrain.act=act")
    assert crashed.code == 1
    assert crashed.err == (
        "pretrain: failed with exit code 3 (its messages are above); run the same command again to resume\n"
    )
    assert (short / "store" / f"{address}.partial").is_dir()
    assert (short / "store" / "reports" / "short.html").read_text() == "tokenizer done\npretrain partial\n"
    (short / "act").unlink()
    resumed = gptlife("run", "short.yaml", "pretrain.act=act")
    assert resumed.code == 0
    assert f"pretrain      resuming  {address}" in resumed.out.splitlines()
    assert attempts(short, "pretrain") == 2
    assert not (short / "store" / f"{address}.partial").exists()


def test_a_killed_stage_says_so_and_where_its_log_lies(gptlife, short, addresses):
    (short / "act").write_text("kill", encoding="utf-8")
    partial = short / "store" / (addresses(recipe_file="short.yaml")["tokenizer"] + ".partial")
    partial.mkdir(parents=True)
    (partial / "log.jsonl").write_text("", encoding="utf-8")
    killed = gptlife("run", "short.yaml", "tokenizer.act=act")
    assert killed.code == 1
    assert killed.err == (
        "tokenizer: killed by SIGKILL (out of memory is the usual reason); "
        f"log: {partial}/log.jsonl; run the same command again to resume\n"
    )


def test_what_a_stage_refuses_is_its_own_one_line_and_exit_2(gptlife, short):
    (short / "act").write_text("refuse", encoding="utf-8")
    refused = gptlife("run", "short.yaml", "tokenizer.act=act")
    assert (refused.code, refused.err) == (2, "tokenizer: toy.data: refused, found nothing; mend it\n")


def test_until_stops_after_the_named_step(gptlife, folder):
    assert gptlife("run", "toy.yaml", "--until", "pretrain").code == 0
    assert made(folder) == ["pretrain", "tokenizer"]
    wrong = gptlife("run", "toy.yaml", "--until", "pretrian")
    assert (wrong.code, wrong.err) == (
        2,
        "gptlife: until pretrian: the recipe has no such step; did you mean 'pretrain'?\n",
    )


def test_fresh_makes_the_named_step_again_and_only_that(gptlife, short):
    assert gptlife("run", "short.yaml").code == 0
    first = {path.parent.name: path.stat().st_mtime_ns for path in short.glob("store/*/manifest.json")}
    again = gptlife("run", "short.yaml", "--fresh", "tokenizer")
    assert [line.split()[:2] for line in again.out.splitlines()[:2]] == [["tokenizer", "running"], ["pretrain", "done"]]
    second = {path.parent.name: path.stat().st_mtime_ns for path in short.glob("store/*/manifest.json")}
    assert [name.partition("-")[0] for name in first if first[name] != second[name]] == ["tokenizer"]
    everything = gptlife("run", "short.yaml", "--fresh", "all")
    assert everything.out.count("running") == 2
    wrong = gptlife("run", "short.yaml", "--fresh", "pretrian")
    assert wrong.err == "gptlife: fresh pretrian: no such step in this run; did you mean 'pretrain'?\n"


def test_a_damaged_output_is_not_built_upon(gptlife, folder):
    assert gptlife("run", "toy.yaml", "--until", "pretrain").code == 0
    (model,) = folder.glob("store/pretrain-*/model.bin")
    model.write_text("weight", encoding="utf-8")
    damaged = gptlife("run", "toy.yaml")
    assert (damaged.code, damaged.err) == (
        2,
        f"gptlife: {model}: damaged (6 bytes instead of 7); make it again (gptlife run ... --fresh pretrain)\n",
    )
    assert made(folder) == ["pretrain", "tokenizer"]
    assert gptlife("run", "toy.yaml", "--until", "sft", "--fresh", "pretrain").code == 0


def test_an_adopted_directory_is_read_where_it_is_and_never_removed(gptlife, folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "adopted.yaml").write_text("pretrain: {adopt: mine}\nsft: {}", encoding="utf-8")
    ran = gptlife("run", "adopted.yaml", "--fresh", "all")
    assert ran.code == 0
    assert ran.out.splitlines()[0].endswith(f"(adopted: {folder}/mine)")
    assert made(folder) == ["sft"]
    wrong = gptlife("run", "adopted.yaml", "--fresh", "pretrain")
    assert wrong.err == (f"gptlife: fresh pretrain: adopted from {folder}/mine, which gptlife does not remove\n")
    assert (folder / "mine" / "config.json").is_file()


@pytest.fixture
def hub(monkeypatch, folder):
    """A hub with the model some/gpt@v1 of three files, and `hub.yaml`, which adopts it."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    (folder / "hub.yaml").write_text("pretrain: {adopt: some/gpt@v1}\nsft: {}", encoding="utf-8")
    hub = SimpleNamespace(asked=[], down=False, lost="", cut="")
    files = {"config.json": "{}", "model.safetensors": "weights", "model.h5": "other weights", "model.bin": "a pickle"}
    hub.files = files

    class Api:
        def model_info(self, repo_id, *, revision, files_metadata):
            if hub.down:
                raise RuntimeError("no route to host\nand a long story")
            siblings = [SimpleNamespace(rfilename=name, size=len(text)) for name, text in files.items()]
            return SimpleNamespace(sha="f00", siblings=siblings)

    def download(repo_id, *, revision, local_dir, ignore_patterns):
        hub.asked.append((repo_id, revision))
        (Path(local_dir) / ".cache").mkdir(exist_ok=True)
        for name, text in files.items():
            if name != hub.lost and f"*.{name.rpartition('.')[2]}" not in ignore_patterns:
                (Path(local_dir) / name).write_text(text[1:] if name == hub.cut else text, encoding="utf-8")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


def test_a_hub_model_is_fetched_into_the_store_once(gptlife, folder, hub):
    assert gptlife("run", "hub.yaml").code == 0
    assert gptlife("run", "hub.yaml").code == 0
    assert hub.asked == [("some/gpt", "v1")]
    (path,) = folder.glob("store/pretrain-*")
    assert sorted(entry.name for entry in path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "stage.yaml",
    ]
    assert read_json(path / "manifest.json")["hub_commit"] == "f00"
    (sft,) = folder.glob("store/sft-*")
    assert read_json(sft / "manifest.json")["inputs"] == {"base": path.name}


def test_a_hub_that_gives_nothing_or_too_little_is_one_line(gptlife, folder, hub):
    line = (
        "gptlife: pretrain: some/gpt@v1 can't be fetched ({}); "
        "check id, revision and network, or adopt a local directory\n"
    )
    hub.down = True
    failed = gptlife("run", "hub.yaml")
    assert (failed.code, failed.err) == (2, line.format("no route to host"))
    hub.down = False
    for hub.lost, hub.cut in (("model.safetensors", ""), ("", "model.safetensors")):
        failed = gptlife("run", "hub.yaml")
        assert (failed.code, failed.err) == (2, line.format("model.safetensors did not arrive complete"))
        assert not made(folder)
    hub.cut = ""
    assert gptlife("run", "hub.yaml").code == 0


def test_a_hub_model_of_pickles_alone_is_not_fetched(gptlife, folder, hub):
    del hub.files["model.safetensors"]
    failed = gptlife("run", "hub.yaml")
    assert failed.code == 2
    assert "its weights are only pickles, which can run any code; none are in safetensors" in failed.err
    assert hub.asked == []


def test_a_launcher_is_a_prefix_of_the_same_command(gptlife, short):
    launcher = short / "launch"
    launcher.write_text(f'#!/bin/sh\necho "launched: $*" >&2\nexec {sys.executable} "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)
    ran = gptlife("run", "short.yaml", f"pretrain.launcher={launcher}")
    assert ran.code == 0
    (config,) = short.glob("store/.work/pretrain-*.stage.yaml")
    assert ran.err == f"launched: -m toy_pretrain --config {config}\n"


def test_a_launcher_that_is_missing_is_seen_before_anything_runs(gptlife, short):
    wrong = gptlife("run", "short.yaml", "pretrain.launcher=acelerate launch")
    assert (wrong.code, wrong.err) == (
        2,
        "gptlife: pretrain: launcher 'acelerate' not found on PATH; fix `launcher`\n",
    )
    assert not made(short)


def test_a_launcher_that_runs_nothing_is_no_success(gptlife, short, addresses):
    path = short / "store" / addresses(recipe_file="short.yaml")["tokenizer"]
    idle = gptlife("run", "short.yaml", 'launcher="true"')
    assert idle.code == 1
    assert idle.err == (
        f"tokenizer: ended without an output at {path}; check the launcher; run the same command again to resume\n"
    )


def test_data_that_changes_during_a_run_does_not_get_the_old_address(gptlife, folder):
    # The first step's launcher edits what the second reads, as a person might in the hours between.
    (folder / "late.txt").write_text("before", encoding="utf-8")
    (folder / "late.yaml").write_text(SHORT + "sft: {data: late.txt}\n", encoding="utf-8")
    editor = folder / "edit"
    editor.write_text(f'#!/bin/sh\necho after > late.txt\nexec {sys.executable} "$@"\n', encoding="utf-8")
    editor.chmod(0o755)
    ran = gptlife("run", "late.yaml", f"tokenizer.launcher={editor}")
    assert (ran.code, ran.err) == (
        2,
        "gptlife: sft: its data changed since the plan was made; run the same command again\n",
    )
    assert gptlife("run", "late.yaml", f"tokenizer.launcher={editor}").code == 0


def test_a_broken_report_never_fails_a_run(gptlife, short, report):
    def write(planned, output, name):
        raise ValueError("no plot today")

    report.write = write
    ran = gptlife("run", "short.yaml")
    assert (ran.code, ran.err) == (
        0,
        "gptlife: no report (ValueError: no plot today); try again: gptlife report\n",
    )
    assert "report" not in ran.out


def test_the_report_goes_where_it_is_asked_to(gptlife, short):
    assert gptlife("run", "short.yaml", "--report", "out/page.html").code == 0
    assert (short / "out" / "page.html").read_text() == "tokenizer done\npretrain done\n"


def program(*words: str) -> subprocess.Popen[str]:
    """`gptlife` on the toy lifecycle as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "toy_chain", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def asleep(chain, short):
    """A run whose pretrain stage sleeps: the process, once that stage is at work."""
    (short / "act").write_text("sleep", encoding="utf-8")
    running = program("run", "short.yaml", "pretrain.act=act")
    deadline = time.monotonic() + 30
    while not (short / "act.started").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield running
    running.kill()
    running.communicate()


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "pretrain: interrupted; run the same command again to resume\n"),
        (signal.SIGTERM, 143, "pretrain: interrupted; run the same command again to resume\n"),
    ],
)
def test_a_signal_reaches_the_stage_and_is_waited_for(asleep, short, number, code, line):
    asleep.send_signal(number)
    _, err = asleep.communicate(timeout=20)
    assert (asleep.returncode, err) == (code, line)
    assert made(short) == ["tokenizer"]
    (partial,) = short.glob("store/pretrain-*.partial")
    with artifact.locked(partial.with_name(partial.name.removesuffix(".partial"))):
        pass  # nobody holds it any more: the stage is gone
    (short / "act").unlink()
    resumed = program("run", "short.yaml", "pretrain.act=act")
    assert resumed.communicate(timeout=20)[1] == ""
    assert attempts(short, "pretrain") == 2


def test_a_terminal_that_is_gone_stops_the_run_and_the_same_command_resumes(chain, short):
    (short / "act").write_text("sleep", encoding="utf-8")
    here, there = pty.openpty()
    words = [sys.executable, "-m", "toy_chain", "run", "short.yaml", "pretrain.act=act"]
    running = subprocess.Popen(
        words, stdin=there, stdout=there, stderr=there, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(there)
    deadline = time.monotonic() + 30
    while not (short / "act.started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(here)
    assert running.wait(timeout=20) == 128 + signal.SIGHUP
    (partial,) = short.glob("store/pretrain-*.partial")
    with artifact.locked(partial.with_name(partial.name.removesuffix(".partial"))):
        pass  # the stage is gone too
    (short / "act").unlink()
    assert program("run", "short.yaml", "pretrain.act=act").communicate(timeout=20)[1] == ""
    assert attempts(short, "pretrain") == 2


def test_of_two_runs_at_once_the_second_is_refused_in_one_line(asleep, short):
    second = program("run", "short.yaml", "pretrain.act=act")
    _, err = second.communicate(timeout=20)
    (partial,) = short.glob("store/pretrain-*.partial")
    path = str(partial).removesuffix(".partial")
    told = rf"pretrain: {re.escape(path)}: another process \(\d+\) is working on it; wait for it, or stop it\n"
    assert second.returncode == 2
    assert re.fullmatch(told, err)
    assert asleep.poll() is None
    os.kill(asleep.pid, signal.SIGINT)
    assert asleep.wait(timeout=20) == 130
