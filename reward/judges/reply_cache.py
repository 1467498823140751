"""The file that keeps a language model's replies: one line of JSON per reply, under the hash of its request."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

from gptlife.data.errors import UserError


def digest(value: Any) -> str:
    """sha256 of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Kept(NamedTuple):
    """A reply as the file has it; `verdict` is what `llm_prompt.verdict_of` read in it."""

    verdict: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    retries: int
    reply: str


class ReplyCache:
    """Replies by request, in memory and in a file that gets a line as soon as a reply arrives; None: no file.

    Raises:
        UserError: when a line of the file is not a reply.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._writing = path, threading.Lock()
        self._replies = _read(path) if path is not None and path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Kept:
        return self._replies[key]

    def keys(self) -> frozenset[str]:
        """The requests that have a reply."""
        return frozenset(self._replies)

    def add(self, key: str, reply: Kept) -> None:
        """Keep a reply; may be called from several threads."""
        with self._writing:
            self._replies[key] = reply
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"request": key, **reply._asdict()}) + "\n")


def _read(path: Path) -> dict[str, Kept]:
    """The file's replies. A last line that a kill cut short is removed, so that the next one starts on its own line."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    replies = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            key = str(row.pop("request"))
            replies[key] = Kept(**row)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"{path}:{number}: not a judge's reply; remove the line") from None
    return replies
