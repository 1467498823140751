"""Gold score and KL of policies on the same prompts, for benchmarks/rivals.py.

A policy answers every prompt once, temperature 1. Of each answer: the gold judge's score, the reward model's, its
tokens, and log pi - log pi_sft summed over them, whose mean over prompts estimates KL(pi || sft) in nats per answer.
Every policy draws with the same random numbers, so two policies' answers to a prompt are paired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlife.data.forms import prompts as load_prompts
from gptlife.data.sources import Data
from gptlife.data.tokens import Encoded
from gptlife.data.village.verdicts import verdicts
from gptlife.reward.objective import selected_logprobs
from gptlife.stages.evals.reward import RewardModel
from gptlife.stages.generation.sampler import encode_prompts, sample, text_of
from gptlife.stages.modeling import loading
from gptlife.stages.modeling.forward import SelectedLogits, inputs_of, marks_of

MAX_NEW_TOKENS = 64
_ROWS = 50
Measured = dict[str, list[float]]
"""`gold`, `kl` (nats), `proxy` and `tokens` of the answer to each prompt."""


@dataclass(frozen=True)
class Question:
    """One policy to measure, against which SFT model and reward model, on which prompts."""

    policy: Path
    sft: Path
    reward: Path
    prompts: Data
    cache: Path
    """Where the answer is kept."""


def measure_all(questions: Sequence[Question], jobs: int) -> list[Measured]:
    """The answers in order; what is kept already is read, the rest is measured in so many processes."""
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(measure, questions))


@torch.no_grad()
def measure(question: Question) -> Measured:
    """Sample, judge, score and read; kept in `question.cache`."""
    if question.cache.is_file():
        kept: Measured = json.loads(question.cache.read_text(encoding="utf-8"))
        return kept
    prompts = load_prompts(question.prompts, 0)
    tokenizer = loading.load_tokenizer(question.policy)
    policy = loading.load_causal(question.policy, tokenizer).eval()
    sft = SelectedLogits(loading.load_causal(question.sft, tokenizer)).eval()
    encoded = encode_prompts(tokenizer, prompts, policy, MAX_NEW_TOKENS, "rivals.prompts")
    answers = sample(
        policy, encoded, max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, eos=tokenizer.eos_token_id, seed="rivals"
    )
    responses = [answer.tokens for answer in answers]
    scorer = RewardModel(question.reward, None, torch.device("cpu"))
    rows = [prompt.followed_by(response) for prompt, response in zip(encoded, responses, strict=True)]
    of_sft = _sums(sft, rows)
    measured = {
        "gold": [verdict["score"] for verdict in verdicts(prompts, [text_of(tokenizer, each) for each in responses])],
        "kl": [sum(answer.logprobs) - other for answer, other in zip(answers, of_sft, strict=True)],
        "proxy": scorer.combined(scorer.member_scores(rows)).tolist(),
        "tokens": [float(len(each)) for each in responses],
    }
    measured = {name: [round(value, 5) for value in values] for name, values in measured.items()}
    question.cache.parent.mkdir(parents=True, exist_ok=True)
    question.cache.write_text(json.dumps(measured), encoding="utf-8")
    return measured


def _sums(model: Any, rows: Sequence[Encoded]) -> list[float]:
    """Log-probability of each row's marked tokens, in nats."""
    sums: list[float] = []
    for first in range(0, len(rows), _ROWS):
        batch = rows[first : first + _ROWS]
        inputs = inputs_of(batch, torch.device("cpu"))
        # A mark is on the token that is learnt; the logits that give it are at the position before.
        select_BT = marks_of(batch, torch.device("cpu")).roll(-1, dims=1)
        targets_N = inputs["input_ids"].roll(-1, dims=1)[select_BT]
        logprobs_N = selected_logprobs(model(inputs, select_BT), targets_N, 1.0)
        sums += [float(part.sum()) for part in logprobs_N.split([sum(row.marks) for row in batch])]
    return sums
