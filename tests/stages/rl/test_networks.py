"""An online stage's models: averaged weights by hand, a reference of its own, and learning rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlife.data.errors import UserError
from gptlife.stages.ppo import PPO, PPOConfig
from gptlife.stages.rl.networks import Average

FIELDS = {"batch_size": 4, "minibatch_size": 4, "max_new_tokens": 4, "learning_rate": 0.25, "value_learning_rate": 0.5}


def test_average_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.9)
    for weight in (2.0, 4.0):
        torch.nn.init.constant_(model.weight, weight)
        average.update(model)
    assert float(average.weights["weight"]) == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4)
    assert average.copied_into(model).weight.item() == pytest.approx(1.39)
    assert model.weight.item() == 4.0


def test_the_average_is_kept_in_float32() -> None:
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    torch.nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.999)
    torch.nn.init.constant_(model.weight, 2.0)
    average.update(model)
    assert float(average.weights["weight"]) == pytest.approx(1.001)  # bfloat16 has no number between 1 and 1.0078


def test_the_reference_stays_where_the_policy_began(tiny: Any, steps_of: Callable[..., Any], tmp_path: Path) -> None:
    networks, _ = steps_of(PPO, PPOConfig, {**FIELDS, "prompts": str(tiny.prompts)}, tmp_path / "one")
    reference, context = networks.reference()
    before = [p.clone() for p in reference.parameters()]
    assert not any(p.requires_grad for p in reference.parameters())
    with torch.no_grad():
        for parameter in networks.policy.model.parameters():
            parameter.add_(1.0)
    with context():
        assert all(torch.equal(now, then) for now, then in zip(reference.parameters(), before, strict=True))
    assert not torch.equal(next(networks.policy.model.parameters()), before[0])


def test_learning_rates_are_shares_of_their_peaks(tiny: Any, steps_of: Callable[..., Any], tmp_path: Path) -> None:
    networks, _ = steps_of(PPO, PPOConfig, {**FIELDS, "prompts": str(tiny.prompts)}, tmp_path / "one")
    assert networks.set_learning_rates(0.1) == pytest.approx(0.025)
    for name, peak in (("policy", 0.25), ("value", 0.5)):
        groups = networks.trained[name].optimizer.param_groups
        assert [group["lr"] for group in groups] == pytest.approx([0.1 * peak] * len(groups))


def test_a_reward_model_with_another_tokenizer(tiny: Any, run: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from gptlife.stages import ppo

    AutoModelForSequenceClassification.from_pretrained(str(tiny.reward_model)).save_pretrained(str(tmp_path / "other"))
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.reward_model))
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(str(tmp_path / "other"))
    options = {**FIELDS, "prompts": str(tiny.prompts)}
    with pytest.raises(UserError, match="its tokenizer or chat template differs from that of"):
        run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tmp_path / "other")
