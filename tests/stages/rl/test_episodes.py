"""A step's episodes: the layout of selected positions against loops over single rows, and rewards by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForSequenceClassification

from gptlife.data.config import decode
from gptlife.data.tokens import Encoded
from gptlife.stages import ppo
from gptlife.stages.generation.sampler import Answer
from gptlife.stages.modeling.forward import SelectedLogits, SelectedScores
from gptlife.stages.rl import episodes

PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
ANSWERS = [
    Answer([20, 21, 0], [-1.0, -2.0, -3.0], True),
    Answer([22], [-0.5], False),
    Answer([23, 24, 25, 26], [-0.1, -0.2, -0.3, -0.4], False),
    Answer([27, 0], [-4.0, -5.0], True),
]
LENGTHS = [3, 1, 4, 2]


def rollouts() -> episodes.Rollouts:
    return episodes.share_answers(Accelerator(cpu=True), list(map(Encoded.prompt, PROMPTS)), range(4), ANSWERS, 9)


def test_answers_become_rollouts() -> None:
    found = rollouts()
    assert found.responses == [answer.tokens for answer in ANSWERS]
    assert found.finished_B.tolist() == [True, False, False, True]
    assert found.mask_BR.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    for row, answer in enumerate(ANSWERS):
        assert found.sampled_logprobs_BR[row][found.mask_BR[row]].tolist() == pytest.approx(answer.logprobs)
    assert found.lengths == [6, 2, 6, 6]


def test_selected_positions_are_those_before_each_response_token() -> None:
    inputs, select_BT, last_BT, targets_N = rollouts().rows([2, 0, 1], torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[9, 10, 23, 24, 25, 26], [5, 6, 7, 20, 21, 0], [8, 22, 0, 0, 0, 0]]
    assert select_BT.int().tolist() == [[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert last_BT.int().tolist() == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]]
    assert targets_N.tolist() == [23, 24, 25, 26, 20, 21, 0, 22]


def value_model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=1, pad_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("groups", [[[0, 1, 2, 3]], [[2, 0], [3], [1]], [[3, 1], [], [0, 2], []]])
def test_read_against_single_rows(groups: list[list[int]], small: Callable[..., Any]) -> None:
    policy, reference, value, reward = small(seed=1), small(seed=2), value_model(3), value_model(4)
    reader = SelectedScores(reward)
    found = episodes.read(
        Accelerator(cpu=True),
        SelectedLogits(policy),
        (SelectedLogits(reference), nullcontext),
        SelectedScores(value),
        lambda group, inputs, last_BT: reader(inputs, last_BT),
        rollouts(),
        groups,
        0.8,
    )
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids = torch.tensor([prompt + answer.tokens])
        tables = [torch.log_softmax(model(input_ids=ids).logits[0] / 0.8, -1) for model in (policy, reference)]
        states = value.score(value.transformer(input_ids=ids).last_hidden_state)[0, :, 0]
        for place, token in enumerate(answer.tokens):
            before = len(prompt) - 1 + place
            expected = {
                "logprobs_BR": tables[0][before, token],
                "ref_logprobs_BR": tables[1][before, token],
                "values_BR": states[before],
                "entropy_BR": -(tables[0][before].exp() * tables[0][before]).sum(),
            }
            for name, number in expected.items():
                assert_close(getattr(found, name)[row, place], number, rtol=0, atol=1e-5)
        assert_close(found.scores_B[row], reward(input_ids=ids).logits[0, 0], rtol=0, atol=1e-5)
        for name in expected:
            assert getattr(found, name)[row, len(answer.tokens) :].tolist() == [0.0] * (4 - len(answer.tokens))
    # Twin: rows in another order would not pass.
    assert not torch.allclose(found.scores_B, found.scores_B.flip(0), atol=1e-5)


OPTIONS: dict[str, Any] = {
    "kl_coef": 0.5, "gamma": 1.0, "lam": 1.0, "missing_eos_penalty": 2.0, "score_clip": None,
    "whiten_rewards": False, "whiten_advantages": False,
}  # fmt: skip


def shaped(**changes: Any) -> episodes.Experience:
    """PPO's experience of readings made by hand."""
    mask_BR = rollouts().mask_BR
    logratio_BR = torch.tensor([[0.2, -0.4, 0.6, 9.0], [1.0, 9.0, 9.0, 9.0], [0.0] * 4, [0.0, 2.0, 9.0, 9.0]])
    readings = episodes.Readings(
        logprobs_BR=logratio_BR.masked_fill(~mask_BR, 0.0) - 3.0 * mask_BR,
        ref_logprobs_BR=-3.0 * mask_BR,
        values_BR=torch.full((4, 4), 0.25) * mask_BR,
        entropy_BR=torch.ones(4, 4) * mask_BR,
        scores_B=torch.tensor([1.0, 4.0, -6.0, 0.5]),
    )
    config = decode(ppo.PPOConfig, {"prompts": "x.jsonl", **OPTIONS, **changes}, "ppo")
    return ppo.PPO(config).experience(readings, rollouts(), config.kl_coef)


def test_rewards_by_hand() -> None:
    experience = shaped()
    # -0.5 times the log ratio; at the last token the score, less 2 where there was no end of text (rows 1 and 2).
    expected = [[-0.1, 0.2, -0.3 + 1.0, 0], [-0.5 + 4.0 - 2.0, 0, 0, 0], [0, 0, 0, -6.0 - 2.0], [0, -1.0 + 0.5, 0, 0]]
    assert_close(experience.rewards_BR, torch.tensor(expected))
    # lam 1, no discount: the return is the sum of the rewards to come, whatever the values.
    assert_close(experience.returns_BR[0], torch.tensor([0.8, 0.9, 0.7, 0.0]))
    assert_close(experience.advantages_BR[0], torch.tensor([0.55, 0.65, 0.45, 0.0]))
    assert experience.readings.scores_B.tolist() == [
        1.0,
        4.0,
        -6.0,
        0.5,
    ]  # what is logged: as the reward model gave them
    assert shaped(missing_eos_penalty=0.0).rewards_BR[2, 3] == -6.0


def test_scores_are_clipped_before_the_penalty() -> None:
    last = [(0, 2), (1, 0), (2, 3), (3, 1)]
    rewards_BR = shaped(score_clip=3.0, kl_coef=0.0).rewards_BR
    assert [float(rewards_BR[place]) for place in last] == [1.0, 3.0 - 2.0, -3.0 - 2.0, 0.5]


def test_whitening() -> None:
    mask_BR = rollouts().mask_BR
    advantages = shaped(whiten_advantages=True).advantages_BR[mask_BR]
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(advantages.var(correction=0)) == pytest.approx(1.0, abs=1e-5)
    plain, white = shaped().rewards_BR[mask_BR], shaped(whiten_rewards=True).rewards_BR[mask_BR]
    assert float(white.mean()) == pytest.approx(float(plain.mean()), abs=1e-6)
    assert float(white.var(correction=0)) == pytest.approx(1.0, abs=1e-5)
    # The returns are not whitened with the advantages.
    assert_close(shaped(whiten_advantages=True).returns_BR, shaped().returns_BR)


def test_a_minibatch_is_flat() -> None:
    experience, step = shaped(), rollouts()
    minibatch = episodes.minibatch_of(step, experience, [2, 0], torch.device("cpu"))
    assert minibatch.rows.targets_N.tolist() == [23, 24, 25, 26, 20, 21, 0]
    expected = [*experience.advantages_BR[2, :4].tolist(), *experience.advantages_BR[0, :3].tolist()]
    assert minibatch.advantages_N.tolist() == expected
    assert minibatch.sums(torch.tensor([1.0, 2, 3, 4, 10, 20, 30])).tolist() == [10.0, 60.0]
    assert minibatch.first(torch.tensor([1.0, 2, 3, 4, 10, 20, 30])).tolist() == [1.0, 10.0]
    assert minibatch.weights_N is None


def test_gradients_pass_through_an_episodes_sum() -> None:
    minibatch = episodes.minibatch_of(rollouts(), shaped(), [0, 1], torch.device("cpu"))
    x_N = torch.tensor([1.0, 2.0, 3.0, 5.0], requires_grad=True)
    (minibatch.sums(x_N) * torch.tensor([1.0, 10.0])).sum().backward()
    assert x_N.grad is not None
    assert x_N.grad.tolist() == [1.0, 1.0, 1.0, 10.0]


def test_an_answers_number_at_each_of_its_tokens() -> None:
    mask_BR = torch.tensor([[True, True], [True, False]])
    assert episodes.over_tokens(torch.tensor([3.0, -1.0]), mask_BR).tolist() == [[3.0, 3.0], [-1.0, 0.0]]
