"""Stage `grpo`: on policy its ratio is 1, it learns, and what it refuses; details in tests/conformance/test_grpo.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from gptlife.data.errors import UserError
from gptlife.stages import grpo

FIELDS = {
    "steps": 2, "batch_size": 16, "minibatch_size": 16, "answers_per_prompt": 4, "max_new_tokens": 10,
    "learning_rate": 1e-3, "warmup_steps": 0, "kl_coef": 0.1, "sample_every": 1, "ema": None,
}  # fmt: skip


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    return {**FIELDS, "prompts": str(tiny.prompts), **changes}


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_the_ratio_is_one(ratio: str, tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, learning_rate=1e-2, ratio=ratio)
    run(grpo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    first, second = log_of(tmp_path / "one")
    for line in (first, second):
        assert (line["ratio_mean"], line["ratio_var"], line["clipfrac"], line["approx_kl"]) == (1.0, 0.0, 0.0, 0.0)
    assert first["kl_penalty"] == 0.0  # the policy is its own reference yet
    assert second["kl_penalty"] > 0.0
    assert first["non_score_reward"] == 0.0  # the KL is in the loss


def test_a_prompts_answers_are_a_group(tiny: Any, taken: Any, tmp_path: Path) -> None:
    _, rollouts, experience, _ = taken(grpo.GRPO, grpo.GRPOConfig, fields(tiny), tmp_path / "one")
    groups = [rollouts.prompts[start : start + 4] for start in range(0, 16, 4)]
    assert all(group == [group[0]] * 4 for group in groups)
    advantages_PK = experience.advantages_BR[:, 0].view(4, 4)
    returns_PK = experience.returns_BR[:, 0].view(4, 4)
    assert_close(advantages_PK.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    spread_P1 = returns_PK.std(1, keepdim=True) + 1e-4
    assert_close(advantages_PK, (returns_PK - returns_PK.mean(1, keepdim=True)) / spread_P1, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):  # twin: not divided
        assert_close(advantages_PK, returns_PK - returns_PK.mean(1, keepdim=True), rtol=0, atol=1e-5)


def test_it_learns(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    """More letters e, against the very same run with a reward that says nothing."""
    rises = {}
    for function in ("count_e", "nothing"):
        options = fields(
            tiny, steps=12, batch_size=32, minibatch_size=32, learning_rate=4e-3, kl_coef=0.0, aggregation="constant",
            missing_eos_penalty=0.0, reward_function=f"{tiny.functions}:{function}",
            judge={"function": f"{tiny.functions}:count_e"},
        )  # fmt: skip
        run(grpo.STAGE, options, tmp_path / function, policy=tiny.sft)
        gold = [line["gold"] for line in log_of(tmp_path / function)]
        rises[function] = sum(gold[-3:]) / 3 - sum(gold[:3]) / 3
    assert rises["count_e"] > 1.0
    assert abs(rises["nothing"]) < 0.5
    # A reward that is always the same has groups without variance, and teaches nothing.
    assert {line["zero_variance_groups"] for line in log_of(tmp_path / "nothing")} == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers_per_prompt": 1}, r"^grpo\.answers_per_prompt: input should be greater than or equal to 2, found 1"),
        (
            {"answers_per_prompt": 3},
            r"^grpo\.answers_per_prompt: 3 does not divide batch_size 16; choose one that does",
        ),
        ({"ratio": "sequence", "aggregation": "token"}, r"^grpo\.aggregation: token sums over tokens, but ratio is "),
        ({"kl_penalty": "k1_in_loss"}, r"^grpo\.kl_penalty: "),
        ({"reward_function": "a:b"}, r"^grpo\.reward_function: give either this or the input `reward`"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(grpo.STAGE, fields(tiny, **changes), tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
