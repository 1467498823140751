"""The tables of an evaluation, counted by hand."""

from __future__ import annotations

import pytest

from gptlife.stages.evals import tables


def test_verdicts_are_means_with_intervals() -> None:
    verdicts = [{"score": 0.5, "rude": 1.0, "true": 1.0}, {"score": 1.0, "rude": 0.0, "true": 1.0}]
    table = tables.described(["one", "two words"], verdicts)
    assert (table["words"], table["score"]["mean"]) == (1.5, 0.75)
    assert (table["verdicts"]["rude"]["mean"], table["verdicts"]["true"]["low"]) == (0.5, 1.0)
    assert tables.described(["one", "two words"], None) == {"words": 1.5}
    assert "verdicts" not in tables.described(["one"], [{"score": 0.5}])


def test_a_verdict_counts_where_it_is_defined() -> None:
    verdicts = [
        {"score": 0.0, "truthful": 1.0, "truthful_informative": 1.0},
        {"score": 0.0, "truthful": 1.0, "truthful_informative": 0.0},
        {"score": 0.0, "truthful": 0.0, "truthful_informative": 0.0},
        {"score": 0.0, "hallucination": 1.0},
        {"score": 0.0, "hallucination": 0.0, "rude": 1.0},
        {"score": 0.0},
    ]
    honesty = tables.honesty(verdicts)
    assert list(honesty) == ["truthful", "truthful_informative", "hallucination"]
    assert (honesty["truthful"]["mean"], honesty["truthful"]["n"]) == (pytest.approx(2 / 3), 3)
    assert honesty["truthful_informative"]["mean"] == pytest.approx(1 / 3)
    assert (honesty["hallucination"]["mean"], honesty["hallucination"]["n"]) == (0.5, 2)
    assert tables.honesty([{"score": 1.0, "rude": 1.0}]) == {}
    table = tables.described(["text"] * 6, verdicts)["verdicts"]
    assert {name: (mean["mean"], mean["n"]) for name, mean in table.items()} == {"score": (0.0, 6), "rude": (1.0, 1)}


def test_an_llm_is_asked_about_pairs_with_the_baseline_only() -> None:
    three = {name: ["one", "two words"] for name in ("a", "b", "c")}
    asked = []

    def prefer(a: str, b: str) -> list[float]:
        asked.append((a, b))
        return [1.0, 0.5]

    table = tables.win_rates(three, prefer, "b", only_baseline=True)
    assert asked == [("a", "b"), ("c", "b")]
    assert [row["rate"] for row in table] == [0.75, 0.75]
    asked.clear()
    tables.win_rates(three, prefer, "b", only_baseline=False)
    assert asked == [("b", "a"), ("c", "a"), ("c", "b"), ("a", "b")]


def test_groups_come_from_the_prompts() -> None:
    rows = [{"meta": {"topic": topic}} for topic in ("b", "a", "a", 3)] + [{"meta": {}}, {}]
    scores = {"x": [1.0, 2.0, 4.0, 5.0, 9.0, 9.0], "y": [0.0] * 6}
    assert tables.by_group(rows, scores, "topic") == {
        "a": {"prompts": 2, "x": 3.0, "y": 0.0},
        "b": {"prompts": 1, "x": 1.0, "y": 0.0},
        "3": {"prompts": 1, "x": 5.0, "y": 0.0},
    }
    assert next(iter(tables.by_group(rows, scores, "topic"))) == "a"  # the largest
    assert tables.by_group(rows, scores, "use_case") == {}


def test_tasks_are_tabled_by_task() -> None:
    given = {"sft": {"one": {"accuracy": 0.5}, "two": {}}, "ppo": {"one": {"accuracy": 0.25}}, "best_of_n": {}}
    assert tables.tasks_table(given) == {
        "one": {"sft": {"accuracy": 0.5}, "ppo": {"accuracy": 0.25}},
        "two": {"sft": {}},
    }
