"""Steps of a recipe's own: `like`, `inputs`, dotted fields, and the order of steps."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gptlife.data.errors import UserError
from gptlife.pipelines import planner, recipe
from gptlife.pipelines.chain import chain as chain_of
from gptlife.pipelines.lifecycle import Step
from gptlife.pipelines.store import Store

BRANCHES = """\
sft_slow: {like: sft, learning_rate: 0.5}
comparisons_2: {like: comparisons, inputs: {policy: sft_slow}}
"""


@pytest.fixture
def load(chain, folder):
    def loaded(added: str, *overrides: str):
        path = folder / "branch.yaml"
        path.write_text((folder / "toy.yaml").read_text(encoding="utf-8") + added, encoding="utf-8")
        return recipe.load(str(path), list(overrides), chain)

    return loaded


@pytest.fixture
def planned(load, folder):
    return lambda *given: {step.name: step for step in planner.plan(load(*given), Store(folder / "store"))}


def test_a_step_like_another_has_its_stage_wiring_and_fields(planned):
    steps = planned(BRANCHES)
    assert steps["sft_slow"].stage is steps["sft"].stage
    assert steps["sft_slow"].inputs["base"].name == "pretrain"
    assert steps["sft_slow"].config.learning_rate == 0.5
    assert steps["sft_slow"].config.seed == 5
    assert steps["comparisons_2"].inputs["policy"].name == "sft_slow"
    assert list(steps).index("comparisons_2") > list(steps).index("sft_slow")


def test_a_branch_moves_no_other_address_and_an_equal_one_shares_its_output(planned):
    alone, branched = planned(""), planned(BRANCHES + "sft_again: {like: sft}\n")
    assert {name: step.address for name, step in alone.items()} == {name: branched[name].address for name in alone}
    assert branched["sft_again"].address == branched["sft"].address
    assert branched["sft_slow"].address != branched["sft"].address


def test_an_override_of_the_pattern_reaches_those_that_are_like_it(planned):
    steps = planned("sft_2: {like: sft}\nsft_3: {like: sft_2}\n", "sft.learning_rate=0.25")
    assert {steps[name].config.learning_rate for name in ("sft", "sft_2", "sft_3")} == {0.25}
    steps = planned("sft_2: {like: sft}\n", "sft_2.learning_rate=0.25")
    assert (steps["sft"].config.learning_rate, steps["sft_2"].config.learning_rate) == (0.1, 0.25)


def test_a_dotted_name_goes_inside_and_leaves_the_pattern_alone(chain):
    tables = {
        "sft": {"architecture": {"fields": {"width": 1, "depth": 2}}},
        "wide": {"like": "sft", "architecture.fields.width": 9},
    }
    found = {step.name: fields for step, fields in chain_of(tables, chain, "x.yaml")}
    assert found["wide"] == {"architecture": {"fields": {"width": 9, "depth": 2}}}
    assert found["sft"] == {"architecture": {"fields": {"width": 1, "depth": 2}}}


def test_a_step_that_is_left_out_is_still_a_pattern(planned):
    steps = planned("other: {like: reward_model}\n", "reward_model=null")
    assert "reward_model" not in steps
    assert set(steps["other"].inputs) == {"base", "comparisons"}


def test_an_adopted_step_stands_in_for_a_copied_one(planned, folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("w", encoding="utf-8")
    steps = planned("mine: {like: sft, adopt: model}\ncomparisons_2: {like: comparisons, inputs: {policy: mine}}\n")
    assert steps["mine"].external
    assert steps["comparisons_2"].inputs["policy"].path == folder / "model"


REFUSED = [
    ("x: {like: sfft}", "x.like: no step 'sfft'; did you mean 'sft'?"),
    ("x: {like: x}", "x.like: circular (x -> x)"),
    ("x: {like: y}\ny: {like: x}", "y.like: circular (x -> y -> x)"),
    ("x: {like: sft, inputs: {bse: sft}}", "x.inputs.bse: sft has no such input; did you mean 'base'?"),
    ("x: {like: sft, inputs: {base: pretrian}}",
     "x.inputs.base: no step 'pretrian'; did you mean 'pretrain'?"),
    ("x: {like: sft, inputs: 3}", "x.inputs: expected a table input: step, found 3"),
    ("x: {like: sft, inputs: {base: y}}\ny: {like: sft, inputs: {base: x}}",
     "steps read each other's outputs (x -> y -> x); fix their `inputs`"),
    ("x: {learning_rate: 1.0}", "x: no such step or setting; there are: tokenizer, pretrain, sft, "
     "comparisons, reward_model, seed, trust_remote_code, deterministic, vars, launcher"),
]  # fmt: skip


@pytest.mark.parametrize(("added", "line"), REFUSED)
def test_what_is_wrong_is_one_line(load, added, line):
    with pytest.raises(UserError) as refused:
        load(added + "\n")
    assert str(refused.value).partition("branch.yaml: ")[2] == line


def test_a_stage_that_is_like_another_stage_is_refused(chain, folder):
    # It would be a step of the other stage under the stage's name.
    path = folder / "other.yaml"
    text = (folder / "toy.yaml").read_text(encoding="utf-8").replace("comparisons: {}", "comparisons: {like: sft}")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"comparisons\.like: 'comparisons' is a stage, and 'sft' is of another"):
        recipe.load(str(path), [], chain)


def test_of_the_steps_that_could_come_next_the_first_given_does():
    stage = SimpleNamespace(name="s", takes=lambda name: True, inputs=(), optional=())
    reads = {"late": "early", "free": None, "early": None, "last": "late"}
    tables = {name: {"like": "s", "inputs": {"i": up}} for name, up in reads.items()}
    order = [step.name for step, _ in chain_of(tables, [Step("s", stage, "m")], "x")]
    assert order == ["free", "early", "late", "last"]


@given(st.integers(0, 2**32))
def test_whatever_the_order_in_the_file_a_step_comes_after_what_it_reads(seed):
    rng = random.Random(seed)
    names = [f"s{i}" for i in range(8)]
    reads = {name: rng.sample(names[:i], rng.randint(0, min(2, i))) for i, name in enumerate(names)}
    stage = SimpleNamespace(name="s", inputs=(), optional=(), takes=lambda name: True)
    rng.shuffle(names)
    steps = [Step("s", stage, "m")]
    tables = {name: {"like": "s", "inputs": {f"i{k}": up for k, up in enumerate(reads[name])}} for name in names}
    order = [step.name for step, _ in chain_of(tables, steps, "x")]
    assert sorted(order) == sorted(names)
    assert all(order.index(up) < order.index(name) for name in names for up in reads[name])


def test_the_stage_file_of_a_branch_names_its_stage(planned, folder):
    from gptlife.pipelines import launch

    words = launch.command(planned(BRANCHES)["comparisons_2"], Store(folder / "store"))
    written = yaml.safe_load(Path(words[-1]).read_text(encoding="utf-8"))
    assert written["stage"] == "comparisons"
    assert written["inputs"]["policy"].endswith(planned(BRANCHES)["sft_slow"].address)


def test_a_recipe_that_extends_another_is_laid_over_it(chain, folder):
    (folder / "over.yaml").write_text(
        "extends: toy.yaml\nseed: 7\npretrain: {learning_rate: 0.5}\ncomparisons: null\nreward_model: null\n"
        "sft_2: {like: sft, inputs: {base: pretrain}}\n",
        encoding="utf-8",
    )
    tables = {table.step.name: table for table in recipe.load("over.yaml", [], chain).tables}
    assert list(tables) == ["tokenizer", "pretrain", "sft", "sft_2"]
    assert (tables["pretrain"].config.learning_rate, tables["sft"].config.learning_rate) == (0.5, 0.1)
    assert {table.config.seed for table in tables.values()} == {7}
    assert tables["tokenizer"].config.data[0].path == "corpus.txt"  # its variable comes with it


def test_extending_adds_inputs_and_keeps_the_others(chain, folder):
    (folder / "one.yaml").write_text(
        "extends: toy.yaml\nr: {like: reward_model, inputs: {base: sft}}\n", encoding="utf-8"
    )
    (folder / "two.yaml").write_text("extends: one.yaml\nr: {inputs: {comparisons: null}}\n", encoding="utf-8")
    (folder / "three.yaml").write_text("extends: one.yaml\nr: null\n", encoding="utf-8")
    assert "r" not in {table.step.name for table in recipe.load("three.yaml", [], chain).tables}
    tables = {table.step.name: table for table in recipe.load("two.yaml", [], chain).tables}
    assert tables["r"].step.inputs == {"base": "sft"}


@pytest.mark.parametrize("value", ["me.yaml", "3", "other.yaml"])
def test_extending_in_a_circle_is_refused(chain, folder, value):
    (folder / "me.yaml").write_text(f"extends: {value}\n", encoding="utf-8")
    (folder / "other.yaml").write_text("extends: me.yaml\n", encoding="utf-8")
    with pytest.raises(UserError, match=r": extends: expected another recipe's name or path, found "):
        recipe.load("me.yaml", [], chain)


def test_until_makes_a_step_and_what_it_rests_on(load, folder):
    from gptlife.pipelines import runner

    steps = planner.plan(load(BRANCHES), Store(folder / "store"))
    assert [step.name for step in runner.up_to(steps, "comparisons_2")] == [
        "tokenizer",
        "pretrain",
        "sft_slow",
        "comparisons_2",
    ]
    assert runner.up_to(steps, None) == steps
