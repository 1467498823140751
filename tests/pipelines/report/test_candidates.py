"""Who is compared: labels from what made a model, and sizes."""

from __future__ import annotations

from gptlife.pipelines.report.candidates import Maker, aligned, base, candidates, sized

BASE, SFT, DPO = Maker("base", "pretrain", "base"), Maker("SFT", "sft", "chat"), Maker("DPO", "dpo", "preference")
PPO, MIXED = Maker("PPO", "ppo", "online"), Maker("PPO-ptx", "ppo", "online", mixed=True)
BEST = Maker("best of 16", "best_of_n", "answers")


def labels(makers: dict[str, Maker], *prompted: str) -> list[str]:
    """Labels in order; `prompted` are names of base models that are asked with worked examples as well."""
    names = [each for name in makers for each in ([name, f"{name}_prompted"] if name in prompted else [name])]
    return [each.label for each in candidates({name: {} for name in names}, makers).values()]


def test_labels_are_what_made_a_model_and_the_rest_of_its_name():
    makers = {"base": BASE, "base_small": BASE, "sft_small": SFT, "plain": PPO, "plain_b0": PPO}
    makers |= {"ppo": MIXED, "ppo_2": MIXED, "dpo": DPO, "best_of_n": BEST}
    assert labels(makers, "base", "base_small") == [
        *("base", "base, prompted", "base, small", "base, prompted, small", "SFT, small"),
        *("PPO", "PPO, b0", "PPO-ptx", "PPO-ptx, 2", "DPO", "best of 16"),
    ]


def test_an_input_of_any_name_is_labelled_by_its_stage():
    new = Maker("GRPO", "grpo", "online")
    assert labels({"start": BASE, "mine": SFT, "theirs": new}, "start") == ["base", "base, prompted", "SFT", "GRPO"]
    # Several of a kind are told apart by their names; one that is called like its stage needs none.
    assert labels({"a": SFT, "sft": SFT, "b_2": SFT}) == ["SFT, a", "SFT", "SFT, b 2"]
    assert labels({"plain": PPO, "ppo": PPO}) == ["PPO, plain", "PPO"]
    assert labels({"a": new, "a_small": new, "a_large": new}) == ["GRPO", "GRPO, small", "GRPO, large"]


def test_no_two_have_one_label():
    assert labels({"sft": SFT, "chat": SFT}) == ["SFT", "SFT (chat)"]


def test_what_the_plan_lacks_is_named_by_the_evaluation():
    found = candidates({"gone": {"algorithm": "RLOO"}, "who_knows": {}}, {})
    assert [each.label for each in found.values()] == ["RLOO", "who knows"]


def test_aligned_and_base_go_by_family():
    models = {"base": {}, "base_prompted": {}, "pref": {}, "new": {}}
    makers = {"base": BASE, "pref": DPO, "new": Maker("GRPO", "grpo", "online")}
    who = list(candidates(models, makers).values())
    assert aligned(who).name == "new"
    assert aligned(who[:3]).name == "pref"
    assert aligned(who[:2]) is None
    assert (base(who).name, base(who, prompted=True).name) == ("base", "base_prompted")
    assert base(who[2:]) is None


def test_alike_counts_are_one_size(who):
    found = who(base=1000, sft=1050, ppo=1200, best_of_n=None)
    assert {name: each.size for name, each in found.items()} == {
        "base": 1000,
        "sft": 1000,
        "ppo": 1200,
        "best_of_n": None,
    }
    assert not sized(who(base=1000, sft=1050, best_of_n=None))
    assert sized(found)
