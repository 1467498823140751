"""The page of `gptlife label` and its four requests, on the standard library's HTTP server.

    GET  /<token>/            the page
    GET  /<token>/session     Labeling.session
    GET  /<token>/prompt/7    Labeling.show
    POST /<token>/submit      Labeling.submit

Knowing the token is enough to label. It is drawn at each start and is part of the path, so that no other page in the
same browser can read or post. A `Host` that is not this machine's is refused (DNS rebinding), and so is a post from
another origin or from a plain form. The page may not load from or send to anywhere else (Content-Security-Policy).
Left out: encryption, so use another `--host` than this machine's only in a network that you trust.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import secrets
import sys
import threading
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptlife.data.errors import UserError
from gptlife.pipelines.labeling.session import Labeling

MAX_BODY = 262_144
"""Bytes of a submission: a note of the greatest length, and hundreds of answers."""
_PAGE = Path(__file__).with_name("label.html")


class LabelServer(ThreadingHTTPServer):
    """Serves one labeling; `url` is the page's address, token included.

    Raises:
        UserError: when it can't listen there.
    """

    def __init__(self, labeling: Labeling, host: str = "127.0.0.1", port: int = 8765) -> None:
        self.labeling, self.host, self.token = labeling, host, secrets.token_urlsafe(16)
        self.page = _PAGE.read_text(encoding="utf-8")
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{host}:{port}: can't listen there ({reason}); give another --port or --host") from None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, except a browser that closes the connection."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: its own style and script by their hashes, this server, nothing else."""
    allowed = {}
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inside]
        allowed[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Refusal(Exception):
    """A response with a status other than 200; its text is one line."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    timeout = 30  # seconds that one connection may keep a thread waiting
    server_version, sys_version = "gptlife", ""
    error_message_format, error_content_type = "%(message)s\n", "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _get(self, path: str) -> Any:
        labeling = self.server.labeling
        if path == "":
            return None
        if path == "session":
            return labeling.session()
        if number := re.fullmatch(r"prompt/(\d{1,9})", path):
            return labeling.show(int(number[1]))
        raise _Refusal(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self, path: str) -> Any:
        if path != "submit":
            raise _Refusal(HTTPStatus.NOT_FOUND, "no such page")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers.get('Host')}":
            raise _Refusal(HTTPStatus.FORBIDDEN, "posted from another site")
        if self.headers.get_content_type() != "application/json":
            raise _Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a submission must be application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length):
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "a submission must say its Content-Length")
        if int(length) > MAX_BODY:
            raise _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a submission has at most {MAX_BODY} bytes")
        try:
            sent = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "a submission must be JSON") from None
        return self.server.labeling.submit(sent)

    def _answer(self, handle: Any) -> None:
        try:
            content = handle(self._path())
        except _Refusal as refusal:
            self._send(refusal.status, "text/plain", f"{refusal}\n")
        except UserError as error:
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", f"{error}\n")
        except OSError as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise  # the browser closed the connection; the disk is fine
            text = (
                f"{self.server.labeling.output.name}: can't be written ({error.strerror}); make room, then save again"
            )
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{text}\n")
        else:
            if content is None:
                self._send(HTTPStatus.OK, "text/html", self.server.page)
            else:
                self._send(HTTPStatus.OK, "application/json", json.dumps(content))

    def _path(self) -> str:
        """The part of the path after the token. Raises _Refusal for another Host or token."""
        if not self._is_this_machine(self.headers.get("Host", "")):
            raise _Refusal(HTTPStatus.FORBIDDEN, "this name is not the server's; open the address that it printed")
        token, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refusal(HTTPStatus.FORBIDDEN, "wrong or old address; open the one that `gptlife label` printed last")
        return rest

    def _is_this_machine(self, host: str) -> bool:
        # Rebinding needs a name that an attacker's DNS answers for; an IP address or localhost is not one.
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in ("localhost", self.server.host) or ipaddress.ip_address(name) is not None
        except ValueError:
            return False

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            "Content-Security-Policy", policy(self.server.page) if kind == "text/html" else "default-src 'none'"
        )
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the terminal is the labeler's, and the path has the token."""


def serve(server: LabelServer, browser: bool) -> None:
    """Serve until Ctrl-C, then print how many prompts are left."""
    labeling = server.labeling
    try:
        with server:
            of_all = f"{labeling.left()} of {len(labeling.prompts)} prompts"
            print(f"{labeling.labeler}: {of_all} to rank, into {labeling.output}")
            print(f"open {server.url}   (Ctrl-C to stop)", flush=True)
            if browser:
                # A browser in the terminal would keep this thread until it is closed.
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
            server.serve_forever()
    except KeyboardInterrupt:
        print(f"\n{labeling.done()} ranked, {labeling.left()} left; run the same command again to continue")
