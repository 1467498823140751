"""A chat endpoint in OpenAI's manner: one request, asked again while that may help.

    POST {url}/chat/completions {"model", "messages", ...}  ->  choices[0].message.content and usage

Asked again: no answer in time, a broken connection, HTTP 408, 429 and 5xx, a body that is no completion. The wait
before retry k = 0, 1, ... is drawn from [m / 2, m], m = min(2^k, 60) seconds (exponential backoff; the jitter keeps
parallel requests from coming back together). It is never shorter than the server's Retry-After (RFC 9110, section
10.2.3).

The key goes into the Authorization header and nowhere else. The standard library's client does little, which is wanted
here: it follows no redirect, which would carry the key elsewhere, and takes no proxy from the environment. Left out:
streaming, connections that are kept open (an answer takes far longer than a handshake).
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gptlife.data.errors import UserError

Sleep = Callable[[float], object]

_LONGEST_BACKOFF = 60.0
_LONGEST_WAIT = 600.0  # seconds; a server that asks for more has a quota, which no waiting of ours mends
_HOPELESS = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)
_SHOWN = 200  # characters of a server's message


class Reply(NamedTuple):
    """What came back: the text, tokens as the server counted them (None: it told none), retries that it took."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    retries: int


class _PassingError(Exception):
    """A failure that another try may mend; `wait` is the server's Retry-After in seconds."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class Endpoint:
    """One endpoint and its key; `chat` may be called from several threads.

    Raises:
        UserError: when the environment has no variable `key_variable`, or its value is no key.
    """

    def __init__(
        self,
        url: str,
        key_variable: str | None,
        *,
        timeout: float,
        retries: int,
        place: str,
        sleep: Sleep | None = None,
    ) -> None:
        self._url, self._place = url.rstrip("/"), place
        self._timeout, self._retries, self._sleep = timeout, retries, sleep
        self._key_variable, self._key = key_variable, _key_of(key_variable, place)
        self._reached = False

    def chat(self, request: Mapping[str, Any], cancelled: threading.Event) -> Reply:
        """The endpoint's reply to one request.

        Raises:
            UserError: when the endpoint refuses the request or the key, or still fails at the last try.
            CancelledError: when `cancelled` was set before a try.
        """
        body = json.dumps(request).encode()
        for retry in range(self._retries + 1):
            if cancelled.is_set():
                raise CancelledError
            try:
                return Reply(*self._attempt(body), retry)
            except _PassingError as found:
                problem = found
            if problem.wait > _LONGEST_WAIT:
                break
            if retry < self._retries:
                backoff = random.uniform(0.5, 1.0) * min(2.0**retry, _LONGEST_BACKOFF)
                (self._sleep or cancelled.wait)(max(problem.wait, backoff))
        tries = "1 try" if retry == 0 else f"{retry + 1} tries"
        raise self._error(f"{problem} ({tries}); run it again when the server is well")

    def without_key(self, text: str) -> str:
        """The text with the key struck out, should the other side have repeated it."""
        return text.replace(self._key, "***") if self._key else text

    def _attempt(self, body: bytes) -> tuple[str, int | None, int | None]:
        try:
            status, retry_after, text = self._post(body)
        except TimeoutError:
            raise _PassingError(f"no answer within {self._timeout:g} s") from None
        except (OSError, HTTPException) as error:
            what = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, _HOPELESS) and not self._reached:  # never there: a wrong address, not a bad moment
                raise self._error(f"can't be reached ({what}); check the endpoint and start its server") from None
            raise _PassingError(f"the connection broke ({what})") from None
        self._reached = True
        if status == 200:
            return _completion(text)
        said = f"HTTP {status}{self._said(text)}"
        if status in (408, 429) or status >= 500:
            wait = _seconds(retry_after)
            asked = f", asks to wait {wait:.0f} s" if wait > _LONGEST_WAIT else ""
            raise _PassingError(said + asked, wait)
        raise self._error(self._advice(status, said))

    def _post(self, body: bytes) -> tuple[int, str | None, str]:
        """Status, Retry-After and text of one request."""
        parts = urlsplit(self._url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request("POST", f"{parts.path}/chat/completions", body, headers)
            response = connection.getresponse()
            return response.status, response.headers["Retry-After"], response.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def _advice(self, status: int, said: str) -> str:
        if status in (401, 403):  # what such a server says may show parts of the key
            if self._key_variable is None:
                return f"wants a key (HTTP {status}); name the environment variable that holds it in key_variable"
            return (
                f"refuses the key (HTTP {status}); put a valid one into the environment variable {self._key_variable}"
            )
        if 300 <= status < 400:
            return f"HTTP {status}, a redirect, and none is followed; give the final address"
        return f"{said}; check endpoint, model and max_tokens"

    def _error(self, what: str) -> UserError:
        return UserError(f"{self._place}: {self._url}: {what}")

    def _said(self, text: str) -> str:
        """`: ` and the message in an error's body, shortened; nothing where there is none."""
        try:
            body = json.loads(text)
        except ValueError:
            return ""
        for name in ("error", "message", "detail"):
            body = body.get(name, body) if isinstance(body, dict) else body
        # Struck out before it is cut: half a key would not be recognised.
        return f": {' '.join(self.without_key(body).split())[:_SHOWN]}" if isinstance(body, str) else ""


def _key_of(variable: str | None, place: str) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{place}.key_variable: the environment has no {variable}; set it to the endpoint's key")
    # The HTTP client would refuse such a header with a message that shows it.
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{place}.key_variable: what {variable} holds is no key (one word of ASCII); set it anew")
    return key


def _completion(text: str) -> tuple[str, int | None, int | None]:
    """Content and tokens of a completion; no content (all of it spent on reasoning) is empty text."""
    try:
        body = json.loads(text)
        content = body["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise _PassingError("its answer is no chat completion") from None
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = (counts.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return (
        content if isinstance(content, str) else "",
        prompt if isinstance(prompt, int) else None,
        completion if isinstance(completion, int) else None,
    )


def _seconds(retry_after: str | None) -> float:
    """Retry-After as seconds from now: it is a number of seconds or a date; 0 where it is neither."""
    if retry_after is None:
        return 0.0
    try:
        return max(0.0, float(int(retry_after)))
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
