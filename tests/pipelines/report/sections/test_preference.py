"""Win rates over the baseline, beside InstructGPT and by size; what judging took."""

from __future__ import annotations

from typing import Any

from gptlife.pipelines.report.sections import preference


def test_win_rates_models_and_use_cases(half, reader, evaluation, online_log):
    half.done("evaluation", evaluation())
    half.done("ppo", {"algorithm": "PPO-ptx"}, online_log(lambda i: 0.1 * i, None))
    text = reader(half.page()).text
    assert (
        "PPO-ptx preferred to SFT in 71.2 % [67.0, 75.1] of 500 unseen prompts, judged by the Village's gold judge."
        in text
    )
    # Over SFT: as written for base, and PPO; the other way round it would be 1 - .8 and 129 wins.
    assert "base 20.1 [17.0, 23.0] 10.1 [7.0, 13.0] 341 30 129" in text
    assert "PPO-ptx 71.2 [67.0, 75.1] 61.2 [57.0, 65.1] 341 30 129" in text
    assert "PPO-ptx base 85.3 [82.0, 88.0] 75.3 [72.0, 78.0] 85 ± 3 (175B)" in text
    # The matrix: base over PPO-ptx is what is left of 85.3.
    assert "base · 20.1 [17, 23] 14.7 [12, 18]" in text
    assert "SFT 0.400 [0.380, 0.430] 40.0 [38.0, 43.0] 90.0 [88.0, 93.0]" in text
    assert "open_qa 50 0.111 0.222 0.333" in text


def test_an_llm_judge_has_no_scores_but_a_cost(half, reader, evaluation):
    found = evaluation(judge="the language model x", use_cases={})
    for model in found["models"].values():
        del model["score"], model["verdicts"]
    found["judging"] = {"pairs": 200, "ties": 20, "position_flips": 10, "calls": 400, "unparseable": 2, "cost": 1.5}
    half.done("evaluation", found)
    text = reader(half.page()).text
    assert "Of 500 prompts, judged by the language model x." in text
    assert "model words base 12.3" in text
    assert "pairs of answers compared 200 ties 10.0 %" in text
    assert "(position flips) 5.0 %" in text
    assert "replies without a verdict (ties) 0.5 % replies 400" in text
    assert "cost, in the currency of the prices 1.5000" in text


def rate(a: str, b: str, value: float) -> dict[str, Any]:
    return {"a": a, "b": b, "rate": value, "low": value - 0.1, "high": value + 0.05, "wins": 7, "ties": 1, "losses": 2}


def test_figure_one_has_a_line_a_kind_and_a_second_round_apart(who):
    sizes = who(sft_small=10, sft=20, ppo_small=10, ppo=20, ppo_2=20, best_of_n=None)
    rows = [rate(name, "sft", value) for name, value in (("sft_small", 0.3), ("ppo_small", 0.4), ("ppo", 0.6))]
    rows += [rate("ppo_2", "sft", 0.65), rate("best_of_n", "sft", 0.55)]
    found = {
        line["name"]: [(p["parameters"], p["rate"]) for p in line["points"]]
        for line in preference.curves_by_size(rows, sizes, "sft")
    }
    assert found == {"SFT": [(10, 0.3), (20, 0.5)], "PPO": [(10, 0.4), (20, 0.6)], "PPO, 2": [(20, 0.65)]}


def test_beside_the_paper_stand_pairs_of_a_size_and_the_smallest_over_the_largest(who):
    sizes = who(base_small=10, base=99, ppo_small=10, ppo=99)
    rows = [rate("ppo_small", "base_small", 0.8), rate("ppo", "base", 0.9), rate("base", "ppo_small", 0.4)]
    found = [(row["a"], row["b"], round(row["rate"], 3), row["paper"]) for row in preference.paper_pairs(rows, sizes)]
    assert found == [
        ("ppo_small", "base_small", 0.8, "85 ± 3 (175B)"),
        ("ppo", "base", 0.9, "85 ± 3 (175B)"),
        ("ppo_small", "base", 0.6, "preferred (1.3B over 175B)"),
    ]


def test_lines_by_size_are_in_the_papers_order(who):
    found = who(ppo_small=10, ppo=99, plain=99, sft=99, base=99, base_prompted=99, best_of_n=None)
    rows = [rate(name, "sft", 0.6) for name in found if name != "sft"]
    names = [line["name"] for line in preference.curves_by_size(rows, found, "sft")]
    assert names == ["base", "base, prompted", "SFT", "PPO, plain", "PPO"]  # the one with a pretraining mix last


def test_verdicts_of_any_judge_have_columns(half, reader, evaluation):
    found = evaluation()
    found["models"]["ppo"]["verdicts"] = {"kind_of_true": {"mean": 0.25, "low": 0.2, "high": 0.3}, "score": {"mean": 1}}
    half.done("evaluation", found)
    text = reader(half.page()).text
    assert "follows, % true, % kind of true, % words" in text
    assert "PPO 0.600 [0.580, 0.630] – – 25.0 [20.0, 30.0] 12.3" in text
