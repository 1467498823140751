"""Stage `ppo`: the exact first minibatch, one score everywhere, gradients by brute force, averages and steering."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages import ppo
from gptlife.stages.modeling.loading import DROPOUTS, load_causal
from gptlife.stages.ppo import PPO

FIELDS = {
    "steps": 2, "batch_size": 16, "minibatch_size": 8, "max_new_tokens": 10, "learning_rate": 1e-3,
    "value_learning_rate": 1e-3, "warmup_steps": 0, "kl_coef": 0.1, "sample_every": 1, "ema": None,
}  # fmt: skip
EXACT = {"kl": 0.0, "kl_k3": 0.0, "first_ratio": 1.0, "first_approx_kl": 0.0, "first_clipfrac": 0.0}


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    return {**FIELDS, "prompts": str(tiny.prompts), **changes}


def test_the_score_is_that_of_plain_transformers(tiny: Any, run: Any, taken: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, steps=1, batch_size=4, minibatch_size=4)
    run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    (line,) = log_of(tmp_path / "one")
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.reward_model))
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny.reward_model)).eval()
    rollouts, experience = taken(PPO, ppo.PPOConfig, options, tmp_path / "again")[1:3]
    rows = [prompt.tokens + answer for prompt, answer in zip(rollouts.prompts, rollouts.responses, strict=True)]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, 0]
    assert_close(experience.readings.scores_B, logits, rtol=0, atol=1e-5)
    assert line["score"] == pytest.approx(logits.mean().item(), abs=1e-5)
    assert line["score_std"] == pytest.approx(logits.std(correction=0).item(), abs=1e-5)
    assert line["eos_rate"] == sum(row[-1] == 0 for row in rows) / 4
    # KL is 0: what remains of the reward is the score, less 1 for an answer that never ended.
    assert line["rlhf_reward"] == pytest.approx(line["score"] - (1 - line["eos_rate"]), abs=1e-5)
    assert 0.0 < line["eos_rate"] < 1.0


def gradients_of(loss: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def policy_gradient(tiny: Any, rollouts: Any, experience: Any, temperature: float) -> dict[str, torch.Tensor]:
    """Of -A times the ratio, a mean over response tokens, row by row with plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny.sft)).eval()
    total, count = torch.zeros(()), 0
    for row, (prompt, answer) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        logits = model(input_ids=torch.tensor([prompt.tokens + answer])).logits[0] / temperature
        table = torch.log_softmax(logits, -1)
        for place, token in enumerate(answer):
            logprob = table[len(prompt) - 1 + place, token]
            # The ratio is 1 and inside the clip range, so its gradient is that of the log-probability.
            total = total - experience.advantages_BR[row, place] * torch.exp(logprob - logprob.detach())
            count += 1
    return gradients_of(total / count, model)


@pytest.mark.parametrize("tokens", [60, 4096])
def test_policy_gradient_and_the_pretraining_term(
    tokens: int, tiny: Any, taken: Any, steps_of: Any, tmp_path: Path
) -> None:
    whole = {"minibatch_size": 16, "micro_batch_tokens": tokens, "temperature": 0.8}
    _, rollouts, experience, plain = taken(PPO, ppo.PPOConfig, fields(tiny, **whole), tmp_path / "ppo")
    expected = policy_gradient(tiny, rollouts, experience, 0.8)
    assert_close(plain, expected, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):  # twin: without the temperature
        assert_close(plain, policy_gradient(tiny, rollouts, experience, 1.0), rtol=0, atol=1e-5)

    text = {"pretraining": str(tiny.text), "ptx_coef": 3.0, "ptx_rows_per_episode": 0.5, "ptx_length": 20}
    _, trainer = steps_of(PPO, ppo.PPOConfig, fields(tiny, **whole, **text), tmp_path / "rows")
    assert trainer.ptx is not None
    chosen = trainer.ptx.order.batch(0)
    assert len(set(chosen)) == 8  # half a row for each of 16 episodes
    metrics, _, _, with_text = taken(PPO, ppo.PPOConfig, fields(tiny, **whole, **text), tmp_path / "ptx")

    model = AutoModelForCausalLM.from_pretrained(str(tiny.sft)).eval()
    stream = stream_of(tiny)
    nll, count = torch.zeros(()), 0
    for index in chosen:
        row = torch.tensor([stream[index * 20 : index * 20 + 21]])
        nll = nll + model(input_ids=row, labels=row).loss * (row.shape[1] - 1)
        count += row.shape[1] - 1
    assert metrics["ptx_loss"] == pytest.approx(nll.item() / count, abs=1e-5)
    text_gradient = gradients_of(nll / count, model)
    both = {name: expected[name] + 3.0 * text_gradient[name] for name in expected}
    assert_close(with_text, both, rtol=0, atol=1e-4)
    two = {name: expected[name] + 2.0 * text_gradient[name] for name in expected}
    with pytest.raises(AssertionError):  # twin: coefficient 2
        assert_close(with_text, two, rtol=0, atol=1e-4)


def stream_of(tiny: Any) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.sft))
    texts = [json.loads(line)["text"] for line in tiny.text.read_text(encoding="utf-8").splitlines()]
    return [token for text in texts for token in [*tokenizer(text)["input_ids"], 0]]


def test_value_network_begins_as_the_reward_model(tiny: Any, taken: Any, tmp_path: Path) -> None:
    _, rollouts, experience, _ = taken(PPO, ppo.PPOConfig, fields(tiny, minibatch_size=16), tmp_path / "one")
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny.reward_model)).eval()
    with torch.no_grad():
        for row, (prompt, answer) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
            hidden = model.transformer(input_ids=torch.tensor([prompt.tokens + answer])).last_hidden_state
            values = model.score(hidden)[0, len(prompt) - 1 : -1, 0]
            assert_close(experience.values_BR[row, : len(answer)], values, rtol=0, atol=1e-5)


def test_micro_batches_change_nothing(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    for name, tokens in (("micro", 40), ("whole", 4096)):
        options = fields(tiny, micro_batch_tokens=tokens, generation_batch_size=5 if name == "micro" else 256)
        run(ppo.STAGE, options, tmp_path / name, policy=tiny.sft, reward=tiny.reward_model)
    assert_close(weights(tmp_path / "micro"), weights(tmp_path / "whole"), rtol=0, atol=1e-4)
    with pytest.raises(AssertionError):
        assert_close(weights(tmp_path / "micro"), weights(tiny.sft), rtol=0, atol=1e-4)


def test_averaged_weights(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    for steps in (1, 2):
        options = fields(tiny, steps=steps, ema=0.75)
        run(ppo.STAGE, options, tmp_path / f"{steps}", policy=tiny.sft, reward=tiny.reward_model)
    zero, one, two = weights(tiny.sft), weights(tmp_path / "1"), weights(tmp_path / "2")
    first, second = weights(tmp_path / "1" / "ema"), weights(tmp_path / "2" / "ema")
    for name in zero:
        by_hand = 0.75 * zero[name] + 0.25 * one[name]
        assert_close(first[name], by_hand, rtol=0, atol=1e-6)
        assert_close(second[name], 0.75 * by_hand + 0.25 * two[name], rtol=0, atol=1e-6)
    with pytest.raises(AssertionError):  # twin: one step's average is not the other's
        assert_close(first, second, rtol=0, atol=1e-6)
    AutoModelForCausalLM.from_pretrained(str(tmp_path / "1" / "ema"))


def test_adaptive_kl(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, steps=3, adaptive_kl={"target": 0.5, "horizon": 100}, learning_rate=3e-3)
    run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    log, kl_coef = log_of(tmp_path / "one"), 0.1
    for line in log:
        assert line["kl_coef"] == pytest.approx(kl_coef)
        kl_coef *= 1 + min(max(line["kl"] / 0.5 - 1, -0.2), 0.2) * 16 / 100
    assert log[1]["kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 0.16))  # no KL at first: down by a fifth of 16 / 100


def test_learning_rate_warms_up(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    run(ppo.STAGE, fields(tiny, steps=4, warmup_steps=2), tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    assert [line["learning_rate"] for line in log_of(tmp_path / "one")] == pytest.approx([1e-4, 5.5e-4, 1e-3, 1e-3])


def test_critic_warmup(tiny: Any, run: Any, tmp_path: Path, log_of: Any, weights: Any) -> None:
    options = fields(tiny, steps=1, critic_warmup_steps=1)
    run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    assert "policy_loss" not in log_of(tmp_path / "one")[0]
    assert_close(weights(tmp_path / "one"), weights(tiny.sft), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(weights(tmp_path / "one" / "value"), weights(tiny.reward_model), rtol=0, atol=0)


def test_reward_function(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, reward_function=f"{tiny.functions}:count_e", missing_eos_penalty=0.0, steps=1)
    run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft)
    (line,) = log_of(tmp_path / "one")
    assert [sample["score"] for sample in line["samples"]] == [s["answer"].count("e") for s in line["samples"]]
    assert line["rlhf_reward"] == pytest.approx(line["score"], abs=1e-5)
    assert line["score"] > 0
    assert line["value_mean"] == 0.0  # the head begins at zero
    AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "one" / "value"))


def test_a_reward_that_is_always_the_same(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    options = fields(tiny, reward_function=f"{tiny.functions}:nothing", missing_eos_penalty=0.0, steps=1)
    run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft)
    (line,) = log_of(tmp_path / "one")
    assert line["score"] == 0.0
    assert "var_explained" not in line  # returns without variance: no such number


def test_a_judge_watches(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    judge = {"judge": {"function": f"{tiny.functions}:count_e"}}
    for name, changes in (("watched", judge), ("alone", {})):
        options = fields(tiny, steps=1, batch_size=4, minibatch_size=4, **changes)
        run(ppo.STAGE, options, tmp_path / name, policy=tiny.sft, reward=tiny.reward_model)
    (watched,), (alone,) = log_of(tmp_path / "watched"), log_of(tmp_path / "alone")
    counts = [sample["answer"].count("e") for sample in watched["samples"]]
    assert watched.pop("gold") == sum(counts) / 4
    assert watched.pop("gold_se") == pytest.approx(statistics.stdev(counts) / 4**0.5)
    assert alone["score_se"] == pytest.approx(alone["score_std"] * (4 / 3) ** 0.5 / 4**0.5)  # of the sample, not biased
    assert watched == alone


def test_adapters_are_merged(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    options = fields(tiny, lora={"rank": 4}, learning_rate=1e-2, ema=0.5, steps=1)
    run(ppo.STAGE, options, tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    before, after, average = weights(tiny.sft), weights(tmp_path / "one"), weights(tmp_path / "one" / "ema")
    assert before.keys() == after.keys() == average.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    # Averaged are the factors A and B from (A0, 0): the product's B is halved, so B A0 is; A moves by a little.
    name = "transformer.h.0.mlp.c_fc.weight"
    whole, half = after[name] - before[name], average[name] - before[name]
    assert_close(half, whole / 2, rtol=0, atol=float(whole.abs().max()) * 0.2)
    for part in ("", "ema", "value"):
        assert not list((tmp_path / "one" / part).glob("adapter*"))
    assert weights(tmp_path / "one" / "value").keys() == weights(tiny.reward_model).keys()


def test_dropout_is_off(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(str(tiny.sft))
    model.config.resid_pdrop = model.config.attn_pdrop = model.config.embd_pdrop = 0.5
    model.save_pretrained(str(base))
    AutoTokenizer.from_pretrained(str(tiny.sft)).save_pretrained(str(base))
    loaded = load_causal(base)
    assert [getattr(loaded.config, name) for name in DROPOUTS if hasattr(loaded.config, name)] == [0.0] * 3
    assert {module.p for module in loaded.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert load_causal(base, dropouts={"resid_pdrop": 0.3}).config.resid_pdrop == 0.3
    options = fields(tiny, steps=1, gradient_checkpointing=True)  # which puts the models into train mode
    run(ppo.STAGE, options, tmp_path / "one", policy=base, reward=tiny.reward_model)
    (line,) = log_of(tmp_path / "one")
    assert {name: line[name] for name in EXACT} == EXACT


def test_output_is_plain_transformers(tiny: Any, run: Any, tmp_path: Path) -> None:
    metrics = run(ppo.STAGE, fields(tiny, ema=0.9), tmp_path / "one", policy=tiny.sft, reward=tiny.reward_model)
    json.dumps(metrics, allow_nan=False)
    for part in ("", "ema"):
        tokenizer, model = (
            kind.from_pretrained(str(tmp_path / "one" / part)) for kind in (AutoTokenizer, AutoModelForCausalLM)
        )
        chat = [{"role": "user", "content": "What does Anna have?"}]
        batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        made = model.generate(**batch, max_new_tokens=3, do_sample=True)
        assert made.shape[1] > batch["input_ids"].shape[1]
    value = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "one" / "value"))
    assert value.score.weight.shape == (1, 32)


@pytest.mark.parametrize(
    ("changes", "reward", "message"),
    [
        ({"reward_function": "a:b"}, True, r"^ppo\.reward_function: give either this or the input `reward`"),
        ({}, False, r"^ppo\.reward_function: give either this or the input `reward`"),
        ({"minibatch_size": 5}, True, r"^ppo\.minibatch_size: 5 does not divide batch_size 16; choose one that does"),
    ],
)
def test_refusals(changes: dict[str, Any], reward: bool, message: str, tiny: Any, run: Any, tmp_path: Path) -> None:
    inputs = {"reward": tiny.reward_model} if reward else {}
    with pytest.raises(UserError, match=message):
        run(ppo.STAGE, fields(tiny, **changes), tmp_path / "one", policy=tiny.sft, **inputs)
