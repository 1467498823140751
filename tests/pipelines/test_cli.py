"""The command line on the toy lifecycle: what is printed, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_plan_shows_every_step_and_makes_no_output(gptlife, addresses, folder):
    planned = gptlife("plan", "toy.yaml", "sft.launcher=torchrun --nproc_per_node 2")
    assert planned.code == 0
    assert [line.split() for line in planned.out.splitlines()] == [
        ["step", "address", "state", "launcher"],
        *(
            [name, address, "to", "do", *(["torchrun", "--nproc_per_node", "2"] if name == "sft" else [])]
            for name, address in addresses().items()
        ),
    ]
    assert not list(folder.glob("store/*-*"))


def test_plan_shows_what_is_there_and_what_was_begun(gptlife, folder, addresses):
    assert gptlife("run", "toy.yaml", "--until", "tokenizer").code == 0
    (folder / "store" / f"{addresses()['pretrain']}.partial").mkdir()
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text("{}", encoding="utf-8")
    states = [line.split()[2] for line in gptlife("plan", "toy.yaml").out.splitlines()[1:]]
    assert states == ["done", "partial", "to", "to", "to"]
    adopted = gptlife("plan", "toy.yaml", "pretrain={adopt: mine}").out.splitlines()[2]
    assert adopted.split()[2:] == ["done", "adopted:", f"{folder}/mine"]


def test_the_store_can_lie_elsewhere(gptlife, folder):
    assert gptlife("run", "toy.yaml", "--until", "tokenizer", "--store", "other").code == 0
    assert len(list(folder.glob("other/tokenizer-*"))) == 1
    assert not (folder / "store").exists()


def test_what_the_user_can_fix_is_one_line_and_exit_2(gptlife):
    wrong = gptlife("plan", "toy.yaml", "sft.learning_rat=1")
    assert (wrong.code, wrong.out, wrong.err) == (
        2,
        "",
        "gptlife: toy.yaml: sft.learning_rat: no such field; did you mean 'learning_rate'?\n",
    )
    assert gptlife("plan", "toy.yaml", "sft").err == (
        "gptlife: sft: expected field=value, as in sft.learning_rate=1e-4\n"
    )


def test_show_tells_how_an_output_was_made(gptlife, addresses, folder):
    assert gptlife("run", "toy.yaml", "--until", "sft", "sft.seed=9").code == 0
    planned = addresses("sft.seed=9")
    shown = gptlife("show", planned["sft"])
    assert shown.code == 0, shown.err
    lines = [line.strip() for line in shown.out.splitlines()]
    assert lines[0] == f"{planned['sft']}  {folder}/store/{planned['sft']}"
    at = lines.index("made from")
    assert lines[at + 1] == planned["sft"]
    assert lines[at + 2].endswith(f"base: {planned['pretrain']}")
    assert lines[at + 3].endswith(f"tokenizer: {planned['tokenizer']}")
    pairs = [line.split() for line in lines]
    assert ["seed", "9"] in pairs
    assert ["nested.loss", "1.5"] in pairs
    assert ["attempts", "1"] in pairs
    assert [pair for pair in pairs if pair[:1] == ["device"]] == [["device", "cpu"]]  # the config's is None
    config = gptlife("show", planned["tokenizer"]).out
    assert ["data[0].path", "corpus.txt"] in [line.split() for line in config.splitlines()]
    assert gptlife("show", "toy").out == shown.out  # the last step of its last run that is finished
    assert gptlife("show", "toy:pretrain").out.startswith(planned["pretrain"])
    numbers = folder / "store" / planned["sft"] / "metrics.json"
    numbers.write_text(numbers.read_text("utf-8").replace("1.5", "1.4"), encoding="utf-8")
    damaged = gptlife("show", planned["sft"])
    assert (damaged.code, damaged.out) == (2, "")
    assert damaged.err.startswith(f"gptlife: {numbers}: damaged (its bytes differ from the manifest's)")


def test_verify_names_what_is_damaged(gptlife, addresses, folder):
    empty = gptlife("verify")
    assert (empty.code, empty.err) == (
        2,
        f"gptlife: {folder}/store: no finished output; start with: gptlife run RECIPE\n",
    )
    assert gptlife("run", "toy.yaml", "--until", "sft").code == 0
    planned = addresses()
    names = sorted(planned[step] for step in ("tokenizer", "pretrain", "sft"))
    assert gptlife("verify") == (0, "".join(f"{name}: good\n" for name in names), "")
    weights = folder / "store" / planned["pretrain"] / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    told = f"{weights}: damaged (its bytes differ from the manifest's); make it again (gptlife run ... --fresh STEP)\n"
    good = "".join(f"{name}: good\n" for name in names if name != planned["pretrain"])
    assert gptlife("verify") == (1, good, told)
    assert gptlife("verify", planned["sft"], "toy:tokenizer").code == 0
    assert gptlife("verify", "toy:pretrain").code == 1


def test_show_of_what_is_no_output_is_one_line(gptlife, folder):
    (folder / "mine").mkdir()
    assert gptlife("show", "mine").err == (
        f"gptlife: {folder}/mine: not a finished output of gptlife (no manifest.json); try another directory\n"
    )


def test_report_is_written_again_with_the_overrides_of_the_last_run(gptlife, folder):
    assert gptlife("run", "toy.yaml", "--until", "tokenizer", "tokenizer.seed=9").code == 0
    page = folder / "store" / "reports" / "toy.html"
    page.unlink()
    for name in ("toy", "toy.yaml"):
        again = gptlife("report", name)
        assert (again.code, again.out) == (0, f"{page}\n")
        assert page.read_text(encoding="utf-8").startswith("tokenizer done\n")
    other = gptlife("report", "toy.yaml", "tokenizer.seed=8", "-o", "out/page.html")
    assert other.code == 0
    assert (folder / "out" / "page.html").read_text(encoding="utf-8").startswith("tokenizer to do\n")


def test_data_check_reports_and_fails_on_bad_rows(gptlife, folder):
    (folder / "good.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    good = gptlife("data", "check", "good.jsonl")
    assert good.code == 0, good.err
    assert "1 usable" in good.out
    (folder / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\nnot JSON\n', encoding="utf-8")
    bad = gptlife("data", "check", "bad.jsonl")
    assert bad.code == 1
    assert "bad.jsonl:2" in bad.out
    assert gptlife("data", "check", "gone.jsonl").code == 2


def test_recipes_are_listed(gptlife, monkeypatch):
    from gptlife.pipelines import recipe

    monkeypatch.setattr(recipe, "shipped", lambda: {"tiny": "Tiny: two minutes"})
    listed = gptlife("recipes")
    assert [line.strip().split(maxsplit=1) for line in listed.out.splitlines()] == [
        ["recipe", "what it is"],
        ["tiny", "Tiny: two minutes"],
    ]


@pytest.mark.parametrize(
    "words", [(), ("plan",), ("run",), ("show",), ("report",), ("chat",), ("compare",), ("data", "check")]
)
def test_every_command_has_help(gptlife, words):
    helped = gptlife(*words, "--help")
    assert helped.code == 0
    assert "Usage: " in helped.out


def test_an_interrupt_outside_a_stage_is_one_line(gptlife, monkeypatch):
    from gptlife.pipelines.cli import app as cli

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    stopped = gptlife("plan", "toy.yaml")
    assert (stopped.code, stopped.err) == (130, "gptlife: interrupted; run the same command again to resume\n")


def test_a_terminal_without_the_letter_shows_its_number(folder):
    words = [sys.executable, "-m", "gptlife.pipelines.cli", "report", "smoke", "--store", "störe"]
    told = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout.endswith(b"st\\xf6re/reports/smoke.html\n")


@pytest.mark.parametrize("module", ["gptlife", "gptlife.pipelines.cli", "gptlife.pipelines.cli.app"])
def test_every_module_that_looks_like_the_command_is_it(module):
    told = subprocess.run([sys.executable, "-m", module, "recipes"], capture_output=True, text=True, check=True)
    assert "quickstart" in told.stdout
