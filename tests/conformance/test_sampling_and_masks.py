"""Details of sampling and masks, one test each: what is read where, and what counts.

N: the blog post "The N Implementation Details of RLHF with PPO"; N+: Huang et al. 2024 (arXiv 2403.17031).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import pytest
import shipped
import torch
from compare import agree, joined
from torch import Tensor

from gptlife.data.tokens import Encoded, encode_conversation
from gptlife.reward.objective import selected_logprobs
from gptlife.stages.generation import sampler
from gptlife.stages.generation.sampler import Answer, sample
from gptlife.stages.modeling import loading
from gptlife.stages.modeling.forward import SelectedLogits, SelectedScores, pad_right
from gptlife.stages.modeling.scorer import score
from gptlife.stages.rl import episodes

EOS, PAD = 0, 1
PROMPTS = [[3, 5, 4], [3, 5, 6, 7, 8, 9, 10, 4], [3, 11, 12, 4], [3, 5, 5, 6, 4]] * 3
ENCODED = [Encoded.prompt(tokens) for tokens in PROMPTS]


@pytest.fixture(scope="module")
def policy(world: Any) -> Any:
    """As our stages load it, but in float64."""
    return loading.load_causal(world.policy).double().eval()


def answers_of(model: Any, **changes: Any) -> list[Answer]:
    options = {"max_new_tokens": 8, "temperature": 0.7, "eos": EOS, "seed": "s", **changes}
    return sample(model, ENCODED, **options)


@torch.no_grad()
def alone(model: Any, prompt: list[int], answer: list[int], temperature: float) -> list[float]:
    """Log-probabilities of an answer by one forward pass of its row alone: no padding, no cache, no batch."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].tolist()
    places = oracles.response_places(len(prompt), len(answer))
    return [oracles.log_softmax(logits[place], temperature)[token] for place, token in zip(places, answer, strict=True)]


def sampled_as_alone(model: Any, answers: list[Answer], temperature: float = 0.7) -> None:
    """The sampler's log-probabilities are those of each row alone (it keeps them in float32)."""
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        agree(answer.logprobs, alone(model, prompt, answer.tokens, temperature), 1e-5)


class Patched:
    """A model whose arguments a test changes on the way in."""

    def __init__(self, model: Any, change: Callable[[dict[str, Any]], None]) -> None:
        self.model, self.change = model, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **arguments: Any) -> Any:
        self.change(arguments)
        return self.model(**arguments)


def from_the_edge(arguments: dict[str, Any]) -> None:
    """Positions that count the padding on the left."""
    width, new = arguments["attention_mask"].shape[1], arguments["input_ids"].shape[1]
    arguments["position_ids"] = torch.arange(width - new, width).expand_as(arguments["input_ids"])


def sees_padding(arguments: dict[str, Any]) -> None:
    """Attention to the padding on the left."""
    arguments["attention_mask"] = torch.ones_like(arguments["attention_mask"])


def test_left_padding_and_position_ids(policy: Any) -> None:
    """N (queries padded on the left, positions from the mask); N+ detail 3."""
    sampled_as_alone(policy, answers_of(policy))
    with pytest.raises(AssertionError):
        sampled_as_alone(policy, answers_of(Patched(policy, from_the_edge)))


def test_left_padding_is_not_attended(policy: Any) -> None:
    """N: the attention mask hides the padding."""
    sampled_as_alone(policy, answers_of(policy))
    with pytest.raises(AssertionError):
        sampled_as_alone(policy, answers_of(Patched(policy, sees_padding)))


def test_logits_predict_the_next_token(policy: Any) -> None:
    """N+ code: the logits of a response's tokens are those one position to the left, from the prompt's last on."""
    answers = answers_of(policy)
    rollouts = shipped.as_rollouts(ENCODED, answers, 8)

    def check(select: Callable[[Tensor], Tensor]) -> None:
        rows = rollouts.rows(range(len(PROMPTS)), shipped.CPU)
        with torch.no_grad():
            logits_NV = SelectedLogits(policy)(rows.inputs, select(rows.select_BT))
        found = selected_logprobs(logits_NV, rows.targets_N, 0.7)
        expected = [alone(policy, p, a.tokens, 0.7) for p, a in zip(PROMPTS, answers, strict=True)]
        agree(found, joined(expected), 1e-5)  # the reader gives float32

    check(lambda select_BT: select_BT)
    with pytest.raises(AssertionError):
        check(lambda select_BT: select_BT.roll(1, 1))


def test_truncation_after_first_eos(policy: Any) -> None:
    """N+ detail 23 (EOS trick): an answer goes up to its first end-of-text, that token included."""
    would_say = [[5, 9, 0, 0, 3], [0, 4, 4, 4, 0], [5, 6, 7, 8, 5], [7, 7, 7, 7, 0]]
    by_hand = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    rollouts = shipped.scripted_rollouts(would_say, EOS)
    agree(rollouts.mask_BR.int(), by_hand)
    assert rollouts.finished_B.tolist() == [True, True, False, True]
    assert rollouts.responses == [[5, 9, 0], [0], [5, 6, 7, 8, 5], [7, 7, 7, 7, 0]]
    for wrong in ("drops_eos", "last_eos"):
        with pytest.raises(AssertionError):
            agree(oracles.response_mask(would_say, EOS, wrong), by_hand)

    def ends(answers: list[Answer]) -> None:
        assert {answer.finished for answer in answers} == {True, False}
        for answer in answers:
            assert answer.tokens.count(EOS) == answer.finished
            assert answer.finished == (answer.tokens[-1] == EOS)
            assert answer.finished or len(answer.tokens) == 8

    ends(answers_of(policy))
    gone_on = [Answer([*answer.tokens, 5], answer.logprobs, answer.finished) for answer in answers_of(policy)]
    with pytest.raises(AssertionError):
        ends(gone_on)


def test_missing_eos_penalty() -> None:
    """N+ detail 23; taken off the score, not put in its place: a bad unfinished answer stays worse than a good one."""
    would_say = [[5, 9, 0, 6], [5, 5, 5, 5], [5, 5, 5, 0], [6, 6, 6, 6]]
    scores, by_hand = [2.0, 3.0, -1.0, -4.0], [2.0, 1.5, -1.0, -5.5]
    rollouts = shipped.scripted_rollouts(would_say, EOS)
    readings = shipped.readings_of(rollouts.mask_BR, scores_B=torch.tensor(scores))
    agree(episodes.rewards(readings, rollouts, 0.1, 1.5, None).sum(1), by_hand)
    # Clipped first: a bound on scores does not make the penalty smaller.
    agree(episodes.rewards(readings, rollouts, 0.1, 1.5, 2.0).sum(1), [2.0, 0.5, -1.0, -3.5])
    for wrong in ("replaced", "added", "eos_in_last_place_not_seen"):
        with pytest.raises(AssertionError):
            agree(oracles.penalised(scores, would_say, EOS, 1.5, wrong), by_hand)


ROWS = [[5, 6, 7, EOS], [8, 9, 10, 11, 12, EOS], [14, EOS], [15, 16, 17]]


def test_score_at_eos(scorer: Any) -> None:
    """N+ detail 3, N: the score is that of the last real token (the end-of-text, where there is one), padded or not."""
    with torch.no_grad():
        states = [scorer.score(scorer.transformer(torch.tensor([row])).last_hidden_state)[0, :, 0] for row in ROWS]
    found = score(SelectedScores(scorer), [Encoded.prompt(row) for row in ROWS], tokens_per_batch=100)

    def check(place: Callable[[list[int]], int]) -> None:
        agree(found, [float(own[place(row)]) for own, row in zip(states, ROWS, strict=True)], 1e-5)

    check(lambda row: len(row) - 1)
    with pytest.raises(AssertionError):
        check(lambda row: max(0, len(row) - 2))


def test_padding_is_never_read(scorer: Any) -> None:
    """N: the tokens in padding change no score."""
    reader, cpu = SelectedScores(scorer), torch.device("cpu")

    def check(fill: int, last_is_real: bool) -> None:
        last_BT = torch.tensor([[place == len(row) - 1 for place in range(6)] for row in ROWS])
        if not last_is_real:
            last_BT = torch.tensor([[place == 5 for place in range(6)] for _ in ROWS])
        filled, padded = ({"input_ids": pad_right(ROWS, number, cpu)} for number in (fill, PAD))
        agree(reader(filled, last_BT), reader(padded, last_BT), 1e-12)

    for fill in (EOS, 7, 19):
        check(fill, True)
    with pytest.raises(AssertionError):  # twin: read at the last column, which is padding
        check(7, False)


def test_pad_is_not_eos(world: Any, tmp_path: Path) -> None:
    """N+ detail 3: with PAD = EOS the end-of-text is masked like padding, and no answer learns to end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(world.policy))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(str(tmp_path))
    AutoModelForCausalLM.from_pretrained(str(world.policy)).save_pretrained(str(tmp_path))
    chat = [{"role": "user", "content": "bad"}, {"role": "assistant", "content": "cab"}]

    def check(loaded: Any) -> None:
        assert loaded.pad_token_id != loaded.eos_token_id
        row = encode_conversation(loaded, chat)
        # The end-of-text is a target; masked by padding's id it would not be.
        learnt = [
            token for token, here in zip(row.tokens, row.marks, strict=True) if here and token != loaded.pad_token_id
        ]
        assert learnt[-1] == EOS
        assert loading.load_causal(tmp_path).config.pad_token_id != EOS

    check(loading.load_tokenizer(tmp_path))
    with pytest.raises(AssertionError):
        check(tokenizer)


def test_temperature_inside_logprobs(policy: Any) -> None:
    """N: logits are divided by the sampling temperature before every log-probability; otherwise measured KL jumps."""
    answers = answers_of(policy)
    expected = [alone(policy, prompt, answer.tokens, 0.7) for prompt, answer in zip(PROMPTS, answers, strict=True)]

    def check(temperature: float) -> None:
        agree(joined(row[: len(e)] for row, e in zip(read(policy, answers, temperature), expected, strict=True)),
              joined(expected), 1e-5)  # fmt: skip

    check(0.7)
    for other in (1.0, 1 / 0.7):
        with pytest.raises(AssertionError):
            check(other)
    # The sampler draws from that very distribution, and says so.
    sampled_as_alone(policy, answers_of(policy))
    with pytest.raises(AssertionError):
        sampled_as_alone(policy, answers_of(policy), temperature=1.0)


def read(policy: Any, answers: list[Answer], temperature: float) -> list[list[float]]:
    """Log-probabilities of answers as a step reads them, of the policy and of the same one as its reference."""
    from contextlib import nullcontext

    from accelerate import Accelerator

    reader, rollouts = SelectedLogits(policy), shipped.as_rollouts(ENCODED, answers, 8)

    def unscored(group: Any, inputs: Any, last_BT: Tensor) -> Tensor:
        return torch.zeros(len(group))

    groups = [range(5), range(5, len(PROMPTS))]
    readings = episodes.read(
        Accelerator(cpu=True), reader, (reader, nullcontext), None, unscored, rollouts, groups, temperature
    )
    agree(readings.ref_logprobs_BR, readings.logprobs_BR, 0.0)
    rows: list[list[float]] = readings.logprobs_BR.tolist()
    return rows


def test_sampled_from_the_distribution(policy: Any) -> None:
    """Unbiased KL estimators need tokens drawn from the very distribution whose log-probabilities are taken."""
    count = 3000
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].tolist()
    found = sample(
        policy, [ENCODED[0]] * count, max_new_tokens=1, temperature=0.7, eos=EOS, seed="d", generation_batch_size=count
    )

    def check(temperature: float) -> None:
        for token, logprob in enumerate(oracles.log_softmax(logits, temperature)):
            share, p = sum(answer.tokens == [token] for answer in found) / count, math.exp(logprob)
            assert abs(share - p) < 4.5 * (p * (1 - p) / count) ** 0.5 + 1e-3

    check(0.7)
    with pytest.raises(AssertionError):
        check(1.0)


def test_draws_differ_by_prompt(policy: Any) -> None:
    """N (a seed for each process): equal prompts get unlike answers, the same ones however they are batched."""

    def check(numbers: list[int]) -> None:
        found = [a.tokens for a in answers_of(policy, numbers=numbers)]
        assert len({tuple(tokens) for tokens in found[::4]}) > 1  # PROMPTS repeats after four
        assert found == [a.tokens for a in answers_of(policy, numbers=numbers, generation_batch_size=5)]

    check(list(range(len(PROMPTS))))
    with pytest.raises(AssertionError):  # twin: one number for all, as one seed on every process
        check([0] * len(PROMPTS))


def test_dropout_off(world: Any) -> None:
    """N, N+ detail 7: no dropout anywhere, so that log-probabilities can be had twice."""
    from transformers import AutoModelForCausalLM

    tokens = torch.tensor([PROMPTS[1]])

    @torch.no_grad()
    def check(model: Any) -> None:
        model.train()  # as gradient checkpointing needs it
        agree(model(input_ids=tokens).logits, model(input_ids=tokens).logits, 0.0)

    check(loading.load_causal(world.policy))
    check(loading.load_scorer(world.reward))
    with pytest.raises(AssertionError):  # twin: the files say 0.1, as GPT-2's do
        check(AutoModelForCausalLM.from_pretrained(str(world.policy)))


def test_softmax_in_float32(policy: Any) -> None:
    """Log-probabilities of half-precision logits are taken in float32: bfloat16 keeps two or three digits."""
    import copy

    half = copy.deepcopy(policy).bfloat16()
    tokens_BT = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        logits_TV = half(input_ids=tokens_BT).logits[0]
        read_TV = SelectedLogits(half)({"input_ids": tokens_BT}, torch.ones_like(tokens_BT).bool())
    expected = oracles.logprobs([logits_TV.double().tolist()], [[5] * 8], 0.7)[0]
    agree(selected_logprobs(read_TV, torch.full((8,), 5), 0.7), expected, 1e-5)
    # The sampler, which sees the same logits at the last position.
    (answer,) = sample(half, [ENCODED[1]], max_new_tokens=1, temperature=0.7, eos=EOS, seed="h")
    agree(answer.logprobs, [oracles.log_softmax(logits_TV[-1].double().tolist(), 0.7)[answer.tokens[0]]], 1e-5)
    coarse_T = (logits_TV / 0.7).log_softmax(-1)[:, 5].float()
    with pytest.raises(AssertionError):
        agree(coarse_T, expected, 1e-5)


def test_leaving_the_batch_changes_nothing(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that has ended leaves the batch (N+ decodes on and cuts); the others' answers stay the same."""
    monkeypatch.setattr(sampler, "COMPACT_SHARE", 2.0)  # never
    together = answers_of(policy, max_new_tokens=20)
    assert len({len(answer.tokens) for answer in together}) > 3

    def check(others: list[Answer]) -> None:
        assert [answer.tokens for answer in others] == [answer.tokens for answer in together]
        for one, two in zip(others, together, strict=True):
            agree(one.logprobs, two.logprobs, 1e-5)

    monkeypatch.setattr(sampler, "COMPACT_SHARE", 0.0)  # whenever one has ended
    check(answers_of(policy, max_new_tokens=20))
    with pytest.raises(AssertionError):
        check(answers_of(policy, max_new_tokens=20, seed="another"))
