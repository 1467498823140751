"""The alignment tax, and what of it is given back."""

from __future__ import annotations

import pytest

from gptlife.pipelines.report.candidates import Candidate, Maker, candidates
from gptlife.pipelines.report.sections import tax


def test_tax_is_to_the_base_of_ones_size_and_prompted_bases_are_left_out(who):
    sizes = who(base_small=10, base_prompted=99, base=99, ppo_small=10, ppo=99)
    losses = {"base_small": 3.0, "base_prompted": 2.0, "base": 2.0, "ppo_small": 3.5, "ppo": 2.25}
    found = tax.tax({"tax": {name: {"validation_loss": loss} for name, loss in losses.items()}}, sizes)
    assert {name: row["base"].get("loss") for name, row in found["rows"].items()} == {
        "base_small": None,
        "ppo_small": 3.0,
        "base": None,
        "ppo": 2.0,
    }


def given_back(
    who: dict[str, Candidate], losses: dict[str, float], policies: dict[str, str]
) -> list[tuple[str, float, list[float | None]]]:
    tables = {"tax": {name: {"validation_loss": loss} for name, loss in losses.items()}}
    groups = tax.given_back(tables, who, policies, {})
    return [(group["policy"], group["whole"], [row["share"] for row in group["rows"]]) for group in groups]


def test_the_share_of_the_tax_that_is_given_back(who):
    losses = {"sft": 2.0, "plain": 2.5, "ppo": 2.125, "plain_b2": 2.375, "ppo_other": 9.0}
    policies = {"plain": "sft", "ppo": "sft", "plain_b2": "sft", "ppo_other": "ppo"}
    these = who(**dict.fromkeys(losses))
    # PPO pays .5; the mix pays .125 of it, a stronger KL penalty .375; a run that began elsewhere is not a sibling.
    assert given_back(these, losses, policies) == [("SFT", 0.5, [None, 0.75, 0.25])]
    # A run that pays no tax has none to give back.
    assert given_back(these, {"sft": 2.0, "plain": 1.5, "ppo": 1.25}, {"plain": "sft", "ppo": "sft"}) == [
        ("SFT", -0.5, [None, None])
    ]
    assert given_back(these, {"sft": 2.0, "ppo": 2.1}, {"ppo": "sft"}) == []


def test_the_tax_is_of_the_stage_that_has_a_run_with_a_mix():
    makers = {"sft": Maker("SFT", "sft", "chat"), "rloo": Maker("RLOO", "rloo", "online")}
    makers |= {"grpo": Maker("GRPO", "grpo", "online", mixed=True), "plain": Maker("GRPO", "grpo", "online")}
    losses, policies = (
        {"sft": 2.0, "rloo": 2.1, "grpo": 2.25, "plain": 2.5},
        dict.fromkeys(("rloo", "grpo", "plain"), "sft"),
    )
    these = candidates({name: {} for name in makers}, makers)
    assert given_back(these, losses, policies) == [("SFT", 0.5, [pytest.approx(0.8), 0.5, None])]


def test_tasks_and_differences_to_the_base(half, reader, evaluation):
    half.done("evaluation", evaluation())
    half.done("ppo", {"algorithm": "PPO-ptx"})
    text = reader(half.page()).text
    # counting, facts, mean of tasks, mean loss of the right choice; differences to base
    assert "base 2.000 50.0 25.0 37.5 0.750" in text
    assert "PPO-ptx 2.300 +0.300 45.0 −5.0 35.0 +10.0 40.0 +2.5 1.000 +0.250" in text
