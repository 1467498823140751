"""Recipes: what is read, and the literal line for everything that is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.errors import UserError
from gptlife.pipelines import recipe as recipes


def load(chain: Any, text: str, *overrides: str) -> dict[str, recipes.Table]:
    Path("mine.yaml").write_text(text, encoding="utf-8")
    loaded = recipes.load("mine.yaml", list(overrides), chain)
    assert loaded.name == "mine"
    return {table.step.name: table for table in loaded.tables}


def test_a_step_without_a_table_or_with_null_is_left_out(chain, folder):
    assert list(load(chain, "pretrain: null\ntokenizer: {}\nsft:\n")) == ["tokenizer"]


def test_tables_come_in_lifecycle_order(chain, folder):
    assert list(load(chain, "sft: {}\npretrain: {}\ntokenizer: {}")) == ["tokenizer", "pretrain", "sft"]


def test_seed_is_the_default_of_every_stage_that_sets_none(chain, folder):
    tables = load(chain, "seed: 5\ntokenizer: {}\npretrain: {seed: 7}")
    assert tables["tokenizer"].config.seed == 5
    assert tables["pretrain"].config.seed == 7
    assert load(chain, "seed: 5\ntokenizer: {}", "seed=3")["tokenizer"].config.seed == 3
    assert load(chain, "tokenizer: {}")["tokenizer"].config.seed == 0


def test_overrides_set_fields_leave_steps_out_and_bring_them_in(chain, folder):
    text = "tokenizer: {learning_rate: 1.0}\npretrain: {}"
    tables = load(chain, text, "tokenizer.learning_rate=1e-4", "pretrain=null", "sft.micro_batch=2")
    assert list(tables) == ["tokenizer", "sft"]
    assert tables["tokenizer"].config.learning_rate == 0.0001
    assert tables["sft"].config.micro_batch == 2


def test_variables_are_put_into_strings_and_keep_their_type_when_alone(chain, folder):
    text = "vars: {dir: here, rate: 0.5, n: 2}\ntokenizer: {data: '${dir}/x${n}.txt', learning_rate: '${rate}'}"
    config = load(chain, text)["tokenizer"].config
    assert config.learning_rate == 0.5
    assert config.data[0].path == "here/x2.txt"
    assert load(chain, text, "vars.dir=/else")["tokenizer"].config.data[0].path == "/else/x2.txt"


def test_launchers_are_words_and_a_steps_own_comes_first(chain, folder):
    text = (
        "launcher: accelerate launch --config_file 'my file.yaml'\ntokenizer: {launcher: null}\n"
        "pretrain: {}\nsft: {launcher: [torchrun, --nproc_per_node, '2']}"
    )
    tables = load(chain, text)
    assert tables["tokenizer"].launcher == ()
    assert tables["pretrain"].launcher == ("accelerate", "launch", "--config_file", "my file.yaml")
    assert tables["sft"].launcher == ("torchrun", "--nproc_per_node", "2")


def test_adopt_takes_a_directory_or_a_hub_id_with_revision(chain, folder):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    local = load(chain, "pretrain: {adopt: model}")["pretrain"]
    assert local.config is None
    assert local.adopted == recipes.Adopted(directory=folder / "model")
    hub = load(chain, "pretrain: {adopt: openai-community/gpt2@v1.0}")["pretrain"].adopted
    assert hub == recipes.Adopted(hub="openai-community/gpt2", revision="v1.0")
    assert str(hub) == "openai-community/gpt2@v1.0"


REFUSED = [
    ("pretrian: {}", "bad.yaml: pretrian: no such step or setting; did you mean 'pretrain'?"),
    ("sed: 3", "bad.yaml: sed: no such step or setting; did you mean 'seed'?"),
    (
        "sft: {learning_rat: 1.0}",
        "bad.yaml: sft.learning_rat: no such field; did you mean 'learning_rate'?",
    ),
    (
        "sft: {learning_rate: high}",
        "bad.yaml: sft.learning_rate: input should be a valid number, found 'high'",
    ),
    ("sft: 3", "bad.yaml: sft: expected a table of fields, found 3"),
    (
        "seed: 3",
        "bad.yaml: no step has a table; add at least one of: tokenizer, pretrain, sft, comparisons, reward_model",
    ),
    ("seed: 1.5\nsft: {}", "bad.yaml: seed: expected a whole number, found 1.5"),
    ("seed: true\nsft: {}", "bad.yaml: seed: expected a whole number, found True"),
    ("vars: 3\nsft: {}", "bad.yaml: vars: expected a table of names and values, found 3"),
    (
        "vars: {data: x}\ntokenizer: {data: '${dta}/y'}",
        "bad.yaml: tokenizer.data: no variable 'dta'; did you mean 'data'?",
    ),
    (
        "tokenizer: {data: ['${data}']}",
        "bad.yaml: tokenizer.data[0]: no variable 'data'; define it under `vars`",
    ),
    (
        "vars: {data: null}\ntokenizer: {data: '${data}'}",
        "bad.yaml: tokenizer.data: variable 'data' has no value yet; give it, as in vars.data=...",
    ),
    ('launcher: "a \'b"\nsft: {}', 'bad.yaml: launcher: no closing quotation, found "a \'b"; fix the quotes'),
    (
        "sft: {launcher: 3}",
        "bad.yaml: sft.launcher: expected a command's words, found 3; write it as one string",
    ),
    (
        "pretrain: {adopt: gpt2@v1, seed: 3}",
        "bad.yaml: pretrain: 'adopt' replaces all fields, found 'seed' besides it; "
        "remove them (as an override: pretrain={adopt: ...})",
    ),
    (
        "pretrain: {adopt: openai-community/gpt2}",
        "bad.yaml: pretrain.adopt: openai-community/gpt2 is not a directory, and as a hub id it needs a revision; "
        "give openai-community/gpt2@<commit of 40 hex digits, or tag>",
    ),
    (
        "pretrain: {adopt: gpt2@main}",
        "bad.yaml: pretrain.adopt: gpt2@main: 'main' is a branch, whose content changes; "
        "give gpt2@<commit of 40 hex digits, or tag>",
    ),
    (
        "pretrain: {adopt: ./nowhere}",
        "bad.yaml: pretrain.adopt: ./nowhere: no such directory; give a directory or <hub id>@<revision>",
    ),
    (
        "pretrain: {adopt: empty}",
        "bad.yaml: pretrain.adopt: empty is an empty directory; give the directory of a saved model",
    ),
    (
        "pretrain: {adopt: 3}",
        "bad.yaml: pretrain.adopt: expected a directory or <hub id>@<revision>, found 3",
    ),
    ("sft: {}\nsft: {}", "bad.yaml:2: 'sft' is given twice; fix the YAML there"),
    ("{[a]: 1}", "bad.yaml:1: list can't be a name; fix the YAML there"),
    ("a: &a [*a]", "bad.yaml: nested too deeply, or an alias contains itself; simplify it"),
    ("[" * 3000 + "]" * 3000, "bad.yaml: nested too deeply, or an alias contains itself; simplify it"),
    (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{y}: &{y} [{','.join([f'*{x}'] * 10)}]\n" for x, y in itertools.pairwise("abcdefg")),
        "bad.yaml: more than 1,000,000 values with its aliases expanded; write it without them",
    ),
    ("seed: 2020-13-45", "bad.yaml: a value can't be read (month must be in 1..12); put it in quotes"),
    (
        '"sft\\nx\\e[31m": {}',
        "bad.yaml: sft\\nx\\x1b[31m: no such step or setting; there are: "
        "tokenizer, pretrain, sft, comparisons, reward_model, seed, trust_remote_code, deterministic, vars, launcher",
    ),
]


@pytest.mark.parametrize(("text", "line"), REFUSED, ids=[line[10:40] for _, line in REFUSED])
def test_every_refusal_is_one_line_with_place_and_next_act(refusal, folder, text, line):
    (folder / "empty").mkdir()
    assert refusal(text) == line


def test_an_override_of_an_unknown_variable_is_refused(refusal):
    text = "vars: {data: corpus.txt}\ntokenizer: {data: '${data}'}"
    assert refusal(text, "vars.dta=/x") == "vars.dta=/x: the recipe has no variable 'dta'; did you mean 'data'?"
    assert refusal("tokenizer: {}", "vars.a=1") == "vars.a=1: the recipe has no variable 'a'"


def test_an_unknown_name_is_no_recipe(chain, folder):
    with pytest.raises(UserError, match=r"^quikstart: not a shipped recipe \(a file's name ends in \.yaml\); "):
        recipes.load("quikstart", [], chain)
    with pytest.raises(UserError, match=r"^none\.yaml: no such file; give the path of a YAML file$"):
        recipes.load("none.yaml", [], chain)


def test_shipped_recipes_show_the_first_line_of_their_header(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text("# Tiny: two minutes\n# more\nsft: {}\n", encoding="utf-8")
    (tmp_path / "bare.yaml").write_text("sft: {}\n", encoding="utf-8")
    (tmp_path / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(recipes.resources, "files", lambda package: tmp_path)
    assert recipes.shipped() == {"bare": "", "tiny": "Tiny: two minutes"}
