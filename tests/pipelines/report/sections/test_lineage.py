"""What each step was made from, and how."""

from __future__ import annotations


def test_inputs_versions_and_config(half, reader):
    text = reader(half.page()).text
    assert "pretrain pretrain-0123456789ab from tokenizer tokenizer-0123456789ab" in text
    assert "commit feedbeef+" in text
    assert "torch 9.8.7" in text
    assert "seed 41" in text
    assert "learning_rate: 0.0625" in text  # stage.yaml of what has one
    assert "ptx_coef: 27.8" in text  # the plan's config of what has none yet
    assert "hidden: twice" not in text
