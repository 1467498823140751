"""An LLM as judge: shown a conversation and two answers, it says which is better.

Both orders are asked, and an answer wins only where it is preferred in both; anything else is a tie (Zheng et al. 2023,
"Judging LLM-as-a-Judge", arXiv 2306.05685, section 3.4: judges prefer a position). An LLM's verdicts carry less noise
than people's, and without that noise over-optimisation doesn't show (Dubois et al. 2023, AlpacaFarm, arXiv 2305.14387):
how far it agrees with people is for the user to measure.

Every reply is kept in a file as soon as it is there, under the hash of its request: an interrupted evaluation pays
nothing twice, and so does one that asks about the same pair again, either way round. A model that changes behind its
name is not seen: delete the file to ask anew. Left out: scores for one answer, verdicts from token probabilities.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from gptlife.data.config import Config, Execution
from gptlife.data.errors import UserError
from gptlife.reward.judges.endpoint import Endpoint, Sleep
from gptlife.reward.judges.verdicts import INSTRUCTION, Replies, Verdict, chat, digest, verdict_of

if TYPE_CHECKING:
    from gptlife.reward.judges.judge import Prompt

Progress = Callable[[int, int], None]

_FOR_THE_FIRST = {"1": 1.0, "2": 0.0}  # anything else is a tie


class LLMJudgeConfig(Config):
    """An LLM behind an OpenAI-compatible endpoint, which compares two answers."""

    endpoint: str
    """`http://host:port/v1`, to which `/chat/completions` is added."""
    model: str
    """The model's name at the endpoint."""
    instruction: str = INSTRUCTION
    """What makes an answer the better one. How to state the verdict is added to it."""
    key_variable: Execution[str | None] = None
    """Environment variable that holds the endpoint's key; null: none is sent. The key itself stands in no file."""
    both_orders: bool = True
    """Ask with either answer first; false halves the cost: the order of each pair is then drawn, and its bias stays."""
    temperature: float | None = Field(0.0, ge=0)
    """Of the verdict's sampling; null: not sent, for models that take no other than their own."""
    max_tokens: int | None = Field(512, ge=1)
    """Longest reply, reasoning included; null: not sent."""
    max_unparseable: Execution[float] = Field(0.05, ge=0, le=1)
    """Share of replies without a verdict above which judging stops; up to it they count as ties."""
    timeout: Execution[float] = Field(120.0, gt=0)
    """Seconds without a sign of life after which a request is given up and asked again."""
    retries: Execution[int] = Field(6, ge=0)
    """Further tries of a request that failed; the waits between them double, from about 1 s to 60 s."""
    parallel: Execution[int] = Field(8, ge=1)
    """Requests at once."""
    prompt_price: Execution[float | None] = Field(None, ge=0)
    """Price of a million prompt tokens, in any currency; null: no cost is told."""
    completion_price: Execution[float | None] = Field(None, ge=0)
    """Price of a million completion tokens, in the same currency."""

    @field_validator("endpoint")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        printable = re.fullmatch(r"[!-~]+", url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or not printable:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "the address has more than host, port and path; a key belongs into key_variable's variable"
            )
        return url

    @model_validator(mode="after")
    def _both_prices(self) -> LLMJudgeConfig:
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("give both prompt_price and completion_price, or neither")
        return self


class Usage(NamedTuple):
    """What judging took and how sure it was. Calls and tokens are those of all replies used, each counted once.

    An evaluation that was interrupted and resumed has the numbers of one that was not, but for `cached` and `retries`.
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
    """Those of them that an earlier run had paid for."""
    retries: int
    """Tries that failed before a reply came."""
    unparseable: int
    """Replies without a verdict; their pairs are ties."""
    unmetered: int
    """Replies whose tokens the endpoint did not tell; `*_tokens` and `cost` are without them."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In the currency of the prices; None: none are given."""


class _Question(NamedTuple):
    prompt: Prompt
    first: str
    second: str
    key: str


class LLMJudge:
    """Asks an LLM which answer is better.

    `cache` is the file of replies, made where there is none (its folder must be there); None: replies live as long as
    this object. `place` begins every complaint. `progress(done, total)` is called in the caller's thread, with the
    requests of one `prefer`. `sleep` replaces the waiting between tries.

    Raises:
        UserError: when the key is not there, or a line of the cache is not one of ours.
    """

    def __init__(
        self,
        config: LLMJudgeConfig,
        *,
        cache: Path | None = None,
        place: str = "judge.llm",
        progress: Progress | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        self._config, self._place, self._progress = config, place, progress
        self._endpoint = Endpoint(
            config.endpoint,
            config.key_variable,
            timeout=config.timeout,
            retries=config.retries,
            place=place,
            sleep=sleep,
        )
        self._replies = Replies(cache)
        self._paid_before = self._replies.keys()
        self._used: set[str] = set()
        self._pairs: Counter[str] = Counter()

    def prefer(self, prompts: Sequence[Prompt], answers_a: Sequence[str], answers_b: Sequence[str]) -> list[float]:
        """For every prompt 1 where answer A is better, 0 where B is, .5 for a tie; A and B swapped give 1 minus it.

        Raises:
            UserError: when the endpoint can't be reached, refuses, or keeps failing; when more than `max_unparseable`
                of the replies have no verdict.
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
        if not self._config.both_orders:  # drawn by the pair itself: the same whichever of the two is called A
            low, high = sorted((a, b))
            orders = [(low, high) if int(digest([prompt["messages"], low, high]), 16) % 2 else (high, low)]
        return [_Question(prompt, first, second, self._key(prompt, first, second)) for first, second in orders]

    def _key(self, prompt: Prompt, first: str, second: str) -> str:
        """What keeps a reply: the request without its code, and the texts apart from each other."""
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

    def _ask(self, question: _Question, cancelled: threading.Event) -> bool:
        """Have one question answered and keep the reply; whether it has a verdict. Runs in threads."""
        request = self._request(question.prompt, question.first, question.second, secrets.token_hex(8))
        reply = self._endpoint.chat(request, cancelled)
        kept = self._endpoint.without_key(reply.text)
        found = Verdict(verdict_of(reply.text), reply.prompt_tokens, reply.completion_tokens, reply.retries, kept)
        self._replies.add(question.key, found)
        return found.verdict is not None

    def _ask_all(self, questions: dict[str, _Question]) -> None:
        """Have a reply to every question; those that came are kept, also where this ends with an error."""
        waiting = [question for key, question in questions.items() if key not in self._replies]
        done, total = len(questions) - len(waiting), len(questions)
        unparseable = sum(key in self._replies and self._replies[key].verdict is None for key in questions)
        self._used |= questions.keys()
        self._stop_if_unparseable(unparseable, total)
        self._tell(done, total)
        cancelled, left = threading.Event(), iter(waiting)
        with ThreadPoolExecutor(self._config.parallel) as pool:
            try:
                # One is sent for one that came back, so that nothing more is paid for after a failure.
                running = {
                    pool.submit(self._ask, question, cancelled) for question in islice(left, self._config.parallel)
                }
                while running:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done, unparseable = done + 1, unparseable + (not future.result())
                        self._stop_if_unparseable(unparseable, total)
                        self._tell(done, total)
                    running |= {pool.submit(self._ask, question, cancelled) for question in islice(left, len(finished))}
            except BaseException:  # also Ctrl-C: those under way are paid for and waited for, but not tried again
                cancelled.set()
                raise

    def _preference(self, questions: list[_Question], a: str) -> float:
        """The verdicts on a pair as A's preference; counts how it came out."""
        found = set()
        for question in questions:
            for_first = _FOR_THE_FIRST.get(self._replies[question.key].verdict or "", 0.5)
            found.add(for_first if question.first == a else 1 - for_first)
        preference = next(iter(found)) if len(found) == 1 else 0.5
        self._pairs["pairs"] += 1
        self._pairs["identical"] += not questions
        self._pairs["ties"] += preference == 0.5
        self._pairs["position_flips"] += found == {0.0, 1.0}
        return preference

    def _stop_if_unparseable(self, count: int, total: int) -> None:
        """Stop as soon as the share can't come out within the limit any more."""
        if count and count / total > self._config.max_unparseable:
            raise UserError(
                f"{self._place}: {count} of {total} replies end without a verdict, over max_unparseable "
                f"{self._config.max_unparseable:g}; mend the instruction, raise max_tokens or take a stronger model"
            )

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)
