"""Details that only a PPO step shows, one test each: a tiny policy and reward model, the stage's own `run`.

Where a test asks for the gradient, the optimizer is replaced by plain gradient descent with a known rate: the
saved weights then say it. Ouyang et al. 2022 (arXiv 2203.02155, InstructGPT); N: the blog post
"The N Implementation Details of RLHF with PPO"; Ziegler et al. 2019 (arXiv 1909.08593).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loss_oracles
import oracles
import pytest
import torch
from compare import agree, joined
from ppo_by_hand import Sampled, Weights, by_brute_force, gradients
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gptlife.data.config import decode
from gptlife.reward.objective import selected_logprobs
from gptlife.stages import ppo
from gptlife.stages.rl import episodes

RATE = 0.02
FIELDS: dict[str, Any] = {
    "steps": 1, "batch_size": 8, "minibatch_size": 8, "max_new_tokens": 6, "warmup_steps": 0, "temperature": 0.8,
    "kl_coef": 0.3, "ema": None, "learning_rate": RATE, "value_learning_rate": RATE, "max_grad_norm": 1e9,
    "sample_every": 1, "missing_eos_penalty": 0.5,
}  # fmt: skip


def descent(groups: Any, lr: float, **_: Any) -> torch.optim.SGD:
    """In the place of AdamW: weights move by -lr times the gradient."""
    return torch.optim.SGD([p for group in groups for p in group["params"]], lr=lr)


@pytest.fixture
def step(world: Any, run: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """`step("name", **fields)`: the output of PPO; `plain=True` (the default) descends by the plain gradient."""

    def go(name: str, plain: bool = True, **fields: Any) -> Path:
        options = {**FIELDS, "prompts": str(world.prompts), **fields}
        with pytest.MonkeyPatch.context() as patch:
            if plain:
                patch.setattr(torch.optim, "AdamW", descent)
            run(ppo.STAGE, options, tmp_path / name, policy=world.policy, reward=world.reward)
        return tmp_path / name

    return go


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(path: Path) -> Weights:
    return load_file(str(path / "model.safetensors"))


def moved(before: Path, after: Path, rate: float = RATE) -> Weights:
    """The gradient by which plain descent went from one to the other."""
    one, two = weights(before), weights(after)
    return {name: (one[name] - two[name]).double() / rate for name in one}


def same(found: Weights, expected: Weights, tolerance: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert float((found[name] - expected[name]).abs().max()) <= tolerance, name


def test_first_minibatch(step: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """N: before the first update ratio 1, approx-KL 0, clip fraction 0, and KL to the reference 0: exactly."""
    exact = {"kl": 0.0, "kl_k3": 0.0, "first_ratio": 1.0, "first_approx_kl": 0.0, "first_clipfrac": 0.0}

    def check(output: Path) -> None:
        (line,) = log_of(output)
        assert {name: line[name] for name in exact} == exact
        assert line["approx_kl"] > 0  # the second minibatch has an update before it
        assert line["sampling_mismatch"] < 1e-4  # the sampler's own log-probabilities are the same but for rounding

    check(step("one", minibatch_size=4))
    check(step("micro", minibatch_size=4, micro_batch_tokens=20, gradient_checkpointing=True))
    hot = selected_logprobs
    monkeypatch.setattr(episodes, "selected_logprobs", lambda logits, targets, temperature: hot(logits, targets, 1.0))
    with pytest.raises(AssertionError):  # twin: the rollout's log-probabilities without the temperature
        check(step("broken", minibatch_size=4))


@pytest.fixture
def two_steps(step: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Sampled]:
    """Outputs after one step and after two, and what was sampled in the run of two."""
    one, sampled = step("1"), Sampled(monkeypatch)
    return one, step("2", steps=2), sampled


def test_ppo_step_by_brute_force(world: Any, two_steps: tuple[Path, Path, Sampled]) -> None:
    """All of it at once (Ziegler; InstructGPT 3.5): both gradients of the second step, where KL is no longer 0."""
    one, two, sampled = two_steps
    assert {answer.finished for _, answer in sampled.steps[1]} == {True, False}
    expected = by_brute_force(world, one, one / "value", sampled.steps[1])
    assert abs(expected["metrics"]["kl"]) > 0.01
    same(moved(one, two), expected["policy"])
    same(moved(one / "value", two / "value"), expected["value"])
    for broken in ({"temperature": 1.0}, {"kl_coef": -0.3}, {"lam": 1.0}, {"penalty": 0.0}):
        wrong = by_brute_force(world, one, one / "value", sampled.steps[1], **broken)
        with pytest.raises(AssertionError):
            same(moved(one, two), wrong["policy"])


def test_metrics_over_real_tokens(world: Any, two_steps: tuple[Path, Path, Sampled]) -> None:
    """N's names, means over episodes or real tokens only (TRL 1.12 averages approx-KL and entropy over padding)."""
    one, two, sampled = two_steps
    expected = by_brute_force(world, one, one / "value", sampled.steps[1])["metrics"]
    line = log_of(two)[1]
    agree({name: line[name] for name in expected}, expected, 1e-4)
    padded = {**expected, "value_mean": expected["value_mean"] * expected["length"] / 6}  # twin: over padding too
    with pytest.raises(AssertionError):
        agree({name: line[name] for name in expected}, padded, 1e-4)


def test_value_network_from_the_reward_model(world: Any, step: Callable[..., Path]) -> None:
    """InstructGPT C.4: the value network begins as the reward model (lm-human-preferences: with a zero head)."""

    def check(output: Path) -> None:
        same(weights(output / "value"), weights(world.reward), 1e-12)

    check(step("one", value_learning_rate=1e-30))
    with pytest.raises(AssertionError):
        check(step("moved"))


def test_reference_and_reward_stay(world: Any, two_steps: tuple[Path, Path, Sampled]) -> None:
    """N: reference and reward model are frozen, so KL counts from the policy as it came, step after step."""
    one, two, sampled = two_steps

    def check(reference_moves: bool) -> None:
        expected = by_brute_force(world, one, one / "value", sampled.steps[1])["metrics"]
        agree(log_of(two)[1]["score"], expected["score"], 1e-4)
        agree(log_of(two)[1]["kl"], 0.0 if reference_moves else expected["kl"], 1e-4)

    check(False)
    with pytest.raises(AssertionError):
        check(True)


def test_adam_epsilon(step: Callable[..., Path], world: Any) -> None:
    """N, section on Adam: eps 1e-5. On the first step a weight moves by rate g / (|g| + eps), in PyTorch's form."""
    config = decode(ppo.PPOConfig, {"prompts": "x"}, "ppo")
    assert (config.adam_eps, config.beta1, config.beta2) == (1e-5, 0.9, 0.95)
    gradient = moved(world.policy, step("gradient"))["transformer.wpe.weight"]
    before = weights(world.policy)["transformer.wpe.weight"].double()
    # Weights are kept in float32: as large a rate as makes their rounding small.
    after = weights(step("adam", plain=False, learning_rate=1.0))["transformer.wpe.weight"].double()

    def check(eps: float) -> None:
        expected = gradient / (gradient.abs() + eps)
        seen = gradient.abs() > 2e-4  # below, the gradient itself isn't known well enough
        assert int(seen.sum()) > 50
        assert float((before - after - expected)[seen].abs().max()) < 5e-3

    check(1e-5)
    with pytest.raises(AssertionError):
        check(1e-4)
    agree(loss_oracles.adam([0.3], 1.0, 0.9, 0.95, 1e-5), -0.3 / (0.3 + 1e-5))


def test_adaptive_kl_in_the_loop(step: Callable[..., Path]) -> None:
    """Ziegler 2.2: after each step by that step's KL an answer, with all its episodes over the horizon."""
    measured = log_of(step("fixed", steps=2, minibatch_size=4))[1]["kl"]
    assert measured > 0.01
    target = 1.1 * measured  # so near that the error isn't held at 0.2, and says which KL it was
    log = log_of(step("one", steps=3, minibatch_size=4, adaptive_kl={"target": target, "horizon": 100}))
    assert log[1]["kl"] == measured

    def check(episodes_a_step: int) -> None:
        kl_coef = 0.3
        for line in log:
            agree(line["kl_coef"], kl_coef, 1e-7)
            kl_coef = oracles.adapted(kl_coef, line["kl"], target, episodes_a_step, 100)

    check(8)
    with pytest.raises(AssertionError):
        check(4)


def test_averaged_weights(world: Any, step: Callable[..., Path]) -> None:
    """InstructGPT C.4: average <- d average + (1 - d) weights, once per step, beginning with the policy as it came."""
    # Two minibatches a step: an average that moves with every minibatch is another.
    one, two = step("1", ema=0.75, minibatch_size=4), step("2", ema=0.75, minibatch_size=4, steps=2)
    came, after_one, after_two = weights(world.policy), weights(one), weights(two)

    def check(decay: float) -> None:
        first = {name: decay * came[name] + (1 - decay) * after_one[name] for name in came}
        same(weights(one / "ema"), first, 1e-6)
        same(weights(two / "ema"), {n: decay * first[n] + (1 - decay) * after_two[n] for n in came}, 1e-6)

    check(0.75)
    with pytest.raises(AssertionError):
        check(0.25)


def test_ptx_gradient(world: Any, step: Callable[..., Path]) -> None:
    """InstructGPT Eq 2: the PPO-ptx gradient is PPO's plus gamma times that of the mean loss per token of the text."""
    text = {"pretraining": str(world.text), "ptx_length": 8, "ptx_rows_per_episode": 0.5, "ptx_coef": 27.8}
    plain, mixed = moved(world.policy, step("ppo")), moved(world.policy, step("ptx", **text))
    model = AutoModelForCausalLM.from_pretrained(str(world.policy)).double().eval()
    (document,) = (json.loads(line)["text"] for line in world.text.read_text(encoding="utf-8").splitlines())
    stream = [5 + "abcdefgh".index(letter) for letter in document] + [0]
    assert len(stream) == 33  # 32 targets in 4 rows of 8: half a row for each of 8 episodes is all of them
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, 32, 8):
        row = torch.tensor([stream[start : start + 9]])
        table = model(input_ids=row[:, :-1]).logits[0].log_softmax(-1)
        total = total - table.gather(-1, row[0, 1:].unsqueeze(-1)).sum()
    language = gradients(total / 32, model)

    def check(gamma: float) -> None:
        same(mixed, {name: plain[name] + gamma * language[name] for name in plain}, 3e-4)

    check(27.8)
    for wrong in (27.7, 27.8 / 8, 27.8 * 8):
        with pytest.raises(AssertionError):
            check(wrong)


def test_loss_does_not_depend_on_micro_batches(world: Any, step: Callable[..., Path]) -> None:
    """Sums before means: one row at a time or all at once, the same gradient (TRL 1.12: a mean per micro-batch)."""
    text = {"pretraining": str(world.text), "ptx_length": 8, "ptx_rows_per_episode": 0.5}
    whole = moved(world.policy, step("whole", **text))
    same(moved(world.policy, step("micro", micro_batch_tokens=1, generation_batch_size=3, **text)), whole)
    with pytest.raises(AssertionError):  # twin: another batch is another gradient
        same(moved(world.policy, step("other", seed=1, **text)), whole)


def test_every_episode_once_an_epoch(step: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO: each pass over a step's episodes uses each of them once, in an order of its own."""
    calls: list[list[int]] = []
    rows = episodes.Rollouts.rows

    def watched(self: episodes.Rollouts, indices: Any, device: torch.device) -> Any:
        calls.append(list(indices))
        return rows(self, indices, device)

    monkeypatch.setattr(episodes.Rollouts, "rows", watched)
    step("one", minibatch_size=2, inner_epochs=3)
    # Four minibatches are read; then each epoch has four, of which value and policy network take one after the other.
    assert len(calls) == 4 + 3 * 4 * 2
    orders = [joined(calls[4 + 8 * epoch : 12 + 8 * epoch : 2]) for epoch in range(3)]

    def check(orders: list[list[int]]) -> None:
        assert [sorted(order) for order in orders] == [list(range(8))] * 3
        assert len(set(map(tuple, orders))) == 3

    check(orders)
    for broken in ([orders[0]] * 3, [[*order[:7], order[0]] for order in orders]):
        with pytest.raises(AssertionError):
            check(broken)


def test_settings_of_the_paper() -> None:
    """InstructGPT C.4 (and N for lambda and epsilon): what a config says that leaves everything open."""
    config = decode(ppo.PPOConfig, {"prompts": "x"}, "ppo")
    expected = {"batch_size": 512, "minibatch_size": 64, "inner_epochs": 1, "clip_range": 0.2, "kl_coef": 0.02,
                "gamma": 1.0, "lam": 0.95, "temperature": 1.0, "ema": 0.992, "ptx_coef": 27.8, "warmup_steps": 10,
                "ptx_rows_per_episode": 8.0, "value_learning_rate": 9e-6, "adam_eps": 1e-5}  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    changed = decode(ppo.PPOConfig, {"prompts": "x", "kl_coef": 0.05}, "ppo")
    assert {name: getattr(changed, name) for name in expected} != expected
