"""Stage `cispo`: on policy its weights are 1, and it learns; details in tests/conformance/test_cispo.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from gptlife.data.errors import UserError
from gptlife.stages import cispo

FIELDS = {
    "steps": 2, "batch_size": 16, "minibatch_size": 16, "answers_per_prompt": 4, "max_new_tokens": 10,
    "learning_rate": 1e-3, "warmup_steps": 0, "kl_coef": 0.1, "sample_every": 1, "ema": None,
}  # fmt: skip


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    return {**FIELDS, "prompts": str(tiny.prompts), **changes}


def test_on_policy_the_weight_is_one(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    run(cispo.STAGE, fields(tiny, learning_rate=1e-2), tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    for line in log_of(tmp_path / "one"):
        assert (line["ratio_mean"], line["ratio_var"], line["clipfrac"], line["approx_kl"]) == (1.0, 0.0, 0.0, 0.0)
    # Twin: the second of two minibatches is off policy.
    options = fields(tiny, learning_rate=1e-2, minibatch_size=8)
    run(cispo.STAGE, options, tmp_path / "two", policy=tiny.sft, reward=tiny.reward_model)
    assert all(line["approx_kl"] > 0.0 for line in log_of(tmp_path / "two"))


def test_a_prompts_answers_are_a_group(tiny: Any, taken: Any, tmp_path: Path) -> None:
    _, _, experience, _ = taken(cispo.CISPO, cispo.CISPOConfig, fields(tiny), tmp_path / "one")
    advantages_PK = experience.advantages_BR[:, 0].view(4, 4)
    returns_PK = experience.returns_BR[:, 0].view(4, 4)
    centred_PK = returns_PK - returns_PK.mean(1, keepdim=True)
    assert_close(advantages_PK, centred_PK / (returns_PK.std(1, keepdim=True) + 1e-4), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):  # twin: not divided
        assert_close(advantages_PK, centred_PK, rtol=0, atol=1e-5)


def test_the_loss_does_not_depend_on_micro_batches(tiny: Any, taken: Any, tmp_path: Path) -> None:
    whole, split, other = (
        taken(cispo.CISPO, cispo.CISPOConfig, fields(tiny, **changes), tmp_path / name)[3]
        for name, changes in (
            ("whole", {}),
            ("split", {"micro_batch_tokens": 64}),
            ("other", {"answers_per_prompt": 8}),
        )
    )
    assert_close(whole, split, rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):  # twin: other groups
        assert_close(whole, other, rtol=1e-4, atol=1e-6)


def test_it_learns(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    """More letters e, against the very same run with a reward that says nothing."""
    rises = {}
    for function in ("count_e", "nothing"):
        options = fields(
            tiny, steps=12, batch_size=32, minibatch_size=16, learning_rate=4e-3, kl_coef=0.0,
            missing_eos_penalty=0.0, reward_function=f"{tiny.functions}:{function}",
            judge={"function": f"{tiny.functions}:count_e"},
        )  # fmt: skip
        run(cispo.STAGE, options, tmp_path / function, policy=tiny.sft)
        gold = [line["gold"] for line in log_of(tmp_path / function)]
        rises[function] = sum(gold[-3:]) / 3 - sum(gold[:3]) / 3
    assert rises["count_e"] > 1.0
    assert abs(rises["nothing"]) < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers_per_prompt": 3}, r"^cispo\.answers_per_prompt: 3 does not divide batch_size 16; choose one that "),
        ({"clip_range_low": 1.5}, r"^cispo\.clip_range_low: input should be less than or equal to 1, found 1\.5"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(cispo.STAGE, fields(tiny, **changes), tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
