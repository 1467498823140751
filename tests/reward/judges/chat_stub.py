"""A chat endpoint in this process for the tests of the language model as judge, and what they ask it."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from gptlife.data.config import decode
from gptlife.reward.judges.config import LLMJudgeConfig

Answer = tuple[int, dict[str, str], Any]


class Seen(NamedTuple):
    """A request as it arrived, and what stands in its tags."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def user(self) -> str:
        return str(self.body["messages"][1]["content"])

    @property
    def code(self) -> str:
        found = re.match(r"<conversation ([0-9a-f]{16})>\n", self.user)
        assert found
        return found[1]

    def inside(self, name: str) -> str:
        return self.user.split(f"<{name} {self.code}>\n")[1].split(f"\n</{name} {self.code}>")[0]


class Stub:
    """A server that answers as `answer(request)` says: (status, headers, body), or None to hang up."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Callable[[Seen], Answer | None] = lambda seen: says("Verdict: tie")
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen = Seen(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                stub.seen.append(seen)
                answer = stub.answer(seen)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, content = answer
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.errors: list[BaseException | None] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda request, address: self.errors.append(sys.exc_info()[1])  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def first_fails(self, *failures: Answer | None) -> None:
        """These answers once each, then ties."""
        waiting = list(failures)
        self.answer = lambda seen: waiting.pop(0) if waiting else says("Verdict: tie")

    def close(self) -> None:
        """Stop, and fail where a request's handling did."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        # A client that gave up on an answer breaks the pipe; anything else is a fault of the test.
        assert [error for error in self.errors if not isinstance(error, ConnectionError)] == []


def says(text: str | None, **more: Any) -> Answer:
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage, **more}


def longer(seen: Seen) -> Answer:
    """Prefers the longer answer, whichever is shown first."""
    first, second = len(seen.inside("answer-1")), len(seen.inside("answer-2"))
    return says("Because.\nVerdict: " + ("tie" if first == second else "1" if first > second else "2"))


def failure(status: int, message: str = "no", **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, {"error": {"message": message}}


def config(stub: Stub | str, **fields: Any) -> LLMJudgeConfig:
    url = stub if isinstance(stub, str) else stub.url
    return decode(LLMJudgeConfig, {"endpoint": url, "model": "m", "parallel": 1, **fields}, "judge.llm")


def prompt(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def prompts(n: int) -> list[dict[str, Any]]:
    return [prompt(f"question {i}") for i in range(n)]
