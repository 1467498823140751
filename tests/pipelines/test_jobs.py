"""`gptlife run --jobs`: steps that don't rest on each other at the same time; what fails stops only what needs it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

BRANCHED = "tokenizer: {data: corpus.txt}\npretrain: {}\nsft: {}\nsft_2: {like: sft, seed: 9}\n"
MEETING = """case $2 in *sft) : >"$$.met"; for i in $(seq 1000); do
  [ "$(ls *.met | wc -l)" -gt 1 ] && break; [ $i = 1000 ] && exit 9; sleep 0.01; done ;; esac"""
"""An SFT stage waits here for the other, in vain where they run one after the other."""


@pytest.fixture
def branched(folder):
    """`branched.yaml`: two SFT models of one base."""
    (folder / "branched.yaml").write_text(BRANCHED, encoding="utf-8")
    return folder


def test_branches_run_at_the_same_time_and_are_made_once(gptlife, branched, attempts, launcher):
    words = ("run", "branched.yaml", f"launcher={launcher(MEETING)}", "--jobs", "2")
    ran = gptlife(*words)
    assert (ran.code, ran.err) == (0, "")
    assert "done: 0 of 4 steps\n" in ran.out
    assert sorted(attempts().values()) == [1, 1, 1, 1]
    assert (branched / "store" / "reports" / "branched.html").is_file()
    again = gptlife(*words)
    assert (again.code, "done: 4 of 4 steps\n" in again.out, "running" in again.out) == (0, True, False)


def test_steps_with_the_same_address_are_made_once(gptlife, folder, attempts):
    (folder / "same.yaml").write_text(BRANCHED.replace(", seed: 9", ""), encoding="utf-8")
    ran = gptlife("run", "same.yaml", "--jobs", "2")
    assert (ran.code, ran.err) == (0, "")
    assert sorted(attempts().values()) == [1, 1, 1]


@pytest.mark.parametrize(("jobs", "made"), [("1", 2), ("2", 3)])
def test_more_jobs_make_what_does_not_rest_on_the_step_that_failed(gptlife, branched, attempts, launcher, jobs, made):
    breaks = launcher('case $2 in *sft) grep -q "seed: 9" "$4" || { echo broken; exit 3; } ;; esac')
    ran = gptlife("run", "branched.yaml", f"launcher={breaks}", "--jobs", jobs)
    assert ran.code == 1
    assert len(attempts()) == made
    (line,) = ran.err.splitlines()
    assert line.startswith("sft: failed with exit code 3 (its messages are ")
    assert line.endswith("; run the same command again to resume")
    launcher("")
    assert gptlife("run", "branched.yaml", f"launcher={breaks}", "--jobs", jobs).code == 0
    assert sorted(attempts().values()) == [1, 1, 1, 1]


def test_a_signal_stops_all_steps_and_the_same_command_resumes(gptlife, branched, attempts):
    (branched / "act").write_text("sleep", encoding="utf-8")
    words = ("run", "branched.yaml", "sft.act=act", "--jobs", "2")
    running = subprocess.Popen([sys.executable, "-m", "toy_chain", *words], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while len(list(branched.glob("store/sft-*.partial/attempts.txt"))) < 2:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=20)
    finally:
        running.kill()
        running.wait()
    assert (running.returncode, err) == (143, "gptlife: stopped; run the same command again to resume\n")
    (branched / "act").unlink()
    assert gptlife(*words).code == 0
    assert sorted(attempts().values()) == [1, 1, 2, 2]
