"""The evaluation's reward is the score that PPO's loop computes, for the same prompts and sampled tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.errors import UserError
from gptlife.data.tokens import encode_prompt, encode_text
from gptlife.stages import evaluation
from gptlife.stages.evals import candidates, reward
from gptlife.stages.generation.sampler import Answer, text_of
from gptlife.stages.modeling.loading import load_tokenizer
from gptlife.stages.ppo import PPO, PPOConfig

NAMES = ("Anna", "Bert", "Cleo", "Dora", "Emil", "Fred", "Gina", "Hugo")
VERBS = ("have", "see", "want", "like", "own", "hold", "love", "get", "hide", "find", "lose", "sell")
LONGEST = 8
"""Tokens of an answer: some of the policy's answers end before, some are cut off."""


Scored = dict[str, tuple[bool, float, float]]
"""By prompt: whether the answer ended, PPO's score, the evaluation's."""


@pytest.fixture
def scored(
    taken: Callable[..., Any], run: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Scored]:
    """`scored()`: a step of PPO over all prompts, and an evaluation that gets the tokens which PPO sampled."""
    questions = [f"What does {name} {verb}?" for name in NAMES for verb in VERBS]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions), encoding="utf-8")
    fields = {"prompts": str(prompts), "max_new_tokens": LONGEST}
    steps = {"steps": 1, "batch_size": len(questions), "minibatch_size": len(questions)}
    _, rollouts, experience, _ = taken(PPO, PPOConfig, {**fields, **steps}, tmp_path / "ppo")
    tokenizer, eos = load_tokenizer(tiny.sft), load_tokenizer(tiny.sft).eos_token_id
    finished = [response[-1] == eos for response in rollouts.responses]
    sampled = {
        tuple(prompt.tokens): Answer(response, [], ended)
        for prompt, response, ended in zip(rollouts.prompts, rollouts.responses, finished, strict=True)
    }
    by_prompt = dict(zip(sampled, experience.readings.scores_B.tolist(), strict=True))
    monkeypatch.setattr(
        candidates, "sample", lambda model, prompts, **_: [sampled[tuple(prompt.tokens)] for prompt in prompts]
    )

    def evaluate() -> Scored:
        judge = {"judge": {"reward_model": True}}
        run(evaluation.STAGE, {**fields, **judge}, tmp_path / "evaluation", sft=tiny.sft, reward=tiny.reward_model)
        pairs: Scored = {}
        for line in (tmp_path / "evaluation" / "answers.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompt, given = tuple(encode_prompt(tokenizer, row["messages"]).tokens), row["answers"]["sft"]
            answer = sampled[prompt]
            assert (given["text"], given["finished"]) == (text_of(tokenizer, answer.tokens), answer.finished)
            # Tokens that the tokenizer would not write for their text can't come back from it.
            if encode_text(tokenizer, given["text"]) == [token for token in answer.tokens if token != eos]:
                pairs[row["messages"][0]["content"]] = (answer.finished, by_prompt[prompt], given["score"])
        return pairs

    return evaluate


def test_it_is_ppos_score(scored: Callable[[], Scored]) -> None:
    pairs = scored()
    for kind in (True, False):
        assert sum(ended is kind for ended, _, _ in pairs.values()) >= 3
    for _, ppos, ours in pairs.values():
        assert ours == pytest.approx(ppos, abs=1e-5)


def test_it_is_not_where_every_answer_gets_the_end_token(
    scored: Callable[[], Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = reward.encode_answers
    monkeypatch.setattr(
        reward, "encode_answers", lambda tokenizer, messages, answers, _, **how: encode(
            tokenizer, messages, answers, None, **how
        )
    )  # fmt: skip
    for ended, ppos, ours in scored().values():
        assert (ours == pytest.approx(ppos, abs=1e-5)) is ended


def test_a_row_over_the_context_is_cut(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    messages = [{"role": "user", "content": "What does Anna have?"}]
    model = reward.RewardModel(tiny.reward_model, None, torch.device("cpu"))
    whole, short = model.encode(messages, ["A red hat.", "A"], [True, False], "prompt 1")
    assert short == encode_prompt(model.tokenizer, messages).followed_by(encode_text(model.tokenizer, "A"))
    model.limit = len(whole) - 2
    cut = whole.without_last().without_last()
    assert model.encode(messages, ["A red hat.", "A"], [True, False], "prompt 1") == [cut, short]
    model.limit = len(short) - 1
    with pytest.raises(UserError, match=rf"^prompt 1 has {model.limit} tokens, the limit is {model.limit}; shorten it"):
        model.encode(messages, ["A"], [False], "prompt 1")
