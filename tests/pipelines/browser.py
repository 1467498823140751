"""A headless Chromium over the DevTools protocol with nothing but the standard library.

The protocol runs over two pipes (file descriptors 3 and 4 of the browser), NUL-terminated JSON both ways; see
chromedevtools.github.io/devtools-protocol. A page is one attached session.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
_KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


def find() -> str | None:
    """The browser's path, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One browser process with one page; a context manager that ends it."""

    def __init__(self, program: str, profile: Path, seconds: float = 30) -> None:
        self.seconds, self._buffer, self._number = seconds, b"", 0
        self.problems: list[str] = []
        """Uncaught exceptions, console errors and violations of the page's security policy."""
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        # Above 9, so that the copies to 3 and 4 overwrite neither.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]
        self._process = os.posix_spawn(
            program,
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)),
                *((os.POSIX_SPAWN_DUP2, fd, place) for fd, place in zip(high, (3, 4), strict=True)),
            ],
        )
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self._session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # a browser whose pipe is closed ends
        os.close(self._in)
        os.waitpid(self._process, 0)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one protocol method, on the page once there is one."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(event["params"]["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + self.seconds
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the browser said nothing for {self.seconds} s")
            if not (more := os.read(self._in, 1 << 16)):
                raise RuntimeError("the browser ended")
            self._buffer += more
        first, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(first))

    def open(self, url: str, width: int = 1280, height: int = 900, phone: bool = False) -> None:
        """Go to a page, in a window of this size."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self("Emulation.setTouchEmulationEnabled", enabled=phone)
        self("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        end = time.monotonic() + self.seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"not true after {self.seconds} s: {expression}")
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys one after another: characters, or names such as Enter and ArrowUp."""
        for key in keys:
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            code = {"key": key, "windowsVirtualKeyCode": _KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)}
            self("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **code)
            self("Input.dispatchKeyEvent", type="keyUp", **code)

    def write(self, text: str) -> None:
        """Text into what has the focus."""
        self("Input.insertText", text=text)

    def centre(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is in the window."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        return x, y

    def drag(self, start: tuple[float, float], *path: tuple[float, float]) -> None:
        """Press the mouse at `start`, move it along `path`, let go; without a path it is a click."""
        steps = [("mouseMoved", start, 0), ("mousePressed", start, 1), *(("mouseMoved", to, 1) for to in path)]
        for kind, (x, y), buttons in [*steps, ("mouseReleased", (start, *path)[-1], 0)]:
            button = "none" if kind == "mouseMoved" else "left"
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def screenshot(self, path: Path) -> None:
        """The window as a PNG file."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))
