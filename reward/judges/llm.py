"""A language model as judge: shown a conversation and two answers, it says which is better.

Both orders are asked, and an answer wins only where it is preferred in both; anything else is a tie (Zheng et al. 2023,
"Judging LLM-as-a-Judge", arXiv 2306.05685, section 3.4: judges prefer a position). A model's verdicts carry less noise
than people's, and without that noise over-optimisation doesn't show (Dubois et al. 2023, AlpacaFarm, arXiv 2305.14387);
measure how far it agrees with people before you trust it.

Every reply is kept in a file as soon as it arrives, under the hash of its request, so an evaluation that is resumed, or
asks about the same pair in the other order, pays for no request twice. A model that changes behind its name goes
unnoticed: delete the file to ask again. Left out: scores for one answer, verdicts from token probabilities.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from gptlife.data.errors import UserError
from gptlife.reward.judges.chat_client import ChatClient
from gptlife.reward.judges.config import LLMJudgeConfig
from gptlife.reward.judges.llm_prompt import chat, verdict_of
from gptlife.reward.judges.reply_cache import Kept, ReplyCache, digest
from gptlife.reward.judges.verdicts import Prompt

_FOR_THE_FIRST = {"1": 1.0, "2": 0.0}  # anything else is a tie


class Usage(NamedTuple):
    """What judging took and how its pairs came out. Calls and tokens are of all replies used, each counted once.

    A resumed evaluation has the numbers of an uninterrupted one, except `cached` and `retries`.
    """

    pairs: int
    """Pairs of answers compared."""
    identical: int
    """Pairs of equal answers: ties, without asking."""
    ties: int
    """Pairs that came out as ties, for whatever reason."""
    position_flips: int
    """Pairs where the other answer won when the order changed: ties."""
    calls: int
    """Replies used."""
    cached: int
    """Replies used that an earlier run had paid for."""
    retries: int
    """Tries that failed before a reply came."""
    unparseable: int
    """Replies without a verdict; their pairs are ties."""
    unmetered: int
    """Replies whose tokens the endpoint did not report; `*_tokens` and `cost` leave them out."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In the currency of the prices; None without prices."""


class _Question(NamedTuple):
    prompt: Prompt
    first: str
    second: str
    key: str


class LLMJudge:
    """Asks a language model which answer is better.

    `cache` is the file of replies, which is created if missing (its folder must exist); None: replies are kept only as
    long as this object. `field` is the config field that errors name.

    Raises:
        UserError: when `openai` or the key is missing, or a line of the cache is not a reply.
    """

    def __init__(self, config: LLMJudgeConfig, *, cache: Path | None = None, field: str = "judge.llm") -> None:
        self._config, self._field = config, field
        self._client = ChatClient(config, field)
        self._replies = ReplyCache(cache)
        self._paid_before = self._replies.keys()
        self._used: set[str] = set()
        self._pairs: Counter[str] = Counter()

    def prefer(self, prompts: Sequence[Prompt], answers_a: Sequence[str], answers_b: Sequence[str]) -> list[float]:
        """For every prompt 1 where answer A is better, 0 where B is, .5 for a tie; A and B swapped give 1 minus it.

        Raises:
            UserError: when the endpoint refuses or keeps failing, and when more than `max_unparseable` of the replies
                have no verdict.
        """
        asked = [self._questions(*row) for row in zip(prompts, answers_a, answers_b, strict=True)]
        self._ask_all({question.key: question for questions in asked for question in questions})
        return [self._preference(questions, a) for questions, a in zip(asked, answers_a, strict=True)]

    @property
    def usage(self) -> Usage:
        """Calls, tokens and cost so far, and how the pairs came out."""
        config = self._config
        replies = [self._replies[key] for key in self._used if key in self._replies]
        prompt_tokens = sum(reply.prompt_tokens or 0 for reply in replies)
        completion_tokens = sum(reply.completion_tokens or 0 for reply in replies)
        cost = None
        if config.prompt_price is not None and config.completion_price is not None:
            cost = (prompt_tokens * config.prompt_price + completion_tokens * config.completion_price) / 1e6
        return Usage(
            pairs=self._pairs["pairs"],
            identical=self._pairs["identical"],
            ties=self._pairs["ties"],
            position_flips=self._pairs["position_flips"],
            calls=len(replies),
            cached=len(self._used & self._paid_before),
            retries=sum(reply.retries for reply in replies),
            unparseable=sum(reply.verdict is None for reply in replies),
            unmetered=sum(None in (reply.prompt_tokens, reply.completion_tokens) for reply in replies),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=cost,
        )

    def _questions(self, prompt: Prompt, a: str, b: str) -> list[_Question]:
        """What to ask about a pair: nothing, one order, or both."""
        if a == b:
            return []
        orders = [(a, b), (b, a)]
        if not self._config.both_orders:  # drawn from the pair itself, so it is the same whichever is called A
            low, high = sorted((a, b))
            orders = [(low, high) if int(digest([prompt["messages"], low, high]), 16) % 2 else (high, low)]
        return [_Question(prompt, first, second, self._key(prompt, first, second)) for first, second in orders]

    def _key(self, prompt: Prompt, first: str, second: str) -> str:
        """The reply's key in the cache: the request without its code, and the texts one by one."""
        request = self._request(prompt, first, second, code="")
        return digest([self._config.endpoint, request, prompt["messages"], first, second])

    def _request(self, prompt: Prompt, first: str, second: str, code: str) -> dict[str, Any]:
        config = self._config
        limits = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        return {
            "model": config.model,
            "messages": chat(config.instruction, prompt, first, second, code),
            **{name: value for name, value in limits.items() if value is not None},
        }

    def _ask(self, question: _Question) -> bool:
        """Send one request and keep the reply; whether it has a verdict. Runs in threads."""
        reply = self._client.chat(self._request(question.prompt, question.first, question.second, secrets.token_hex(8)))
        verdict, text = verdict_of(reply.text), self._client.without_key(reply.text)
        self._replies.add(
            question.key, Kept(verdict, reply.prompt_tokens, reply.completion_tokens, reply.retries, text)
        )
        return verdict is not None

    def _ask_all(self, questions: dict[str, _Question]) -> None:
        """Get a reply to every question; those that arrived are kept, also when this ends with an error."""
        missing = iter([question for key, question in questions.items() if key not in self._replies])
        unparseable = sum(key in self._replies and self._replies[key].verdict is None for key in questions)
        self._used |= questions.keys()
        self._stop_if_unparseable(unparseable, len(questions))
        self._client.cancelled.clear()
        with ThreadPoolExecutor(self._config.parallel) as pool:
            try:
                # A request is sent for each reply that arrived, so that nothing more is paid for after a failure.
                running = {pool.submit(self._ask, question) for question in islice(missing, self._config.parallel)}
                while running:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        unparseable += not future.result()
                        self._stop_if_unparseable(unparseable, len(questions))
                    running |= {pool.submit(self._ask, question) for question in islice(missing, len(finished))}
            except BaseException:  # Ctrl-C too: requests on their way are paid for and waited for, but not tried again
                self._client.cancelled.set()
                raise

    def _preference(self, questions: list[_Question], a: str) -> float:
        """The verdicts on a pair as A's preference; counts how the pair came out."""
        verdicts = set()
        for question in questions:
            for_first = _FOR_THE_FIRST.get(self._replies[question.key].verdict or "", 0.5)
            verdicts.add(for_first if question.first == a else 1 - for_first)
        preference = next(iter(verdicts)) if len(verdicts) == 1 else 0.5
        self._pairs["pairs"] += 1
        self._pairs["identical"] += not questions
        self._pairs["ties"] += preference == 0.5
        self._pairs["position_flips"] += verdicts == {0.0, 1.0}
        return preference

    def _stop_if_unparseable(self, count: int, total: int) -> None:
        """Stop as soon as the final share is sure to exceed the limit."""
        if count and count / total > self._config.max_unparseable:
            raise UserError(
                f"{self._field}: {count} of {total} replies end without a verdict, over max_unparseable "
                f"{self._config.max_unparseable:g}; fix the instruction, raise max_tokens or take a stronger model"
            )
