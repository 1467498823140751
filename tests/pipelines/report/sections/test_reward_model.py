"""Labelers beside the reward model, and the levels of a learning curve."""

from __future__ import annotations

import pytest

from gptlife.pipelines.report.sections import reward_model


def test_labelers_beside_the_reward_model(half, reader):
    half.done(
        "comparisons",
        {
            "train_rankings": 2400,
            "train_pairs": 51234,
            "train_tie_share": 0.0862,
            "ceiling_training": 0.874,
            "agreement_training": 0.731,
            "ceiling_heldout": 0.868,
        },
    )
    half.done(
        "reward_model",
        {
            "validation_accuracy": 0.7044,
            "validation_accuracy_training": 0.7101,
            "validation_accuracy_heldout": 0.6987,
            "longer_baseline": 0.5512,
            "validation_pairs": 4000,
            "calibration": {
                "ece": 0.0421,
                "counts": [3, 0, 1],
                "confidence": [0.6, None, 0.9],
                "accuracy": [0.5, None, 1],
            },
        },
        [{"step": 1, "loss": 0.69, "accuracy": 0.5}],
    )
    page = half.page()
    text = reader(page).text
    assert "training 73.1 % 87.4 % 71.0 % 72.6 ± 1.5 72.4 ± 0.4" in text
    assert "heldout – 86.8 % 69.9 % 77.3 ± 1.3 69.6 ± 0.9" in text
    assert "right on 70.4 % ; always choosing the longer answer is right on 55.1 %" in text
    assert "Expected calibration error 0.042 :" in text
    assert "train 2,400 – 51,234 8.6 % –" in text
    assert 'id="reward_model-figure_1"' in page
    assert "The reward model is right on 70.4 % of held-out pairs; no policy yet." in text


def test_levels_of_a_learning_curve():
    found = reward_model.levels({"ceiling_training": 0.8, "ceiling_heldout": 0.7}, {"longer_baseline": 0.55})
    assert found == pytest.approx({"ceiling": 0.75, "always the longer": 0.55})
    assert reward_model.levels({}, {}) == {}
