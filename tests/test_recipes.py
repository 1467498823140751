"""The shipped recipes: they decode, plan, and say in their header what they need and give."""

from __future__ import annotations

import gzip
import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

from gptlife.data.config import walk_configs
from gptlife.data.errors import UserError
from gptlife.data.sources import Source
from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.planner import Planned, plan
from gptlife.pipelines.recipe import Recipe, load, shipped
from gptlife.pipelines.store import Store

NAMES = sorted(shipped())
ALL = [step.name for step in LIFECYCLE]
LIFE = {"tokenizer", "pretrain", "sft", "comparisons", "reward_model", "ppo", "best_of_n", "evaluation"}
STAGES_OF = {
    "quickstart": LIFE,
    "rounds": LIFE,
    "instructgpt-village": LIFE | {"rloo", "dpo"},
    "rivals": LIFE | {"rloo", "grpo", "dpo", "kto"},
    "smoke": LIFE,
    "real-small": LIFE - {"comparisons"},
    "gpt2-small": LIFE - {"comparisons", "best_of_n"},
    "align-existing": LIFE - {"tokenizer", "comparisons", "best_of_n"},
}
"""The lifecycle's steps that a recipe has: those with preferences of their own need no `comparisons`."""
STANDALONE = {"quickstart", "smoke", "real-small", "gpt2-small", "align-existing"}
"""The others begin as the quickstart does, and share its outputs."""

FILES = (
    "pretrain/small_train.jsonl.gz",
    "pretrain/small_val.jsonl.gz",
    "instruct/alpaca_18k.jsonl.gz",
    "instruct/self_instruct_seed_tasks.jsonl",
    "preference/alpaca_eval_gpt4_train.jsonl.gz",
    "preference/alpaca_eval_gpt4_test.jsonl.gz",
    "demonstrations.jsonl",
    "preferences.jsonl",
    "prompts.jsonl",
)
"""What the recipes read under vars.data."""


def text_of(name: str) -> str:
    return resources.files("gptlife.pipelines.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def header_of(name: str) -> str:
    lines = text_of(name).splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The recipes' data files, one row each, and a directory to adopt."""
    for number, name in enumerate(FILES):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = (json.dumps({"text": f"row {number}"}) + "\n").encode()
        path.write_bytes(gzip.compress(row) if name.endswith(".gz") else row)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def loaded(name: str, folder: Path, *more: str) -> Recipe:
    overrides = [f"vars.data={folder / 'data'}"] if "${data}" in text_of(name) else []
    if name == "align-existing":
        overrides.append(f"pretrain.adopt={folder / 'model'}")
    return load(name, [*overrides, *more], LIFECYCLE)


def planned(name: str, folder: Path, *more: str) -> list[Planned]:
    return plan(loaded(name, folder, *more), Store(folder / "store"))


def test_these_are_shipped() -> None:
    assert set(NAMES) == set(STAGES_OF)


@pytest.mark.parametrize("name", NAMES)
def test_plans_every_step_at_an_address_of_its_own(name: str, folder: Path) -> None:
    steps = planned(name, folder)
    names = [step.name for step in steps]
    assert {step for step in names if step in ALL} == STAGES_OF[name]
    for step in steps:
        assert all(names.index(upstream.name) < names.index(step.name) for upstream in step.inputs.values())
    addresses = [step.address for step in steps]
    assert len(set(addresses)) == len(addresses)
    assert all(step.state == ("done" if step.external else "to do") for step in steps)


def test_no_two_recipes_share_an_address(folder: Path) -> None:
    addresses = [step.address for name in sorted(STANDALONE) for step in planned(name, folder)]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_moves_every_step_that_is_computed(name: str, folder: Path) -> None:
    """And a plan made twice is the same (else the first assertion could not fail)."""
    first, again, other = (planned(name, folder, *more) for more in ((), (), ("seed=1",)))
    assert [step.address for step in first] == [step.address for step in again]
    for before, after in zip(first, other, strict=True):
        assert (before.address == after.address) == before.external


@pytest.mark.parametrize("name", [name for name in NAMES if "${data}" in text_of(name)])
def test_missing_data_is_found_before_anything_runs(name: str, folder: Path) -> None:
    shutil.rmtree(folder / "data")
    with pytest.raises(UserError, match=r"no such file; correct the path|no file matches this pattern"):
        planned(name, folder)


@pytest.mark.parametrize("name", NAMES)
def test_header_tells_hardware_data_and_what_to_expect(name: str) -> None:
    header = header_of(name)
    assert header.splitlines()[0].endswith(".")
    for word in ("Hardware:", "Data:", "Expect:"):
        assert word in header, f"{name}.yaml: the header says nothing about {word.lower()}"


@pytest.mark.parametrize("name", ["quickstart", "smoke"])
def test_the_village_recipes_hold_their_test_prompts_out(name: str, folder: Path) -> None:
    """Evaluation reads the test split, and no stage before it does."""
    for table in loaded(name, folder).tables:
        splits = {
            config.village.split
            for config in walk_configs(table.config)
            if isinstance(config, Source) and config.village is not None and config.village.part != "web"
        }
        assert ("test" in splits) == (table.step.name in ("evaluation", "best_of_n"))
