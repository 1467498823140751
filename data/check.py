"""Check: what a data file holds and what is wrong with it, before a stage reads it.

Reads all rows (`gptlife data check FILE`), without stopping at a bad one, and reports the formats, every problem with
its line, lengths, and rows that occur more than once. A row's length is that of all its text: documents, all turns,
all answers.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptlife.data.errors import UserError
from gptlife.data.formats import detect, map_fields
from gptlife.data.forms import CONVERT
from gptlife.data.readers import Row
from gptlife.data.sources import Source, rows
from gptlife.data.turns import Form

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 1000  # rows tokenized at once
_SHOWN = 20  # problems in a rendered report


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    place: str
    """The file, pattern or data set."""
    rows: int
    """Rows that could be used."""
    formats: dict[str, int]
    """Usable rows by format, most frequent first."""
    problems: list[str]
    """One line per row that can't be used: place, fault, next act."""
    duplicates: int
    """Usable rows that repeat an earlier one's text."""
    lengths: dict[int, int]
    """Rows by length: the key 2**k counts rows of 2**k to 2**(k+1) - 1 units, the key 0 empty rows."""
    total: int
    """Sum of all lengths."""
    longest: int
    """The greatest length."""
    unit: str
    """Unit of the lengths: `tokens`, or `words` (split at white space) when no tokenizer was given."""


def check(source: str | Source, tokenizer: str | None = None) -> Report:
    """Read everything and report. `source`: a path, pattern or source; `tokenizer`: a tokenizer's directory.

    Raises:
        UserError: the file is missing, damaged or of unknown kind, or the tokenizer can't be loaded.
    """
    source = Source(path=source) if isinstance(source, str) else source
    measure = _word_counts if tokenizer is None else _token_counts(tokenizer)
    problems: list[str] = []
    formats: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    seen: set[bytes] = set()
    duplicates = total = longest = 0
    for batch in _batches(_usable(source, problems)):
        for (name, text), length in zip(batch, measure([text for _, text in batch]), strict=True):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            duplicates += digest in seen
            seen.add(digest)
            formats[name] += 1
            lengths[1 << (length.bit_length() - 1) if length else 0] += 1
            total, longest = total + length, max(longest, length)
    return Report(
        place=_place(source),
        rows=formats.total(),
        formats=dict(formats.most_common()),
        problems=problems,
        duplicates=duplicates,
        lengths=dict(sorted(lengths.items())),
        total=total,
        longest=longest,
        unit="words" if tokenizer is None else "tokens",
    )


def render(report: Report) -> str:
    """The report as plain text, at most 80 columns except for the problems."""
    formats = ", ".join(f"{name} {count:,}" for name, count in report.formats.items()) or "none"
    mean = report.total / report.rows if report.rows else 0.0
    lines = [
        report.place,
        f"  format      {formats}",
        f"  rows        {report.rows:,} usable, {len(report.problems):,} not, {report.duplicates:,} repeated",
        f"  {report.unit:<11} {report.total:,} in all, {mean:,.1f} per row, longest {report.longest:,}",
    ]
    most = max(report.lengths.values(), default=1)
    for low, count in report.lengths.items():
        bounds = f"{low:,}-{2 * low - 1:,}" if low > 1 else str(low)
        lines.append(f"  {bounds:>19} {count:>9,} {'#' * max(1, round(40 * count / most))}")
    if report.problems:
        lines.append(f"  problems    {len(report.problems):,}")
        lines += [f"    {problem}" for problem in report.problems[:_SHOWN]]
        if len(report.problems) > _SHOWN:
            lines.append(f"    ... and {len(report.problems) - _SHOWN:,} more")
    return "\n".join(lines)


def _usable(source: Source, problems: list[str]) -> Iterator[tuple[str, str]]:
    """(format, all text) of each row that can be used; the faults of the others go to `problems`."""
    for row in rows(source, lambda error: problems.append(str(error))):
        try:
            name, form = _form(row, source)
        except UserError as error:
            problems.append(str(error))
        else:
            yield name, _all_text(form)


def _form(row: Row, source: Source) -> tuple[str, Form]:
    """The name of the row's format, and the row in its form."""
    row = map_fields(row, source.fields)
    format = detect(row.fields)
    if format is None:
        return "", CONVERT["conversation"](row, None)  # raises the error that names the fields
    if format.form == "conversation" and _asks(row.fields.get("messages")):
        return f"{format.name} (prompt)", CONVERT["prompt"](row, None)
    return format.name, CONVERT[format.form](row, None)


def _asks(messages: Any) -> bool:
    """Whether the user speaks last in a list of messages: then the row is a prompt, not a broken conversation."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "user"


def _all_text(form: Form) -> str:
    turns = [message["content"] for message in form.get("messages", [])]
    single = [form[name] for name in ("text", "query", "answer") if name in form]
    return "\n".join([*single, *turns, *form.get("answers", []), *form.get("choices", [])])


def _batches(items: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _word_counts(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def _token_counts(directory: str) -> Callable[[list[str]], list[int]]:
    from transformers import AutoTokenizer

    from gptlife.data.tokens import encode_texts

    if not os.path.isdir(directory):  # else the name would be looked up on the hub
        raise UserError(f"{directory}: no such folder; give a tokenizer's directory")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{directory}: no tokenizer there ({reason}); give a tokenizer's directory") from None
    return lambda texts: [len(ids) for ids in encode_texts(tokenizer, texts)]


def _place(source: Source) -> str:
    if source.path is not None:
        return source.path if isinstance(source.path, str) else ", ".join(source.path)
    if source.village is not None:
        return f"village {source.village.part}"
    return f"{source.hub}@{source.revision}"
