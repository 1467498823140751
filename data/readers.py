"""Readers: local files as streams of rows, by their ending.

Files are decoded line by line, so that one broken line is one problem with a line number. It goes to `on_bad`: raised
(the default), counted or collected by the caller. A damaged file is always an error.

Rules, where conventions differ:
- `.txt` is one document, the whole file; Windows line ends become `\\n`.
- `.json` holds a list of objects, or one object per line as `.jsonl` does. Blank lines are skipped. A key that occurs
  twice in an object, NaN and Infinity are refused: JSON has no meaning for them, and Python accepts them silently.
- `.csv` has a header and double quotes. `.tsv` has a header, no quoting (a quote is a character) and no escapes. When
  the caller names columns by number, there is no header, and the columns are "0", "1", ... A quote that is never closed
  has swallowed the rest of the file, so it is an error of the file, not of a row.
- A byte order mark is removed; any encoding other than UTF-8 is refused.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gptlife.data.errors import UserError

ENDINGS = (
    *(kind + packed for kind in (".txt", ".jsonl", ".json", ".csv", ".tsv") for packed in ("", ".gz", ".zst")),
    ".parquet",
)
_CHUNK = 1 << 20  # bytes per read
_DEEPEST = 64
"""How deep the lists and tables of a row may be nested; no format needs more than five levels."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class Row(NamedTuple):
    """One raw row: its file and line (for messages only) and its fields."""

    place: str
    fields: dict[str, Any]


OnBad = Callable[[UserError], None]
"""Receives a row that can't be used; if it returns, reading goes on with the next one."""


def refuse(error: UserError) -> None:
    """The default `on_bad`: raise the error."""
    raise error


def ending_of(path: str) -> str:
    """The longest known ending of a file name; empty if it has none."""
    return max((e for e in ENDINGS if path.lower().endswith(e)), key=len, default="")


def read_file(path: str, numbered: bool = False, on_bad: OnBad = refuse) -> Iterator[Row]:
    """The rows of one file, lazily. `numbered`: a table without a header, columns "0", "1", ...

    Raises:
        UserError: the file is cut short, damaged or can't be opened.
    """
    kind = re.sub(r"\.(gz|zst)$", "", ending_of(path))
    if kind == ".parquet":
        yield from _parquet_rows(path)
    elif kind == ".txt":
        yield from _text_row(path, on_bad)
    elif kind in (".csv", ".tsv"):
        yield from _table_rows(path, kind, numbered, on_bad)
    else:
        yield from _json_rows(path, kind, on_bad)


def read_jsonl(path: Path, act: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file that gptlife itself wrote (people's files have `read_file`, which is stricter).

    Args:
        act: the next act, which ends an error, e.g. "run the stage `comparisons` again".

    Raises:
        UserError: the file can't be opened, or a line of it is not an object in JSON; with the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); {act}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8")) if line else {}
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: damaged ({_reason(error)}); {act}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: damaged (found {type(row).__name__}, not an object); {act}")
        if line:
            rows.append(row)
    return rows


def _chunks(path: str) -> Iterator[bytes]:
    """The file's bytes, unpacked. Raises UserError where it is damaged."""
    try:
        if path.lower().endswith(".zst"):
            yield from _zstd_chunks(path)
        elif path.lower().endswith(".gz"):
            with gzip.open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
        else:
            with open(path, "rb") as plain:
                while chunk := plain.read(_CHUNK):
                    yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: cut short or damaged ({error}); write or fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); check its permissions") from None


def _zstd_chunks(path: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path}: .zst needs the package zstandard; pip install gptlife[zstd]") from None
    # `decompressobj` instead of `stream_reader`: only the former can tell a cut file from a complete one.
    frame, inside = zstandard.ZstdDecompressor().decompressobj(), False
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                while chunk:
                    yield frame.decompress(chunk)
                    inside, chunk = not frame.eof, frame.unused_data if frame.eof else b""
                    if not inside:
                        frame = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if inside:
        raise EOFError("the last frame has no end")


def _lines(path: str, on_bad: OnBad) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end), BOM removed; bad UTF-8 goes to `on_bad`."""
    for number, raw in enumerate(_split_lines(_chunks(path)), start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, raw.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            on_bad(_not_utf8(f"{path}:{number}", raw, error))


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of the unfinished line; joined once, however many chunks it spans
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    if last := b"".join(parts):
        yield last


def _not_utf8(place: str, raw: bytes, error: UnicodeDecodeError) -> UserError:
    byte = f"byte 0x{raw[error.start]:02x} at position {error.start}"
    return UserError(f"{place}: not UTF-8 ({byte}); convert the file to UTF-8 or fix the line")


def _text_row(path: str, on_bad: OnBad) -> Iterator[Row]:
    raw = b"".join(_chunks(path))
    try:
        yield Row(path, {"text": raw.decode("utf-8-sig").replace("\r\n", "\n")})
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        on_bad(_not_utf8(f"{path}:{line}", raw, error))


def _json_rows(path: str, kind: str, on_bad: OnBad) -> Iterator[Row]:
    if kind == ".json" and next(_chunks(path), b"").removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        raw = b"".join(_chunks(path))
        try:
            items = _json(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            broken = raw.count(b"\n", 0, error.start) + 1
            raise _not_utf8(f"{path}:{broken}", raw, error) from None
        except (ValueError, RecursionError) as error:
            place = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else path
            raise UserError(f"{place}: not valid JSON ({_reason(error)}); fix the file") from None
        for index, item in enumerate(items):
            yield from _object_row(f"{path}: row {index + 1}", item, on_bad)
        return
    for number, line in _lines(path, on_bad):
        if line.strip():
            place = f"{path}:{number}"
            try:
                item = _json(line)
            except (ValueError, RecursionError) as error:
                on_bad(UserError(f"{place}: not valid JSON ({_reason(error)}); fix or remove the line"))
                continue
            yield from _object_row(place, item, on_bad, may_have_surrogates=bool(_SURROGATE_ESCAPE.search(line)))


def _json(text: str) -> Any:
    """Decoded JSON. Raises ValueError or RecursionError for text that is not JSON."""
    return json.loads(text, object_pairs_hook=_table, parse_constant=_refuse_constant)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice in an object")
    return table


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _too_deep(item: Any) -> bool:
    level, depth = [item], 0
    while level and depth <= _DEEPEST:
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return bool(level)


def _object_row(place: str, item: Any, on_bad: OnBad, may_have_surrogates: bool = True) -> Iterator[Row]:
    if not isinstance(item, dict):
        kind = type(item).__name__
        on_bad(UserError(f"{place}: a row must be an object {{...}}, found {kind}; fix or remove it"))
    elif _too_deep(item):
        on_bad(UserError(f"{place}: lists or tables are nested more than {_DEEPEST} deep; fix or remove the row"))
    elif may_have_surrogates and re.search("[\ud800-\udfff]", json.dumps(item, ensure_ascii=False)):
        on_bad(UserError(f"{place}: half a character (an unpaired \\ud800-\\udfff escape); fix or remove the row"))
    else:
        yield Row(place, item)


def _table_rows(path: str, kind: str, numbered: bool, on_bad: OnBad) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the module's 128 KiB is less than one long document
    lines = (text + "\n" for _, text in _lines(path, on_bad))
    # Two calls, because a dialect in variables would hide the one difference: TSV has no quoting.
    table = (
        csv.reader(lines, strict=True) if kind == ".csv" else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    header: list[str] | None = None
    while True:
        place = f"{path}:{table.line_num + 1}"
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                raise UserError(f"{place}: a quote is opened here and never closed; fix the file") from None
            on_bad(UserError(f"{place}: not valid {kind} ({error}); fix the quotes or remove the row"))
            continue
        if header is None:
            header = [str(column) for column in range(len(cells))] if numbered else cells
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise UserError(f"{place}: the column {twice[0]!r} occurs twice; rename one of them")
            if not numbered:
                continue
        if len(cells) == len(header):
            yield Row(place, dict(zip(header, cells, strict=True)))
        elif cells:
            counts = f"{len(cells)} columns where the first line has {len(header)}"
            on_bad(UserError(f"{place}: {counts}; fix or remove the row"))


def _parquet_rows(path: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        index = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    index += 1
                    yield Row(f"{path}: row {index}", fields)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: cut short or damaged ({reason}); write or fetch it again") from None
