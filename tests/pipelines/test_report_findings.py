"""What the report finds in metrics, by hand-made metrics: names, sizes, win rates, tax, curves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gptlife.pipelines.report import figures_overoptimisation, findings_evaluation, findings_reward, findings_tax
from gptlife.pipelines.report.findings_evaluation import answerers
from gptlife.pipelines.report.findings_overoptimisation import Curve, by_reward, fitted


def named(models: dict[str, str | None], sizes: dict[str, int] | None = None) -> dict[str, str]:
    """Label by name, of models with these algorithms."""
    given = {name: {"algorithm": kind, "parameters": (sizes or {}).get(name)} for name, kind in models.items()}
    return {name: each.label for name, each in answerers(given, {}).items()}


def test_labels_are_kind_and_rest_of_the_name():
    models = {"base": None, "base_prompted": None, "base_small": None, "base_small_prompted": None, "sft_small": "SFT"}
    models |= {"plain": "PPO", "plain_b0": "PPO", "ppo": "PPO-ptx", "ppo_2": "PPO-ptx", "dpo": None, "best_of_n": None}
    models |= {"mine": None, "my_run": "RLOO"}
    assert list(named(models).values()) == [
        *("base", "base, prompted", "base, small", "base, prompted, small", "SFT, small"),
        *("PPO", "PPO, b0", "PPO-ptx", "PPO-ptx, 2", "DPO", "best of n"),
        *("mine", "RLOO, my run"),
    ]


def test_no_two_have_one_label():
    assert named({"plain": "PPO", "ppo": "PPO"}) == {"plain": "PPO", "ppo": "PPO (ppo)"}
    assert named({"plain": "PPO", "ppo": "PPO-ptx"}) == {"plain": "PPO", "ppo": "PPO-ptx"}


def test_what_made_an_answerer_goes_before_what_evaluation_wrote():
    found = answerers({"best_of_n": {"algorithm": "best of n"}}, {"best_of_n": "best of 16"})
    assert found["best_of_n"].label == "best of 16"
    assert answerers({"base": {}}, {"base": "SFT"})["base"].label == "base"  # asked as a base model, whatever made it


def who(**parameters: int | None) -> dict[str, Any]:
    """Answerers of these sizes."""
    return answerers({name: {"parameters": count} for name, count in parameters.items()}, {})


def test_alike_counts_are_one_size():
    found = who(base=1000, sft=1050, ppo=1200, best_of_n=None)
    assert {name: each.size for name, each in found.items()} == {
        "base": 1000,
        "sft": 1000,
        "ppo": 1200,
        "best_of_n": None,
    }
    assert not findings_evaluation.sized(who(base=1000, sft=1050, best_of_n=None))
    assert findings_evaluation.sized(found)


def rate(a: str, b: str, value: float) -> dict[str, Any]:
    return {"a": a, "b": b, "rate": value, "low": value - 0.1, "high": value + 0.05, "wins": 7, "ties": 1, "losses": 2}


def test_a_win_rate_is_read_either_way_round():
    rows = [{**rate("ppo", "sft", 0.7), "length_controlled": {"rate": 0.6, "low": 0.5, "high": 0.8}}]
    assert findings_evaluation.rate(rows, "ppo", "sft") == rows[0]
    turned = findings_evaluation.rate(rows, "sft", "ppo")
    assert turned is not None
    assert [turned[key] for key in ("rate", "low", "high")] == pytest.approx([0.3, 0.25, 0.4])
    assert (turned["wins"], turned["ties"], turned["losses"]) == (2, 1, 7)
    assert turned["length_controlled"] == pytest.approx({"rate": 0.4, "low": 0.2, "high": 0.5})
    assert findings_evaluation.rate(rows, "ppo", "base") is None


def test_figure_one_has_a_line_a_kind_and_a_second_round_apart():
    sizes = who(sft_small=10, sft=20, ppo_small=10, ppo=20, ppo_2=20, best_of_n=None)
    rows = [rate(name, "sft", value) for name, value in (("sft_small", 0.3), ("ppo_small", 0.4), ("ppo", 0.6))]
    rows += [rate("ppo_2", "sft", 0.65), rate("best_of_n", "sft", 0.55)]
    found = {
        line["name"]: [(p["parameters"], p["rate"]) for p in line["points"]]
        for line in findings_evaluation.curves_by_size(rows, sizes, "sft")
    }
    assert found == {"SFT": [(10, 0.3), (20, 0.5)], "PPO": [(10, 0.4), (20, 0.6)], "PPO, 2": [(20, 0.65)]}


def test_beside_the_paper_stand_pairs_of_a_size_and_the_smallest_over_the_largest():
    sizes = who(base_small=10, base=99, ppo_small=10, ppo=99)
    rows = [rate("ppo_small", "base_small", 0.8), rate("ppo", "base", 0.9), rate("base", "ppo_small", 0.4)]
    found = [
        (row["a"], row["b"], round(row["rate"], 3), row["paper"])
        for row in findings_evaluation.paper_pairs(rows, sizes)
    ]
    assert found == [
        ("ppo_small", "base_small", 0.8, "85 ± 3 (175B)"),
        ("ppo", "base", 0.9, "85 ± 3 (175B)"),
        ("ppo_small", "base", 0.6, "preferred (1.3B over 175B)"),
    ]


def test_honesty_in_a_sentence():
    def table(informative: float, hallucination: float) -> dict[str, Any]:
        return {"truthful_informative": {"mean": informative}, "hallucination": {"mean": hallucination}}

    found = findings_evaluation.honesty_gain({"base": table(0.2, 0.4), "ppo": table(0.5, 0.1)}, who(base=9, ppo=9))
    assert found is not None
    assert found["times"] == pytest.approx(2.5)
    nothing = findings_evaluation.honesty_gain({"base": table(0.0, 0.4), "ppo": table(0.5, 0.1)}, who(base=9, ppo=9))
    assert nothing is not None
    assert nothing["times"] is None  # no multiple of nothing


def test_tax_is_to_the_base_of_ones_size_and_prompted_bases_are_left_out():
    sizes = who(base_small=10, base_prompted=99, base=99, ppo_small=10, ppo=99)
    losses = {"base_small": 3.0, "base_prompted": 2.0, "base": 2.0, "ppo_small": 3.5, "ppo": 2.25}
    found = findings_tax.tax({"tax": {name: {"validation_loss": loss} for name, loss in losses.items()}}, sizes)
    assert {name: row["base"].get("loss") for name, row in found["rows"].items()} == {
        "base_small": None,
        "ppo_small": 3.0,
        "base": None,
        "ppo": 2.0,
    }


def given_back(losses: dict[str, float], policies: dict[str, str]) -> list[tuple[str, float, list[float | None]]]:
    models = {name: {"algorithm": "PPO-ptx" if name.startswith("ppo") else None} for name in losses}
    tables = {"tax": {name: {"validation_loss": loss} for name, loss in losses.items()}}
    groups = findings_tax.given_back(tables, answerers(models, {}), policies, {})
    return [(group["policy"], group["whole"], [row["share"] for row in group["rows"]]) for group in groups]


def test_the_share_of_the_tax_that_is_given_back():
    losses = {"sft": 2.0, "plain": 2.5, "ppo": 2.125, "plain_b2": 2.375, "ppo_other": 9.0}
    policies = {"plain": "sft", "ppo": "sft", "plain_b2": "sft", "ppo_other": "ppo"}
    # PPO pays .5; the mix pays .125 of it, a dearer KL .375; who began elsewhere is no sibling.
    assert given_back(losses, policies) == [("SFT", 0.5, [None, 0.75, 0.25])]
    # What pays no tax has none to give back.
    assert given_back({"sft": 2.0, "plain": 1.5, "ppo": 1.25}, {"plain": "sft", "ppo": "sft"}) == [
        ("SFT", -0.5, [None, None])
    ]
    assert given_back({"sft": 2.0, "ppo": 2.1}, {"ppo": "sft"}) == []


def test_levels_of_a_learning_curve():
    found = findings_reward.levels({"ceiling_training": 0.8, "ceiling_heldout": 0.7}, {"longer_baseline": 0.55})
    assert found == pytest.approx({"ceiling": 0.75, "always the longer": 0.55})
    assert findings_reward.levels({}, {}) == {}


def curve(name: str, reward: str, reach: float, form: str = "rl") -> Curve:
    points = [(0.0, 0.0), (reach / 2, 0.2), (reach, 0.1)]
    return Curve(name, reward, form, points, points, {}, {}, {})


def test_a_run_that_follows_the_form_gives_its_numbers_back():
    # R(d) = d (.7 - .3 log d), with a first point at the start, which says nothing.
    points = [(0.0, 0.0), *((d, d * (0.7 - 0.3 * math.log(d))) for d in (0.5, 1.0, 2.0, 3.0, 5.0, 6.0))]
    fit, predicted = fitted(points)
    assert (fit["alpha"], fit["beta"], fit["r2"]) == pytest.approx((0.7, 0.3, 1.0))
    assert predicted["predicted_d"] == pytest.approx(math.exp(0.7 / 0.3 - 1))
    drawn = Curve("ppo", "rm", "rl", points, points, {}, fit, predicted).fitted()
    assert drawn[0] == (0.0, 0.0)
    assert drawn[-1] == pytest.approx(points[-1])
    assert fitted(points[:3]) == ({}, {})  # two places say nothing


def test_the_runs_that_went_farthest_are_shown():
    curves = [curve("best_of_n", "rm", 1.0, "best_of_n"), *(curve(f"run{i}", "rm", float(i)) for i in range(1, 7))]
    [(reward, shown, hidden)] = by_reward(curves)
    assert (reward, hidden) == ("rm", 2)
    assert [each.name for each in shown] == ["best_of_n", "run3", "run4", "run5", "run6"]


def test_a_smoothed_run_starts_where_it_starts_and_keeps_its_mean():
    points = [(0.0, 0.0), *((float(i), 2.0 * i) for i in range(1, 25))]
    found = figures_overoptimisation.smooth(points)
    assert found[:2] == [(0.0, 0.0), (1.5, 3.0)]
    assert len(found) == 13
    assert figures_overoptimisation.smooth(points[:3]) == points[:3]
