"""Addresses: what moves them and what does not."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptlife.data.errors import UserError
from gptlife.pipelines import planner, recipe
from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.store import Store

STEPS = ["tokenizer", "pretrain", "sft", "comparisons", "reward_model"]


def changed(before, after):
    return [name for name in before if before[name] != after[name]]


def test_an_address_is_the_hash_of_canonical_json(addresses, folder):
    # Written by hand: keys sorted, no spaces, floats as repr, data by content, execution fields absent.
    found = addresses("tokenizer.data=null")
    text = '{"config":{"data":null,"learning_rate":0.1,"seed":5},"inputs":{},"stage":"tokenizer","version":1}'
    assert found["tokenizer"] == "tokenizer-" + hashlib.sha256(text.encode()).hexdigest()[:12]
    text = (
        '{"config":{"data":null,"learning_rate":0.1,"seed":5},'
        f'"inputs":{{"tokenizer":"{found["tokenizer"]}"}},"stage":"pretrain","version":1}}'
    )
    assert found["pretrain"] == "pretrain-" + hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("number", range(5))
def test_a_field_re_addresses_its_step_and_what_lies_downstream(addresses, number):
    # In the toy chain everything after a step reads it, but comparisons only feeds reward_model.
    moved = changed(addresses(), addresses(f"{STEPS[number]}.learning_rate=0.2"))
    assert moved == STEPS[number:]


def test_the_seed_moves_everything_and_a_steps_own_seed_only_downstream(addresses):
    assert changed(addresses(), addresses("seed=6")) == STEPS
    assert changed(addresses(), addresses("sft.seed=6")) == STEPS[2:]


def test_execution_fields_launchers_and_paths_move_nothing(addresses, folder):
    before = addresses()
    assert before == addresses("pretrain.micro_batch=1", "pretrain.device=cpu", "pretrain.processes=2")
    assert before == addresses("launcher=accelerate launch", "sft.launcher=torchrun --nproc_per_node 2")
    (folder / "elsewhere").mkdir()
    (folder / "corpus.txt").rename(folder / "elsewhere" / "other.txt")
    assert before == addresses("vars.data=elsewhere/other.txt")


def test_a_files_content_moves_its_step(addresses, folder):
    before = addresses()
    (folder / "corpus.txt").write_text("once upon a line", encoding="utf-8")  # of the same length
    assert changed(before, addresses()) == STEPS


def test_an_integer_and_a_float_of_one_value_are_one_address(addresses):
    assert addresses("sft.learning_rate=1") == addresses("sft.learning_rate=1.0")


def test_an_optional_input_is_dropped_with_its_step(chain, addresses, folder):
    loaded = recipe.load("toy.yaml", ["comparisons=null"], chain)
    planned = planner.plan(loaded, Store(Path("store")))
    assert list(planned[-1].inputs) == ["base"]
    assert planned[-1].address != addresses()["reward_model"]


def test_a_required_input_that_is_missing_names_both_tables(refusal):
    assert refusal("pretrain: {}") == (
        "bad.yaml: pretrain reads tokenizer (as 'tokenizer'), but the recipe has no table 'tokenizer'; "
        "add it, or give `tokenizer: {adopt: <directory or hub id@revision>}`"
    )


def test_a_missing_data_file_is_refused_by_the_plan(refusal):
    message = refusal("tokenizer: {data: gone.txt}")
    assert message.startswith("bad.yaml: tokenizer: ")
    assert "gone.txt" in message


def test_a_number_that_is_none_is_refused_by_the_plan(refusal, folder):
    assert refusal("tokenizer: {learning_rate: .nan}") == (
        "bad.yaml: tokenizer.learning_rate: input should be a finite number, found nan"
    )
    # A table whose fields are another library's is looked through as well.
    (folder / "free.yaml").write_text(
        "tokenizer: {data: corpus.txt}\n"
        "pretrain: {data: corpus.txt, validation: corpus.txt, architecture: {model_type: gpt2, fields: {a: [.inf]}}}\n"
    )
    with pytest.raises(UserError) as error:
        planner.plan(recipe.load("free.yaml", [], LIFECYCLE), Store(Path("store")))
    assert str(error.value).endswith(": inf can't be part of an address; give a finite number")


def adopted_plan(chain, source):
    Path("adopted.yaml").write_text(f"pretrain: {{adopt: {source}}}\nsft: {{}}", encoding="utf-8")
    return planner.plan(recipe.load("adopted.yaml", [], chain), Store(Path("store")))


@pytest.mark.parametrize(
    ("evaluation", "complaint"),
    [
        ("baseline: stf", ".baseline: no candidate is called 'stf'; did you mean 'sft'?"),
        ("continuations: [tsf]", ".continuations: no input is called 'tsf'; did you mean 'sft'?"),
        (
            "judge: {reward_model: true}",
            ".judge: reward_model needs the input `reward`; give it, or name another judge",
        ),
        ("judge: {function: 'judge.py:jugde'}", ": judge.py: has no function 'jugde'; check the name"),
    ],
)
def test_what_a_stage_refuses_by_its_inputs_is_refused_by_the_plan(folder, evaluation, complaint):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "judge.py").write_text("def judge(prompts, answers): ...")
    good = {"prompts": "corpus.txt", "judge": {"village": True}}
    wrong = {**good, **yaml.safe_load(evaluation)}
    again = {"like": "evaluation", **wrong}  # errors name the step, not its stage
    for name, steps in (("evaluation", {"evaluation": wrong}), ("again", {"evaluation": good, "again": again})):
        (folder / "bad.yaml").write_text(yaml.safe_dump({"sft": {"adopt": "model"}, **steps}))
        with pytest.raises(UserError) as error:
            planner.plan(recipe.load("bad.yaml", [], LIFECYCLE), Store(Path("store")))
        assert str(error.value) == f"bad.yaml: {name}{complaint}"


@pytest.mark.parametrize("stage", ["ppo", "rloo", "grpo", "cispo", "reward_model", "dpo", "kto"])
def test_what_a_stage_learns_from_must_be_planned(folder, stage):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "r.py").write_text("def score(prompts, answers): ...")
    online = stage not in ("reward_model", "dpo", "kto")
    field, complaint = (
        ("reward_function", "give either this or the input `reward` (a reward model), not both or none")
        if online
        else ("data", "no rankings; give `data`, or the input `comparisons`")
    )

    def planned(**more):
        table = {"prompts": "corpus.txt", **more} if online else more
        (folder / "one.yaml").write_text(yaml.safe_dump({"sft": {"adopt": "model"}, stage: table}))
        return planner.plan(recipe.load("one.yaml", [], LIFECYCLE), Store(Path("store")))

    with pytest.raises(UserError) as error:
        planned()
    assert str(error.value) == f"one.yaml: {stage}.{field}: {complaint}"
    assert planned(**{field: "r.py:score" if online else "corpus.txt"})[-1].name == stage


def test_a_base_models_worked_examples_may_be_the_baseline(folder):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    text = "pretrain: {adopt: model}\nevaluation: {prompts: corpus.txt, judge: {village: true}, baseline: base_prompted"
    (folder / "good.yaml").write_text(text + ", shots: corpus.txt}")
    planner.plan(recipe.load("good.yaml", [], LIFECYCLE), Store(Path("store")))
    (folder / "bad.yaml").write_text(text + "}")
    with pytest.raises(UserError, match="no candidate is called 'base_prompted'"):
        planner.plan(recipe.load("bad.yaml", [], LIFECYCLE), Store(Path("store")))


def test_an_adopted_directory_is_its_files_and_stays_where_it_is(chain, folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}", encoding="utf-8")
    first, second = adopted_plan(chain, "a"), adopted_plan(chain, "b")
    assert first[0].path == folder / "a"
    assert first[0].state == "done"
    assert first[1].inputs["base"].path == folder / "a"
    assert [p.address for p in first] == [p.address for p in second]
    (folder / "b" / ".git").mkdir()
    (folder / "b" / ".git" / "index").write_text("x", encoding="utf-8")
    assert [p.address for p in adopted_plan(chain, "b")] == [p.address for p in first]
    (folder / "b" / "config.json").write_text("[]", encoding="utf-8")
    third = adopted_plan(chain, "b")
    assert third[0].address != first[0].address
    assert third[1].address != first[1].address


def test_an_adopted_hub_model_is_its_id_and_revision(chain, folder):
    first, second = adopted_plan(chain, "gpt2@v1"), adopted_plan(chain, "gpt2@v2")
    assert first[0].state == "to do"
    assert first[0].path == folder / "store" / first[0].address
    text = '{"adopt":{"hub":"gpt2","revision":"v1"}}'
    assert first[0].address == "pretrain-" + hashlib.sha256(text.encode()).hexdigest()[:12]
    assert second[1].address != first[1].address


def test_states_are_read_from_the_disk(chain, folder):
    first = planner.plan(recipe.load("toy.yaml", [], chain), Store(Path("store")))[0]
    assert first.state == "to do"
    first.path.with_name(first.path.name + ".partial").mkdir(parents=True)
    assert first.state == "partial"
    first.path.mkdir()
    assert first.state == "partial"  # a directory without a manifest is no output
    (first.path / "manifest.json").write_text("{}", encoding="utf-8")
    assert first.state == "done"


HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate", "numpy", "huggingface_hub")


@pytest.mark.parametrize(
    ("module", "recipe_name"), [("toy_chain", "toy.yaml"), ("gptlife.pipelines.cli", "quickstart")]
)
def test_planning_imports_nothing_heavy(chain, folder, module, recipe_name):
    code = (
        f"import sys, runpy; sys.argv = ['gptlife', 'plan', '{recipe_name}']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as error: assert not error.code, error\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.stdout.splitlines()[0].split() == ["step", "address", "state", "launcher"], done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"
