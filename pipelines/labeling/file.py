"""One labeler's rows in a file of JSON lines that several labelers may write at once.

A new row is appended and on disk (fsync) before `put` returns. An edited row replaces the old one: the whole file is
written beside it and renamed, so that a reader sees the file before or after, never between. Every write holds the lock
`.<name>.lock` and first reads again what others changed. Rows of other labelers are kept byte by byte. A last line that
was cut off in the middle (power failure) is removed: it was never confirmed. `messages` must be a row's first field.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gptlife.data.errors import UserError
from gptlife.stages.runtime.files import sync_directory

Row = dict[str, Any]
_BEGINNING = b'{"messages": '
"""How each row written here begins; a last line that begins otherwise is not gptlife's and is not removed."""


class LabelFile:
    """Rows by their field `key`; `rows` has those whose `labeler` is this one.

    Raises:
        UserError: when the file can't be read, or a line of it is not a JSON object.
    """

    def __init__(self, path: Path, labeler: str) -> None:
        self.path, self.labeler = path.resolve(), labeler  # a rename must replace the file, not a link to it
        self.rows: dict[str, Row] = {}
        self._seen: tuple[int, ...] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise UserError(f"{path}: can't be opened ({error.strerror}); choose another place") from None

    def put(self, row: Row) -> None:
        """Write a row, in the place of this labeler's row of the same key where there is one. Raises OSError."""
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._locked():
            if row["key"] in self.rows:
                self._rewrite(row["key"], line)
            else:
                self._append(line)
            self.rows = {**self.rows, row["key"]: row}

    def drop(self, key: str) -> None:
        """Remove this labeler's row of a key, if there is one. Raises OSError."""
        with self._locked():
            if key in self.rows:
                self._rewrite(key, b"")
                self.rows = {other: row for other, row in self.rows.items() if other != key}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if self._stamp() != self._seen:
                self._read()
            yield
            self._seen = self._stamp()
        finally:
            os.close(handle)

    def _stamp(self) -> tuple[int, ...] | None:
        with suppress(FileNotFoundError):
            status = os.stat(self.path)
            return status.st_size, status.st_mtime_ns, status.st_ino
        return None

    def _read(self) -> None:
        """Read this labeler's rows, and repair the end of the file."""
        self.rows = {}
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    raise ValueError(f"{type(row).__name__} instead of an object")
            except ValueError as error:
                if number == len(lines) and _BEGINNING.startswith(line[: len(_BEGINNING)]):
                    os.truncate(self.path, sum(len(whole) + 1 for whole in lines[:-1]))
                    return
                raise UserError(f"{self.path}:{number}: not a valid row ({error}); fix or remove the line") from None
            if row.get("labeler") == self.labeler and isinstance(row.get("key"), str):
                self.rows[row["key"]] = row
        if lines[-1]:
            self._append(b"\n")

    def _append(self, line: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                _write(file, line)
            except OSError:
                os.truncate(self.path, before)  # half a line would damage the next one
                raise
        if before == 0:
            sync_directory(self.path.parent)

    def _rewrite(self, key: str, line: bytes) -> None:
        """The file with this labeler's first row of `key` replaced by `line`, and without further ones of it."""
        lines = self.path.read_bytes().split(b"\n")[:-1]
        mine = [number for number, old in enumerate(lines) if self._is_mine(old, key)]
        lines[mine[0]] = line.removesuffix(b"\n")
        gone = {*mine[1:], *(() if line else mine)}
        beside = self.path.with_name(f".{self.path.name}.new")
        try:
            with open(beside, "wb", buffering=0) as file:
                _write(file, b"".join(old + b"\n" for number, old in enumerate(lines) if number not in gone))
            shutil.copymode(self.path, beside)
            os.replace(beside, self.path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        sync_directory(self.path.parent)

    def _is_mine(self, line: bytes, key: str) -> bool:
        if key.encode() not in line:  # saves parsing most lines
            return False
        row = json.loads(line)
        return bool(row.get("labeler") == self.labeler and row.get("key") == key)


def _write(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
    os.fsync(file.fileno())
