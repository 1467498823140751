"""Requests to a chat endpoint, by the package `openai`, whose failures become one-line errors without the key.

The package sends a request again after a time-out, a broken connection and HTTP 408, 409, 429 and 5xx. It waits about
0.5, 1, 2, 4, 8, 8 ... s, or as long as the server's Retry-After says, up to two minutes; above that it gives up. A
reply with status 200 that is not a completion (a proxy's error page) is asked for again here.

The key goes into the Authorization header and nowhere else. So no redirect is followed, which would carry it to another
server, and neither proxies nor the package's own variables (OPENAI_API_KEY, ...) are read from the environment.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gptlife.data.errors import UserError
from gptlife.reward.judges.config import LLMJudgeConfig

if TYPE_CHECKING:
    import openai

_SHOWN = 200  # characters of a server's message
_LONGEST_WAIT = 8.0  # seconds between two tries, as in openai


class Reply(NamedTuple):
    """The text, the tokens as the server counted them (None: not told), and the retries that it took."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    retries: int


class Cancelled(BaseException):
    """`cancelled` was set. No `Exception`, or openai would try again."""


class ChatClient:
    """One endpoint and its key; `chat` may be called from several threads. `field` is the config field of errors.

    `cancelled`, once set, ends every `chat` before its next try.

    Raises:
        UserError: when `openai` is not installed, or the key's variable is not set or holds something else.
    """

    def __init__(self, config: LLMJudgeConfig, field: str) -> None:
        self.cancelled = threading.Event()
        self._config, self._field = config, field
        self._key = _key_of(config.key_variable, field)
        self._client = _client(config, self._key, self._raise_if_cancelled, field)

    def chat(self, request: Mapping[str, Any]) -> Reply:
        """The endpoint's reply.

        Raises:
            UserError: when the endpoint refuses the request or the key, or the last try fails.
            Cancelled: when `cancelled` is set.
        """
        import openai

        # Headers that the package would otherwise send, two of them from the environment.
        headers = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        if self._key is None:
            headers["Authorization"] = openai.omit
        retries = 0
        for attempt in range(self._config.retries + 1):
            try:
                response = self._client.chat.completions.with_raw_response.create(**request, extra_headers=headers)
            except openai.OpenAIError as error:
                raise self._failure(error) from None
            retries += response.retries_taken
            completion = _completion(response.http_response.text)
            if completion is not None:
                return Reply(*completion, retries + attempt)
            self.cancelled.wait(min(0.5 * 2**attempt, _LONGEST_WAIT))
        raise self._error("the reply is not a chat completion; check that the endpoint speaks OpenAI's protocol")

    def without_key(self, text: str) -> str:
        """The text with the key struck out, in case the server repeated it."""
        return text.replace(self._key, "***") if self._key else text

    def _raise_if_cancelled(self, request: object) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def _failure(self, error: Exception) -> UserError:
        import openai

        if isinstance(error, openai.APITimeoutError):
            return self._error(f"no answer within {self._config.timeout:g} s; run it again when the server is well")
        if isinstance(error, openai.APIStatusError):
            return self._error(self._advice(error.status_code, self._said(error.body)))
        what = self.without_key(" ".join(str(error.__cause__ or error).split()))
        return self._error(f"the connection failed ({what}); check the endpoint and that its server runs")

    def _advice(self, status: int, said: str) -> str:
        if status in (401, 403):  # the message of such a refusal may show parts of the key
            variable = self._config.key_variable
            if variable is None:
                return f"wants a key (HTTP {status}); name the environment variable that holds it in key_variable"
            return f"refuses the key (HTTP {status}); put a valid one into the environment variable {variable}"
        if 300 <= status < 400:
            return f"HTTP {status}, a redirect, and none is followed; give the final address"
        if status in (408, 409, 429) or status >= 500:
            return f"HTTP {status}{said}; run it again when the server is well"
        return f"HTTP {status}{said}; check endpoint, model and max_tokens"

    def _error(self, what: str) -> UserError:
        return UserError(f"{self._field}: {self._config.endpoint}: {what}")

    def _said(self, body: object) -> str:
        """`: ` and the message in an error's body, shortened; empty where there is none."""
        for name in ("error", "message", "detail"):
            body = body.get(name, body) if isinstance(body, dict) else body
        # The key is struck out before the text is cut, since half a key would not be recognised.
        return f": {' '.join(self.without_key(body).split())[:_SHOWN]}" if isinstance(body, str) else ""


def _client(config: LLMJudgeConfig, key: str | None, before_try: Any, field: str) -> openai.OpenAI:
    try:
        import openai
    except ImportError:
        raise UserError(f"{field}: needs the package openai; pip install gptlife[judge]") from None
    return openai.OpenAI(
        api_key=key or "none",
        base_url=config.endpoint.rstrip("/"),
        timeout=config.timeout,
        max_retries=config.retries,
        http_client=openai.DefaultHttpxClient(
            trust_env=False, follow_redirects=False, event_hooks={"request": [before_try]}
        ),
    )


def _key_of(variable: str | None, field: str) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{field}.key_variable: the environment has no {variable}; set it to the endpoint's key")
    # The HTTP client would refuse such a header with a message that shows it.
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{field}.key_variable: the value of {variable} is not a key (one word of ASCII); set it anew")
    return key


def _completion(text: str) -> tuple[str, int | None, int | None] | None:
    """Content and tokens of a completion; no content (all of it spent on reasoning) is empty text. None: not one."""
    try:
        body = json.loads(text)
        content = body["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = (counts.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return (
        content if isinstance(content, str) else "",
        prompt if isinstance(prompt, int) else None,
        completion if isinstance(completion, int) else None,
    )
