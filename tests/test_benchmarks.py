"""What the results pages compute, by hand; and that the recipe has every step that they read."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.recipe import load

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmark("lives")`: a module of the folder, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def life(a: list[float], b: list[float]) -> dict[str, Any]:
    rows = [{"answers": {"a": {"score": x}, "b": {"score": y}}} for x, y in zip(a, b, strict=True)]
    return {"evaluation": SimpleNamespace(answers=rows)}


def test_a_prompt_counts_once_however_many_seeds(benchmark: Any) -> None:
    lives = benchmark("lives")
    found = {0: life([1, 0, 0.5, 1], [0, 1, 0.5, 0]), 1: life([1, 1, 0.5, 0], [0, 0, 0.5, 1])}
    cell = lives.preference(found, "evaluation", "a", "b")
    # Seed 0: 1, 0, .5, 1; seed 1: 1, 1, .5, 0; so prompts have 1, .5, .5, .5.
    assert cell.mean == 0.625
    assert cell.seeds == (0.625, 0.625)
    assert 0.5 <= cell.low < 0.625 < cell.high <= 1.0
    mirrored = lives.preference(found, "evaluation", "b", "a")
    assert mirrored.mean == 0.375


def test_seeds_are_told_with_their_range(benchmark: Any) -> None:
    lives = benchmark("lives")
    assert lives.spread([0.5, 0.75, 0.25], 2) == "0.50 (0.25–0.75)"
    assert lives.spread([0.5], 1, 100) == "50.0"
    assert lives.table(["", "x"], [["a", "1"]]) == "|  | x |\n| --- | --: |\n| a | 1 |"


def test_a_trace_is_recentred_to_its_first_step(benchmark: Any) -> None:
    tables = benchmark("village_tables")
    log = [
        {"kl": 0.0, "gold": 0.5, "score": -0.25},
        {"kl": 4.0, "gold": 0.75, "score": 0.75},
        {"kl": 9.0, "gold": 0.25, "score": 1.75},
    ]
    assert tables.trace(SimpleNamespace(log=log)) == ([2.0, 3.0], [0.25, -0.25], [1.0, 2.0])


def test_the_recipe_has_every_step_that_the_page_reads(benchmark: Any) -> None:
    tables = benchmark("village_tables")
    steps = {table.step.name: table.step for table in load("instructgpt-village", [], LIFECYCLE).tables}
    assert {*tables.BETAS, *tables.GAMMAS, *tables.REWARDS, *tables.RUNS, "ensemble_1200", "sweeps"} <= {*steps}
    answering = {*steps["evaluation"].inputs}
    wanted = {tables.model(kind, size) for kind in tables.KINDS for size in tables.SIZES}
    assert {name.removesuffix("_prompted") for name in wanted} | {"ppo_2", "rloo", "dpo", "best_of_n"} <= answering
    assert {*tables.BETAS, *tables.GAMMAS, "sft"} <= {*steps["sweeps"].inputs}
    assert "ppo_9" not in answering
