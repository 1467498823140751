"""The same prompts with every candidate's answer: beside each other, or below one another where they are many."""

from __future__ import annotations


def test_few_candidates_answer_beside_each_other(half, reader, evaluation):
    half.done("evaluation", evaluation())
    text = reader(half.page()).text
    assert "prompt base SFT PPO Say hi. moo Hi. Hello there." in text


def test_many_candidates_answer_below_one_another(half, reader, evaluation):
    names = ("base", "base_prompted", "sft", "ppo", "rloo", "dpo")
    found = evaluation(models={name: {} for name in names}, win_rates=[])
    found["samples"] = [{"prompt": "Say hi.", "answers": {name: f"by {name}" for name in names[:-1]}}]
    half.done("evaluation", found)
    text = reader(half.page((*half.names, "rloo", "dpo"))).text
    assert "Say hi. base by base base, prompted by base_prompted SFT by sft" in text
    assert "DPO (nothing)" in text
