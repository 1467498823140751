"""What the results pages compute, by hand; and that the recipe has every step that they read."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptlife.pipelines.lifecycle import LIFECYCLE
from gptlife.pipelines.recipe import load
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.files import write_json

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmark("lives")`: a module of the folder, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def life(folder: Path, a: list[float], b: list[float]) -> dict[str, Any]:
    rows = [{"answers": {"a": {"score": x}, "b": {"score": y}}} for x, y in zip(a, b, strict=True)]
    folder.mkdir()
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"evaluation": SimpleNamespace(step=SimpleNamespace(path=folder))}


def test_a_prompt_counts_once_however_many_seeds(benchmark: Any, tmp_path: Path) -> None:
    lives = benchmark("lives")
    one, two = (
        life(tmp_path / "0", [1, 0, 0.5, 1], [0, 1, 0.5, 0]),
        life(tmp_path / "1", [1, 1, 0.5, 0], [0, 0, 0.5, 1]),
    )
    found = {0: one, 1: two}
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


def test_a_row_of_the_table_by_hand(benchmark: Any) -> None:
    """Gold is d (1 - d) exactly, at d = .2 to .8: alpha 1, beta 1, peak at .5 with .25."""
    tables = benchmark("village_overoptimisation")
    gold = [(0.0, 0.0), *((d / 10, d / 10 * (1 - d / 10)) for d in range(2, 9))]
    fit, predicted = {"alpha": 1.0, "beta": 1.0, "r2": 1.0}, {"predicted_d": 0.5, "found_d": 0.5, "found_reward": 0.25}
    curve = tables.Curve("best_of_n", "reward", "best_of_n", gold, gold, {}, fit, predicted)
    row = tables._row([curve])
    assert row[:3] + row[4:] == ["1.00", "1.00", "1.00", "0.50", "0.50", "0.250", "0.160"]
    assert float(row[3]) < 0.95  # the other form does not fit
    none = tables.Curve("best_of_n", "reward", "best_of_n", gold, gold, {}, fit, {**predicted, "predicted_d": None})
    assert tables._row([curve, none])[4] == "0.50, 1 without one"


def test_the_recipe_has_every_step_that_the_page_reads(benchmark: Any) -> None:
    tables, curves = benchmark("village_tables"), benchmark("village_overoptimisation")
    steps = {table.step.name: table.step for table in load("instructgpt-village", [], LIFECYCLE).tables}
    assert {*tables.BETAS, *tables.GAMMAS, *tables.REWARDS, *curves.RUNS, *curves.CHOSEN_BY, "sweeps"} <= {*steps}
    answering = {*steps["evaluation"].inputs}
    wanted = {tables.model(kind, size) for kind in tables.KINDS for size in tables.SIZES}
    assert {name.removesuffix("_prompted") for name in wanted} | {"ppo_2", "rloo", "dpo", "best_of_n"} <= answering
    assert {*tables.BETAS, *tables.GAMMAS, "sft"} <= {*steps["sweeps"].inputs}
    assert "ppo_9" not in answering


def test_a_life_is_kept_without_its_store(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives, store, kept = benchmark("lives"), tmp_path / "store", tmp_path / "kept"
    kept.mkdir()
    for step in lives.planned("smoke", 4, store):
        partial = artifact.begin(step.path, {})
        write_json(partial / "metrics.json", {"name": step.name})
        (partial / "model.safetensors").write_bytes(b"heavy")
        (partial / "answers.jsonl").write_text('{"answers": {}}\n', encoding="utf-8")
        artifact.commit(partial, step.path, {"seconds": 2.5, "host": "mine"})
    lived = lives.lives("smoke", store, [4], kept=kept)[4]
    shutil.rmtree(store)

    def asked_for(words: list[str], check: bool) -> None:
        raise RuntimeError(" ".join(words[3:]))

    monkeypatch.setattr(lives.subprocess, "run", asked_for)
    again = lives.lives("smoke", store, [4], kept=kept)[4]
    assert {name: record.metrics for name, record in again.items()} == {name: {"name": name} for name in lived}
    assert {record.manifest["seconds"] for record in again.values()} == {2.5}
    assert not any("host" in record.manifest for record in again.values())
    assert not any(record.problems for record in again.values())
    assert lives.answers(again["evaluation"].step.path) == [{"answers": {}}]
    assert not list(again["ppo"].step.path.glob("*.safetensors"))
    # Another life, by its seed or by a change of the recipe, is not taken for this one.
    (kept / "seed-5.tar.xz").write_bytes((kept / "seed-4.tar.xz").read_bytes())
    with pytest.raises(RuntimeError, match="run smoke seed=5 --store"):
        lives.lives("smoke", store, [4, 5], kept=kept)
    with pytest.raises(RuntimeError, match="sweep smoke seed=5,6 --store"):
        lives.lives("smoke", store, [4, 5, 6], kept=kept)


def test_ranks_by_the_truth(benchmark: Any) -> None:
    """An answer within .06 of a rank's best shares it."""
    assert benchmark("reward_limits").by_truth([0.5, 0.9, 0.85, 0.0, 0.4]) == [2, 1, 1, 4, 3]
    assert benchmark("reward_limits").by_truth([0.2, 0.2]) == [1, 1]
    # Chains don't grow: .80 ties with .85, and .75 no longer does.
    assert benchmark("reward_limits").by_truth([0.85, 0.8, 0.75]) == [1, 1, 2]


def point(name: str, kl: float, gold: list[float]) -> dict[str, Any]:
    rows = len(gold)
    return {"name": name, "kl": [kl] * rows, "gold": gold, "proxy": [0.0] * rows, "tokens": [10.0] * rows}


def rivals_of_a_seed(page: Any) -> dict[str, Any]:
    """SFT at gold 0 and 1 on two prompts; every method at KL 1 and, chosen, at KL 2."""
    curves = {method: [point("step 6", 1, [0.5, 1]), point("chosen", 2, [0.75, 0.5])] for method in page.METHODS}
    curves["plain"] = [point("step 6", 0.5, [0, 1]), point("chosen", 0.75, [1, 1])]
    curves["best_of_n"][1]["sampled"] = [40.0, 40.0]
    sampled = dict.fromkeys(page.METHODS, 2000.0)
    losses = dict.fromkeys(["sft", *page.METHODS], 0.5)
    curves["sft"] = [point("", 0, [0, 1])]
    return {"curves": curves, "pretraining_loss": losses, "sampled": sampled, "labelled": 3000}


def test_a_score_at_a_given_kl_lies_between_its_neighbours(benchmark: Any) -> None:
    page = benchmark("rivals_page")
    points = page.curve(rivals_of_a_seed(page), "ppo")
    assert [kl for kl, _ in points] == [0.0, 1.0, 2.0]
    assert page.at_kl(points, 0.5).tolist() == [0.25, 1.0]
    assert page.at_kl(points, 1.75).tolist() == [0.6875, 0.625]
    assert page.at_kl(points, 2.5) is None


def test_the_rivals_page_by_hand(benchmark: Any, tmp_path: Path) -> None:
    page = benchmark("rivals_page")
    found = {0: rivals_of_a_seed(page), 1: rivals_of_a_seed(page)}
    row = {"setting": {"kl_coef": 0.1}, "sampled": 500.0, "kl": 1.0, "proxy": 0.0}
    row |= {"gold": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    tuned = {method: {"rows": [row] * 4, "best": {"kl_coef": 0.1}} for method in page.METHODS}
    text = page.page(found, tuned, "rivals", "")
    # PPO: 1 and 1 on the two prompts, PPO-ptx: .75 and .5.
    assert "| PPO | 0.375 [0.250, 0.500] | 0.375 [0.250, 0.500] | 0.375 [0.250, 0.500] |" in text
    # At KL .25 and .5 PPO is at (0, 1); best of n is on its way from (0, 1) to (.5, 1). PPO never reaches KL 1.
    assert "| PPO | -0.062 [-0.125, 0.000] | -0.125 [-0.250, 0.000] | – | – |" in text
    assert "| best of n | 3 (3–3) | 2 (2–2) | 2 | 40.0 (40.0–40.0) |" in text
    assert "| **PPO** | **kl_coef 0.1** | **0.500 [0.400, 0.600]** | **1.00** | **0.00** |" in text
    page.figure(found, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_every_rival_has_as_many_settings_and_the_recipe_has_them(benchmark: Any, tmp_path: Path) -> None:
    rivals, page = benchmark("rivals"), benchmark("rivals_page")
    assert set(rivals.GRID["grid"]) == set(page.METHODS)
    assert {len(list(rivals.settings(method))) for method in page.METHODS} == {4}
    life = rivals.planned(rivals.Store(tmp_path), 0)
    assert {*page.METHODS, "sft"} <= {*life["evaluation"].inputs}
    tuned = json.loads((FOLDER.parent / "docs/results/rivals/tuning.json").read_text(encoding="utf-8"))
    rivals.refuse_other_settings(tuned, life)
    tuned["kto"]["best"]["beta"] = 7.5
    with pytest.raises(SystemExit, match=r"rivals.yaml: kto.beta is [0-9.]+; tuning chose 7.5: write it there"):
        rivals.refuse_other_settings(tuned, life)


def test_an_answers_log_probability_is_summed_over_its_tokens(benchmark: Any) -> None:
    """The sums of log-probabilities are a brute-force loop's."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    measure = benchmark("rivals_measure")
    torch.manual_seed(0)
    fields = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**fields, intermediate_size=32)).eval()
    rows, starts = [[5, 6, 7, 8], [9, 10, 11], [3, 4, 2, 1, 7]], [2, 1, 4]
    with torch.no_grad():
        wanted = []
        for row, start in zip(rows, starts, strict=True):
            logprobs = model(torch.tensor([row])).logits[0].log_softmax(-1)
            wanted.append(sum(float(logprobs[at - 1, row[at]]) for at in range(start, len(row))))
        encoded = [measure.Encoded.prompt(row[:at]).followed_by(row[at:]) for row, at in zip(rows, starts, strict=True)]
        assert measure._sums(measure.SelectedLogits(model), encoded) == pytest.approx(wanted, abs=1e-4)
        assert measure._sums(
            measure.SelectedLogits(model), [measure.Encoded.prompt(row[:1]).followed_by(row[1:]) for row in rows]
        ) != pytest.approx(wanted, abs=1e-2)
