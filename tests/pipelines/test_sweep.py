"""A grid over the toy lifecycle: what is shared runs once, failures and signals, and the files that come of it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import parse_yaml
from gptlife.pipelines import schedule
from gptlife.pipelines.sweep import grid as sweep
from gptlife.stages.runtime import artifact

RECIPE = "tokenizer: {data: corpus.txt}\npretrain: {}\nsft: {}\n"
FILES = ["sweep.csv", "sweep.html", "sweep.json", "sweep.md", "sweep.png", "sweep.svg"]


@pytest.fixture
def three(folder):
    """`three.yaml`: a recipe of three steps."""
    (folder / "three.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture
def planned(chain, three):
    """`planned("seed=0,1")`: the sweep of three.yaml that the arguments ask for."""
    from gptlife.pipelines.store import Store

    return lambda *arguments, until=None: sweep.plan("three.yaml", arguments, Store(Path("store")), chain, until)


def steps_of(attempts) -> list[str]:
    return sorted(address.partition("-")[0] for address in attempts())


# Values


@pytest.mark.parametrize(
    ("argument", "name", "values"),
    [
        ("ppo.kl_coef=0,0.02,1e-1", "ppo.kl_coef", ["0", "0.02", "1e-1"]),
        ("ppo.adaptive_kl={target: 3, horizon: 100}", "ppo.adaptive_kl", ["{target: 3, horizon: 100}"]),
        ("a={x: 1, y: 2}, null", "a", ["{x: 1, y: 2}", "null"]),
        ("a=[1,2],[3,4]", "a", ["[1,2]", "[3,4]"]),
        ("a='x, y',\"z,\"", "a", ["'x, y'", '"z,"']),
        ("a=-1, 2", "a", ["-1", "2"]),
        ("a=x.txt,data/y z.txt", "a", ["x.txt", "data/y z.txt"]),
        ("a=x=1,y=2", "a", ["x=1", "y=2"]),
        ("a=", "a", [""]),
        ("a=one", "a", ["one"]),
        ("a=data/[ab],[cd].txt", "a", ["data/[ab],[cd].txt"]),  # no YAML list: one value, as `run` would read it
        ("a=1],[2", "a", ["1],[2"]),
    ],
)
def test_values_are_the_items_of_a_yaml_list(argument, name, values):
    assert sweep.values_of(argument) == (name, values)


letters = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["C"]), max_size=9)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | letters
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3), max_leaves=6
)


@given(st.lists(nested, min_size=1, max_size=5), st.sampled_from([",", ", ", " ,  "]))
def test_any_values_that_json_can_write_come_back(values, comma):
    name, texts = sweep.values_of("a.b=" + comma.join(json.dumps(value) for value in values))
    assert name == "a.b"
    assert [parse_yaml(text, "") for text in texts] == values


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("seed", "seed: expected field=value,value, as in ppo.kl_coef=0,0.02,0.1"),
        ("seed=1,2,", "seed=1,2,: ends with a comma; give the value after it, or remove it"),
    ],
)
def test_what_is_no_list_of_values_is_refused(argument, said):
    with pytest.raises(UserError) as error:
        sweep.values_of(argument)
    assert str(error.value) == said


# The plan


def test_every_combination_is_planned_the_last_axis_fastest(planned):
    grid = planned("pretrain.learning_rate=0.1,0.2", "tokenizer.seed=4", "sft.seed=1,2,3")
    assert grid.axes == {"pretrain.learning_rate": ["0.1", "0.2"], "sft.seed": ["1", "2", "3"]}
    assert [str(combination) for combination in grid.combinations] == [
        f"pretrain.learning_rate={rate} sft.seed={seed}" for rate in ("0.1", "0.2") for seed in "123"
    ]
    assert all("tokenizer.seed=4" in combination.overrides for combination in grid.combinations)
    steps = schedule.order([combination.plan for combination in grid.combinations])
    assert [step.name for step in steps] == ["tokenizer", "pretrain", "pretrain", *["sft"] * 6]


def test_combinations_with_the_same_plan_are_one(planned):
    grid = planned("sft.learning_rate=0.1,1e-1,0.2", "sft.micro_batch=4,8")
    assert [str(each) for each in grid.combinations] == [
        "sft.learning_rate=0.1 sft.micro_batch=4",
        "sft.learning_rate=0.2 sft.micro_batch=4",
    ]
    assert len(grid.combinations[0].equals) == 3
    assert len(planned("sft.learning_rate=0.1,0.2", until="pretrain").combinations) == 1
    assert len(planned("sft.learning_rate=0.1,0.2", until="sft").combinations) == 2


def test_shared_steps_come_first_and_inputs_before_what_reads_them():
    def chain(*addresses):
        return [SimpleNamespace(address=address) for address in addresses]

    plans = [chain("a", "b1", "c1"), chain("a", "b1", "c2"), chain("a", "b2", "c3")]
    assert [step.address for step in schedule.order(plans)] == ["a", "b1", "c1", "c2", "b2", "c3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1"], "sweep: no argument has several values, as in seed=0,1,2 (for one: gptlife run)"),
        (["seed=1,2", "seed=3"], "seed=3: seed is given twice; give all its values at once"),
        (
            ["seed=1,2", "sft.learning_rate=0.1,high"],
            "three.yaml: sft.learning_rate: input should be a valid number, found 'high' "
            "(in the combination seed=1 sft.learning_rate=high)",
        ),
        (["seed=1,2", "--until", "stf"], "until stf: the recipe has no such step; did you mean 'sft'?"),
        (["seed=1,2", "--metric", "stf.score"], "--metric stf.score: no step of that name runs; did you mean 'sft'?"),
        (
            ["seed=1,2", "--metric", "score"],
            "--metric score: expected step.metric, as in evaluation.win_rates[ppo,sft].rate",
        ),
        (["seed=1,2", "--output", "three.yaml"], "three.yaml: can't be made (File exists); choose another place"),
        (["seed=1,2", "launcher=tourchrun"], "tokenizer: launcher 'tourchrun' not found on PATH; fix `launcher`"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_runs(gptlife, three, words, said, attempts):
    wrong = gptlife("sweep", "three.yaml", *words)
    assert wrong.code == 2
    (line,) = wrong.err.splitlines()
    assert line.startswith(f"gptlife: {said}") or f" {said}" in line
    assert attempts() == {}


# Running


def test_what_is_shared_runs_once_and_the_table_has_the_numbers(gptlife, three, attempts):
    words = ("sweep", "three.yaml", "pretrain.learning_rate=0.1,0.4", "sft.seed=1,3", "-o", "out")
    ran = gptlife(*words, "--metric", "sft.score", "--metric", "pretrain.score.low", "--metric", "sft.attempts")
    assert (ran.code, ran.err) == (0, "")
    assert steps_of(attempts) == ["pretrain"] * 2 + ["sft"] * 4 + ["tokenizer"]
    assert set(attempts().values()) == {1}
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[1:4] == [
        ["tokenizer", "1", "4", "0", "0", "1"],
        ["pretrain", "2", "4", "0", "0", "2"],
        ["sft", "4", "4", "0", "0", "4"],
    ]
    assert "sweep         combinations: 4, outputs: 7 (12 if nothing were shared)" in ran.out
    notes = [line[3:] for line in lines if line[1:2] == ["running"]]
    assert notes[:3] == [[], ["pretrain.learning_rate=0.1"], ["pretrain.learning_rate=0.4"]]
    assert notes[3] == ["pretrain.learning_rate=0.1", "sft.seed=1"]

    # sft: learning rate 0.1 -> 1 + seed = 2 and 4: mean 3, sd sqrt(2). pretrain: seed 0, 10 x rate, less 1.
    assert sorted(path.name for path in (three / "out").iterdir()) == FILES
    rows = list(csv.DictReader((three / "out" / "sweep.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["pretrain.learning_rate"] for row in rows] == ["0.1", "0.4"]
    for row, low in zip(rows, (0.0, 3.0), strict=True):
        assert (row["runs"], row["finished"], row["sft.score n"]) == ("2", "2", "2")
        assert [float(row[f"sft.score{name}"]) for name in ("", " min", " max")] == [3, 2, 4]
        assert float(row["sft.score sd"]) == pytest.approx(2**0.5)
        assert float(row["pretrain.score.low"]) == low
        assert float(row["sft.attempts"]) == 1
    assert "| 0.4 | 2 | 3 [2, 4] | 3 [3, 3] | 1 [1, 1] |\n" in (three / "out" / "sweep.md").read_text(encoding="utf-8")
    found = json.loads((three / "out" / "sweep.json").read_text(encoding="utf-8"))
    assert found["axes"] == {"pretrain.learning_rate": [0.1, 0.4], "sft.seed": [1, 3]}
    assert found["combinations"][3]["metrics"]["sft.score"] == {"value": 4, "low": 3, "high": 6}
    assert all((three / "store" / each["outputs"]["sft"]).is_dir() for each in found["combinations"])

    again = gptlife(*words, "--jobs", "2")
    assert (again.code, "running" in again.out) == (0, False)
    assert set(attempts().values()) == {1}
    assert "score" in again.out  # the usual metric of a stage that nothing is known of


def test_a_failed_combination_stops_no_other_and_is_told_at_the_end(gptlife, three, attempts, launcher):
    breaks = launcher('case $2 in *sft) ;; *) grep -q "learning_rate: 0.4" "$4" && echo broken && exit 3 ;; esac')
    words = ("sweep", "three.yaml", "pretrain.learning_rate=0.4,0.1", "sft.seed=1,3", f"launcher={breaks}")
    ran = gptlife(*words, "-o", "out", "--jobs", "2", "--metric", "sft.score")
    assert ran.code == 1
    assert steps_of(attempts) == ["pretrain", "sft", "sft", "tokenizer"]
    (failed,) = {line.split()[2] for line in ran.out.splitlines() if line.split()[1:2] == ["failed"]}
    words_of = three / "store" / ".work" / f"{failed}.out"
    assert words_of.read_text(encoding="utf-8") == "broken\n"
    assert "broken" not in ran.out  # what runs side by side doesn't write over each other
    assert ran.err == (
        f"sweep: pretrain: failed with exit code 3 (its messages are in {words_of}); combinations without it: 2 of 4 "
        "(pretrain.learning_rate=0.4 sft.seed=1, pretrain.learning_rate=0.4 sft.seed=3); "
        "run the same command again to resume\n"
    )
    rows = list(csv.reader((three / "out" / "sweep.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[1:] == [["0.4", "2", "0", *[""] * 5], ["0.1", "2", "2", "3.0", rows[2][4], "2.0", "4.0", "2"]]
    page = (three / "out" / "sweep.html").read_text(encoding="utf-8")
    assert page.count('class="alarm"') == 2

    launcher("")
    mended = gptlife(*words, "-o", "out", "--metric", "sft.score")
    assert (mended.code, mended.err) == (0, "")
    assert set(attempts().values()) == {1}
    assert 'class="alarm"' not in (three / "out" / "sweep.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("jobs", "set_by_user", "threads"), [("1", None, ""), ("2", None, "2"), ("8", None, "1"), ("2", "3", "3")]
)
def test_steps_at_once_share_the_cores(gptlife, three, monkeypatch, jobs, set_by_user, threads, launcher):
    """On four cores; a number that the user has set stays, and a step that is alone is left alone."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    told = launcher('echo "threads <$OMP_NUM_THREADS>" >>threads.txt')
    assert gptlife("sweep", "three.yaml", "seed=1,2", "--jobs", jobs, f"launcher={told}").code == 0
    assert {*(three / "threads.txt").read_text(encoding="utf-8").splitlines()} == {f"threads <{threads}>"}


@pytest.mark.parametrize(
    ("jobs", "said"), [("2", "toy.data: refused, found nothing; mend it"), ("1", "refused (its message is above)")]
)
def test_a_refusal_is_told_in_the_stages_own_words(gptlife, three, jobs, said):
    (three / "act").write_text("refuse", encoding="utf-8")
    # Two combinations of one output.
    words = ("tokenizer.act=act", "tokenizer.micro_batch=1,2", "--until", "tokenizer", "--jobs", jobs)
    ran = gptlife("sweep", "three.yaml", *words)
    assert ran.code == 1
    assert f"sweep: tokenizer: {said}; combinations without it: 1 of 1 (tokenizer.micro_batch=1);" in ran.err
    assert "combinations: 1 (and 1 with the plan of one of them), outputs: 1 (1 if nothing were shared)" in ran.out
    page = (three / "store" / "sweeps").glob("three-*/sweep.html")
    assert "Nothing is measured yet" in next(iter(page)).read_text(encoding="utf-8")


def test_a_damaged_output_concerns_only_those_who_need_it_and_a_misspelt_metric_is_said(gptlife, three):
    words = ("sweep", "three.yaml", "tokenizer.seed=1,2", "--until", "tokenizer")
    assert gptlife(*words).code == 0
    broken = sorted(three.glob("store/tokenizer-*/model.bin"))[0]
    broken.write_text("cut", encoding="utf-8")
    ran = gptlife(*words, "--metric", "tokenizer.scor[e]")
    assert ran.code == 1
    assert ran.err.startswith(
        "sweep: --metric tokenizer.scor[e]: no finished step has this number; did you mean 'tokenizer.score'?\n"
    )
    assert " scor[e]" in ran.out  # brackets are no markup
    assert f"sweep: tokenizer: {broken}: damaged" in ran.err
    assert "combinations without it: 1 of 2" in ran.err


def test_damaged_numbers_are_said_and_not_shown(gptlife, three):
    words = (
        "sweep",
        "three.yaml",
        "tokenizer.learning_rate=0.1,0.4",
        "--until",
        "tokenizer",
        "--metric",
        "tokenizer.score",
    )

    def measured() -> int:
        found = json.loads((three / "out" / "sweep.json").read_text(encoding="utf-8"))
        return sum(each["metrics"]["tokenizer.score"] is not None for each in found["combinations"])

    assert gptlife(*words, "-o", "out").code == 0
    assert measured() == 2
    numbers = sorted(three.glob("store/tokenizer-*/metrics.json"))[0]
    digits = bytearray(numbers.read_bytes())
    at = next(place for place, byte in enumerate(digits) if chr(byte).isdigit())
    digits[at] = ord("1") if digits[at] != ord("1") else ord("2")
    numbers.write_bytes(digits)
    ran = gptlife(*words, "-o", "out")
    assert f"sweep: {numbers}: damaged (its bytes differ from the manifest's)" in ran.err
    assert measured() == 1


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_a_signal_stops_all_and_the_same_command_resumes(gptlife, three, number, jobs, attempts):
    (three / "act").write_text("sleep", encoding="utf-8")
    words = ("sweep", "three.yaml", "tokenizer.seed=1,2", "tokenizer.act=act", "--until", "tokenizer", "-o", "out")
    words = (*words, "--jobs", str(jobs))
    running = subprocess.Popen(
        [sys.executable, "-m", "toy_chain", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while len(list(three.glob("store/tokenizer-*.partial/attempts.txt"))) < jobs:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(number)
        _, err = running.communicate(timeout=20)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 128 + number
    assert err.splitlines()[-1] == (
        "sweep: stopped with 0 of 2 combinations finished; run the same command again to resume"
    )
    partial = list(three.glob("store/tokenizer-*.partial"))
    assert len(partial) == jobs
    for path in partial:
        with artifact.locked(path.with_name(path.name.removesuffix(".partial"))):
            pass  # nobody holds it any more: the stage is gone
    assert list((three / "out").iterdir()) == []  # no table of nothing
    (three / "act").unlink()
    resumed = gptlife(*words)
    assert (resumed.code, resumed.err) == (0, "")
    assert resumed.out.count("resuming") == jobs
    assert sorted(attempts().values()) == sorted([2] * jobs + [1] * (2 - jobs))
    assert not list(three.glob("store/*.partial"))
    assert not list(three.rglob("*.tmp"))


def test_help_and_planning_draw_nothing(chain, three):
    code = "import sys, toy_chain\nfrom gptlife.pipelines.cli.app import app\n"
    code += "from gptlife.pipelines import schedule; from gptlife.pipelines.sweep import grid, page, run\n"
    code += "try: app(['sweep', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert "evaluation.win_rates[ppo,sft]" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
