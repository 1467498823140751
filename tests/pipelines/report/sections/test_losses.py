"""Losses of pretraining and fine-tuning: the main run in words, all runs in a table."""

from __future__ import annotations


def test_every_base_and_chat_model_has_a_row(half, reader):
    half.branch("pretrain_small", "pretrain")
    half.branch("mine", "sft", base="pretrain_small")
    half.done("pretrain_small", {"parameters": 1234, "tokens": 500, "validation_loss": 2.5, "bits_per_byte": 1.5})
    half.done("mine", {"validation_loss_before": 2.5, "validation_loss": 1.5, "validation_accuracy": 0.625})
    text = reader(half.page((*half.names, "pretrain_small", "mine"))).text
    assert "pretrain_small 1,234 500 2.500 1.500" in text
    assert "mine pretrain_small 2.500 1.500 62.5 %" in text


def test_fine_tuning_in_words(half, reader):
    half.steps["sft"].path.with_name(half.steps["sft"].path.name + ".partial").rename(half.root / "elsewhere")
    metrics = {"validation_loss_before": 2.5, "validation_loss": 1.5, "validation_conversations": 20}
    half.done("sft", metrics | {"conversations": 1000}, [{"step": 1, "loss": 2.0}])
    page = half.page()
    assert "Validation loss 2.500 before, 1.500 nats" in reader(page).text
    assert "on 20 held-out conversations; 1,000 to train on" in reader(page).text
    assert 'id="fine_tuning-figure_1"' in page
