"""Stage `rloo`: the exact first minibatch, the gradient by brute force, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.stages import rloo
from gptlife.stages.rl.episodes import Minibatch, Rows
from gptlife.stages.rloo import RLOO

FIELDS = {
    "steps": 2, "batch_size": 16, "minibatch_size": 8, "answers_per_prompt": 4, "max_new_tokens": 10,
    "learning_rate": 1e-3, "warmup_steps": 0, "kl_coef": 0.1, "sample_every": 1, "ema": None,
}  # fmt: skip


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    return {**FIELDS, "prompts": str(tiny.prompts), **changes}


def test_on_policy_the_ratio_is_one(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, minibatch_size=16, learning_rate=1e-2)
    run(rloo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    for line in log_of(tmp_path / "one"):
        assert (line["ratio_mean"], line["ratio_var"], line["clipfrac"], line["approx_kl"]) == (1.0, 0.0, 0.0, 0.0)


def reinforce(
    tiny: Any,
    rollouts: Any,
    scores: list[float],
    k: int,
    temperature: float,
    *,
    others: bool = True,
    tokens: bool = False,
) -> dict[str, torch.Tensor]:
    """Gradient of -(R_i - baseline) log pi(y_i), a mean over answers: loops, plain transformers, nothing of ours.

    The policy is its own reference here, so KL is 0. `others=False` takes the answer itself into its baseline;
    `tokens=True` divides by tokens instead of answers.
    """
    model = AutoModelForCausalLM.from_pretrained(str(tiny.sft)).eval()
    eos = AutoTokenizer.from_pretrained(str(tiny.sft)).eos_token_id
    returns = [s - (0.0 if answer[-1] == eos else 1.0) for s, answer in zip(scores, rollouts.responses, strict=True)]
    total = torch.zeros(())
    for i, (prompt, answer) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        group = range(i - i % k, i - i % k + k)
        assert all(rollouts.prompts[j] == prompt for j in group)
        baseline = [returns[j] for j in group if j != i or not others]
        logits = model(input_ids=torch.tensor([prompt.tokens + answer])).logits[0] / temperature
        table = torch.log_softmax(logits, -1)
        for place, token in enumerate(answer):
            advantage = returns[i] - sum(baseline) / len(baseline)
            total = total - advantage * table[len(prompt) - 1 + place, token]
    count = sum(map(len, rollouts.responses)) if tokens else len(returns)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total / count, parameters), strict=True))


@pytest.mark.parametrize(("tokens", "k"), [(60, 4), (4096, 2)])
def test_gradient_is_reinforce_with_leave_one_out(tokens: int, k: int, tiny: Any, taken: Any, tmp_path: Path) -> None:
    changes = {"minibatch_size": 16, "micro_batch_tokens": tokens, "temperature": 0.8, "answers_per_prompt": k}
    metrics, rollouts, experience, found = taken(RLOO, rloo.RLOOConfig, fields(tiny, **changes), tmp_path / "one")
    scores = experience.readings.scores_B.tolist()
    assert 0.0 < metrics["eos_rate"] < 1.0  # some answers pay the penalty, some don't
    assert_close(found, reinforce(tiny, rollouts, scores, k, 0.8), rtol=0, atol=1e-4)
    twins = [
        reinforce(tiny, rollouts, scores, k, 1.0),
        reinforce(tiny, rollouts, scores, k, 0.8, others=False),
        reinforce(tiny, rollouts, scores, k, 0.8, tokens=True),
        reinforce(tiny, rollouts, [0.5 * score for score in scores], k, 0.8),
    ]
    for twin in twins:
        with pytest.raises(AssertionError):
            assert_close(found, twin, rtol=0, atol=1e-4)


def minibatch(logprobs_BR: torch.Tensor, mask_BR: torch.Tensor, advantages: list[float]) -> Minibatch:
    advantages_BR = torch.tensor(advantages).unsqueeze(1) * mask_BR
    none, old_N = torch.zeros(()), logprobs_BR[mask_BR]
    return Minibatch(Rows(none, none, none, none), mask_BR, old_N, old_N, none, advantages_BR[mask_BR], none, None)


def test_the_ratio_is_of_whole_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: three answers whose probabilities moved by exp(.1), exp(-.4) and exp(.4)."""
    mask_BR = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    new_N = torch.tensor([-1.0, -2.0, -2.9, -0.9, -1.3, -1.3])
    old_BR = torch.tensor([[-1.2, -2.0, -2.8], [-0.5, 0.0, 0.0], [-1.5, -1.5, 0.0]])
    config = decode(rloo.RLOOConfig, {"prompts": "x.jsonl"}, "rloo")
    monkeypatch.setattr(Minibatch, "logprobs", lambda self, policy, temperature: new_N)
    policy: Any = None
    terms = SimpleNamespace(**RLOO(config).policy_loss(policy, minibatch(old_BR, mask_BR, [2.0, -3.0, 5.0])))
    up, down = math.exp(0.1), math.exp(-0.4)
    # The first is inside 1 ± .2; the second has left it for the better (clipped at .8); the third too (at 1.2).
    assert terms.loss_sum.item() == pytest.approx(-2.0 * up + 3.0 * 0.8 - 5.0 * 1.2, abs=1e-5)
    assert terms.ratio_sum.item() == pytest.approx(up + down + math.exp(0.4), abs=1e-5)
    assert terms.clipfrac_sum.item() == 2.0
    assert terms.n.item() == 3  # actions
    by_token = -2.0 * (math.exp(0.2) + 1.0 + math.exp(-0.1)) + 3.0 * 0.8 - 5.0 * 2 * 1.2
    with pytest.raises(AssertionError):  # twin: ratios of single tokens
        assert terms.loss_sum.item() == pytest.approx(by_token, abs=1e-5)


def test_a_prompts_answers_stand_together(tiny: Any, taken: Any, tmp_path: Path) -> None:
    _, rollouts, experience, _ = taken(RLOO, rloo.RLOOConfig, fields(tiny, answers_per_prompt=4), tmp_path / "one")
    groups = [rollouts.prompts[start : start + 4] for start in range(0, 16, 4)]
    assert all(group == [group[0]] * 4 for group in groups)
    assert len({tuple(group[0].tokens) for group in groups}) == 4
    assert len({tuple(answer) for answer in rollouts.responses[:4]}) > 1  # each with draws of its own
    # Advantages of a prompt's answers have mean 0, and the baseline is what is left of the return.
    advantages_B = experience.advantages_BR[:, 0]
    assert_close(advantages_B.view(4, 4).mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    assert_close(experience.returns_BR - experience.values_BR, experience.advantages_BR, rtol=0, atol=1e-6)
    assert (advantages_B != 0).any()


def test_it_learns(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    """More letters e, against the very same run with a reward that says nothing."""
    rises = {}
    for function in ("count_e", "nothing"):
        options = fields(
            tiny, steps=12, batch_size=32, minibatch_size=32, learning_rate=4e-3, kl_coef=0.0,
            missing_eos_penalty=0.0, reward_function=f"{tiny.functions}:{function}",
            judge={"function": f"{tiny.functions}:count_e"},
        )  # fmt: skip
        run(rloo.STAGE, options, tmp_path / function, policy=tiny.sft)
        gold = [line["gold"] for line in log_of(tmp_path / function)]
        rises[function] = sum(gold[-3:]) / 3 - sum(gold[:3]) / 3
    assert rises["count_e"] > 1.0
    assert abs(rises["nothing"]) < 0.5


def test_adapters_are_merged(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    options = fields(tiny, lora={"rank": 4}, learning_rate=1e-2, ema=0.5, steps=1)
    run(rloo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    before, after, average = weights(tiny.sft), weights(tmp_path / "one"), weights(tmp_path / "one" / "ema")
    assert before.keys() == after.keys() == average.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    AutoModelForCausalLM.from_pretrained(str(tmp_path / "one"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answers_per_prompt": 3},
            r"^rloo\.answers_per_prompt: 3 does not divide batch_size 16; choose one that does",
        ),
        ({"answers_per_prompt": 1}, r"^rloo\.answers_per_prompt: input should be greater than or equal to 2, found 1"),
        ({"minibatch_size": 512}, r"^rloo\.minibatch_size: 512 does not divide batch_size 16; choose one that does"),
        ({"reward_function": "a:b"}, r"^rloo\.reward_function: give either this or the input `reward`"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(rloo.STAGE, fields(tiny, **changes), tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
