"""Branches, baselines and second evaluations."""

from __future__ import annotations


def test_branches_baselines_and_second_evaluations(half, reader, branched):
    page = half.page(branched)
    text = reader(page).text
    # Size by size, and what is size unknown at the end.
    assert "207,000 parameters SFT, small 60.0 [55.0, 65.0] – 6 0 4 924,000 parameters PPO-ptx 60.0" in text
    assert "size unknown best of 4 60.0" in text
    assert 'id="sizes_evaluation-figure_1"' in page
    assert 'id="sizes_sweeps-figure_1"' not in page  # one size
    assert "sweeps : 3 models compared with SFT" in text
    assert "PPO-ptx 50.0 [40.0, 60.0] – 50.0 [40.0, 60.0] 21" in text  # truthful, and informative, hallucination, paper
    assert "PPO-ptx – 12.5 [10.0, 15.0]" in text  # rude on all prompts, on polite ones
    # PPO pays .5 nats more than SFT, PPO-ptx .1: four fifths given back.
    assert "from SFT; PPO pays 0.500 PPO-ptx 2.100 0.100 80.0 % 0.400 PPO 2.500 0.500 – 0.400" in text
    assert "plain PPO sft reward_model 0.5 – 20 1.90 4.010 0.110 – – stopped at step 19 by its KL" in text
    assert "rloo RLOO sft reward_model 0.25 – 20 1.90 2.010 – – –" in text
    assert "dpo sft 1,234 77 – 67.1 % 0.250" in text
    assert "reward_300 1 0.00 0.000 [−0.100, 0.100] 0.300 [0.200, 0.400] –" in text
    assert "reward_model sft 2,400 2 65.0 %" in text
    assert "its members are right on 61.0 %, 63.0 %; together 64.1 % by their mean, – by mean" in text
    assert "reward_model 51.0 % 60.0 % 70.0 % 81.1 %" in text
    for figure in ("runs", "learning_curve", "overoptimisation", "overoptimisation_by_reward"):
        assert f'id="{figure}-figure_1"' in page
