"""The client of a chat endpoint, against a stub server in this process: tries, errors of one line, the key."""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat_stub import Answer, Seen, Stub, config, failure, prompts, says

from gptlife.data.errors import UserError
from gptlife.reward.judges import chat_client
from gptlife.reward.judges.llm import LLMJudge

KEY = "sk-very/secret+0123456789"


def one(stub: Stub, **fields: Any) -> float:
    """The preference between two answers of unequal length, in one order: a single request."""
    (preference,) = LLMJudge(config(stub, both_orders=False, **fields)).prefer(prompts(1), ["short"], ["much longer"])
    return preference


def error_of(stub: Stub | str, **fields: Any) -> str:
    """The one line with which judging ends."""
    with pytest.raises(UserError) as caught:
        LLMJudge(config(stub, **fields)).prefer(prompts(1), ["a"], ["b"])
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.__cause__ is None
    return text


# Tries


def test_retry_after_is_honoured(stub: Stub, waits: list[float]) -> None:
    stub.first_fails(
        failure(429, Retry_After="7"), failure(503, Retry_After=formatdate(time.time() + 100, usegmt=True))
    )
    assert one(stub) == 0.5
    assert waits[0] == 7.0
    assert 90 < waits[1] <= 101
    assert len(stub.seen) == 3


def test_a_quota_is_not_waited_for(stub: Stub, waits: list[float]) -> None:
    stub.answer = lambda seen: failure(429, "quota used up", Retry_After="3600")
    assert "HTTP 429: quota used up; run it again" in error_of(stub)
    assert (len(stub.seen), waits) == (1, [])


def test_backoff_doubles_up_to_eight_seconds_with_jitter(stub: Stub, waits: list[float]) -> None:
    stub.first_fails(*[failure(500)] * 7)
    judge = LLMJudge(config(stub, both_orders=False, retries=7))
    assert judge.prefer(prompts(1), ["a"], ["b"]) == [0.5]
    longest = [0.5, 1, 2, 4, 8, 8, 8]
    for wait, most in zip(waits, longest, strict=True):
        assert 0.7 * most <= wait <= most
    assert waits != longest
    assert (judge.usage.retries, judge.usage.calls) == (7, 1)


@pytest.mark.parametrize(
    "broken", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": "x"}]}', b"null", b"\xff"]
)
def test_what_is_not_a_completion_is_asked_for_again(
    broken: bytes, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "_LONGEST_WAIT", 0.0)
    stub.first_fails((200, {}, broken), (200, {}, broken))
    judge = LLMJudge(config(stub, both_orders=False))
    assert judge.prefer(prompts(1), ["a"], ["b"]) == [0.5]
    assert (len(stub.seen), judge.usage.retries) == (3, 2)


def test_a_connection_that_breaks_is_tried_again(stub: Stub, waits: list[float]) -> None:
    stub.first_fails(None, None)
    assert one(stub) == 0.5
    assert len(stub.seen) == 3


def test_silence_is_given_up_and_tried_again(stub: Stub, waits: list[float]) -> None:
    over = threading.Event()

    def silent_twice(seen: Seen) -> Answer:
        if len(stub.seen) <= 2:
            over.wait(10)
        return says("Verdict: tie")

    stub.answer = silent_twice
    assert error_of(stub, timeout=0.1, retries=0).startswith(f"judge.llm: {stub.url}: no answer within 0.1 s; run it")
    assert one(stub, timeout=0.2) == 0.5
    assert len(waits) >= 1
    over.set()


def test_a_failure_ends_the_tries_of_the_others(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, sleeping = threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:  # until the other request was refused
        sleeping.set()
        assert refused.wait(10)

    def answer(seen: Seen) -> Answer:
        if seen.inside("user") == "question 0":
            return failure(500)
        assert sleeping.wait(10)
        return failure(404)

    stub.answer = answer
    monkeypatch.setattr(time, "sleep", sleep)
    judge = LLMJudge(config(stub, both_orders=False, parallel=2))
    judge._client.cancelled = Heard(refused)
    with pytest.raises(UserError, match="HTTP 404"):
        judge.prefer(prompts(2), ["a", "a"], ["b", "b"])
    assert len(stub.seen) == 2  # the request that got a 500 has six tries left and takes none


class Heard(threading.Event):
    """An event that sets another one too."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self.other = other

    def set(self) -> None:
        super().set()
        self.other.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (failure(500, "out of\nmemory"), r"HTTP 500: out of memory; run it again when the server is well$"),
        ((200, {}, b"{}"), r"the reply is not a chat completion; check that the endpoint speaks OpenAI's protocol$"),
        (None, r"the connection failed \(.*disconnected.*\); check the endpoint and that its server runs$"),
        (failure(404, "no model 'm'"), r"HTTP 404: no model 'm'; check endpoint, model and max_tokens$"),
        ((400, {}, {"detail": [{"loc": 1}]}), r"HTTP 400; check endpoint, model and max_tokens$"),
        (
            (302, {"Location": "/elsewhere"}, b""),
            r"HTTP 302, a redirect, and none is followed; give the final address$",
        ),
    ],
)
def test_the_end_is_one_line(
    answer: Answer | None, message: str, stub: Stub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "_LONGEST_WAIT", 0.0)
    stub.answer = lambda seen: answer
    assert re.search(rf"^judge\.llm: {re.escape(stub.url)}: {message}", error_of(stub, retries=2))
    assert {seen.path for seen in stub.seen} == {"/v1/chat/completions"}


def test_no_server(waits: list[float]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        text = error_of(url)
    assert re.search(r"^judge\.llm: \S+: the connection failed \(.*[Cc]onnection refused\); check the endpoint", text)


def test_the_package_is_an_extra(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert error_of(stub) == "judge.llm: needs the package openai; pip install gptlife[judge]"


def test_no_proxy_is_taken_from_the_environment(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert one(stub) == 0.5


# The key


def test_the_key_goes_into_the_header_and_nowhere_else(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    stub.answer = lambda seen: says(f"They sent {seen.headers['authorization']}\nVerdict: tie")
    judge = LLMJudge(config(stub, key_variable="JUDGE_KEY"), cache=tmp_path / "replies")
    judge.prefer(prompts(1), ["a"], ["b"])
    assert stub.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str([(seen.path, seen.body) for seen in stub.seen])
    kept = (tmp_path / "replies").read_text(encoding="utf-8")
    assert "They sent Bearer ***" in kept
    assert KEY not in kept + repr(judge) + repr(judge.usage) + repr(vars(judge))


def test_without_a_variable_no_key_is_sent(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "https://user-of-another-service")
    one(stub)
    assert "authorization" not in stub.seen[0].headers
    assert "another-service" not in str(stub.seen[0].headers)


def test_no_log_shows_the_key(
    stub: Stub, waits: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    stub.first_fails(failure(500), None)
    with caplog.at_level(logging.DEBUG):
        one(stub, key_variable="JUDGE_KEY")
    assert "chat/completions" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
def test_no_error_shows_the_key(status: int, stub: Stub, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    # Where a message is cut, half of the key would be left.
    stub.answer = lambda seen: failure(status, f"Wrong key {KEY} {'x' * 150} {KEY}")
    text = error_of(stub, key_variable="JUDGE_KEY", retries=1)
    assert KEY[:8] not in text
    if status in (401, 403):
        wanted = f"refuses the key (HTTP {status}); put a valid one into the environment variable JUDGE_KEY"
        assert text == f"judge.llm: {stub.url}: {wanted}"
        assert len(stub.seen) == 1
    else:
        assert "Wrong key ***" in text


def test_a_key_is_wanted(stub: Stub) -> None:
    stub.answer = lambda seen: failure(401)
    assert "wants a key (HTTP 401); name the environment variable that holds it in key_variable" in error_of(stub)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the environment has no JUDGE_KEY; set it to the endpoint's key"),
        (" ", "the environment has no JUDGE_KEY; set it to the endpoint's key"),
        ("sk-secret\nsk-other", "the value of JUDGE_KEY is not a key (one word of ASCII); set it anew"),
        ("sk-sécret", "the value of JUDGE_KEY is not a key (one word of ASCII); set it anew"),
    ],
)
def test_no_key_in_the_variable(value: str | None, message: str, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    assert error_of(stub, key_variable="JUDGE_KEY") == f"judge.llm.key_variable: {message}"
