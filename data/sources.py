"""Sources: where raw rows come from, before they are interpreted.

A source is local files (`path`), a data set on the Hugging Face hub pinned to a revision (`hub`), or the Village
(`village`). `rows` reads any of them as a stream of `Row(place, fields)`; every later error about the row begins with
its `place` (`file.jsonl:17`). `start` and `limit` count the rows that could be read, over all files of the source
together. `load` converts and mixes the rows of several sources. `gptlife.data.readers` reads each kind of file.

Left out: remote URLs (download first, or use `hub`), and shuffling, which the training loop does.
"""

from __future__ import annotations

import glob
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from gptlife.data.config import Config, HashFile
from gptlife.data.errors import UserError
from gptlife.data.readers import ENDINGS, OnBad, Row, ending_of, read_file, refuse
from gptlife.data.village import source as village_world
from gptlife.data.village.source import VillageSource

T = TypeVar("T")
FieldMap = Mapping[str, str] | None
"""Our field name -> the row's; None: the row has our names."""
_log = logging.getLogger(__name__)


class Source(Config):
    """Raw data: exactly one of `path`, `hub`, `village`, and which of its rows to take."""

    path: str | list[str] | None = None
    """Local file(s); `*`, `**` and `?` are expanded, in sorted order."""
    hub: str | None = None
    """Data set id on the Hugging Face hub."""
    revision: str | None = None
    """Commit (or tag) of the hub data set; required with `hub`, because a branch moves."""
    name: str | None = None
    """Configuration name of the hub data set."""
    split: str = "train"
    """Split of the hub data set."""
    village: VillageSource | None = None
    """A part of the Village, the built-in world with ground truth."""
    fields: dict[str, str] | None = None
    """Our field name -> the row's (`a.b` reaches into a table). When given, only these fields are read."""
    start: int = Field(0, ge=0)
    """Rows skipped at the beginning."""
    limit: int | None = Field(None, ge=1)
    """Rows taken; all by default."""
    weight: float = Field(1.0, gt=0)
    """Share of the rows in a mix of several sources (see `mix`)."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What to do with a row that can't be used: stop with its place, or skip and count it."""

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        given = [name for name in ("path", "hub", "village") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub, village (found {' and '.join(given) or 'none'})")
        if self.path == [] or self.path == "":
            raise ValueError("path is empty; name a file or a pattern")
        if self.hub is not None and (self.revision or "main") in ("main", "master", "HEAD"):
            given_revision = self.revision or "nothing"
            raise ValueError(f"hub needs a fixed `revision` (a commit hash or tag), found {given_revision}")
        if self.hub is None and (self.revision or self.name or self.split != "train"):
            raise ValueError("revision, name and split belong to `hub`; remove them")
        return self

    def identity(self, hash_file: HashFile) -> dict[str, Any]:
        """What the rows depend on: file contents and endings (not paths), a revision, or the Village's fields.

        Raises:
            UserError: where a file is missing (see `files`).
        """
        kept: dict[str, Any] = {
            name: getattr(self, name) for name in ("fields", "start", "limit", "weight", "bad_rows")
        }
        if self.village is not None:
            kept["village"] = {**self.village.identity(hash_file), "version": village_world.VERSION}
        elif self.hub is not None:
            kept["hub"] = [self.hub, self.revision, self.name, self.split]
        else:
            kept["files"] = [[ending_of(path), hash_file(path)] for path in files(self)]
        return kept


def _as_list(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Data = Annotated[list[Source], BeforeValidator(_as_list), Field(min_length=1)]
"""Field type of stage configs: a path, a source table, or a list of either; always read as a list of sources."""


def rows(source: Source, on_bad: OnBad = refuse) -> Iterator[Row]:
    """The source's rows in order, lazily, after `start` and up to `limit`.

    `on_bad` receives each row that can't be read; if it returns, reading goes on with the next one.

    Raises:
        UserError: file missing, empty, of unknown ending, cut short or damaged; hub data set not loadable.
    """
    end = None if source.limit is None else source.start + source.limit
    return islice(_all_rows(source, on_bad), source.start, end)


def files(source: Source) -> list[str]:
    """The source's files: patterns expanded, sorted within each pattern; empty for hub and Village.

    Raises:
        UserError: a pattern matches nothing, or a file is missing, empty, a folder or of an unknown ending.
    """
    patterns = [source.path] if isinstance(source.path, str) else source.path or []
    return [path for pattern in patterns for path in _expand(os.path.expanduser(pattern))]


def mix(streams: Sequence[Iterator[T]], weights: Sequence[float], seed: int) -> Iterator[T]:
    """One stream of several: concatenated where all weights are equal, drawn by weight otherwise.

    Drawn means: the next item comes from stream k with probability weights[k] / sum(weights), by a generator
    seeded with `seed`. Every stream keeps its order and is read once; the mix ends when the stream that is drawn
    has nothing left, so that the shares hold to the last item. Rows of the other streams that remain are not used.
    """
    if len(set(weights)) <= 1:
        for stream in streams:
            yield from stream
        return
    rng = random.Random(seed)
    order = range(len(streams))
    while True:
        drawn = streams[rng.choices(order, weights)[0]]
        try:
            item = next(drawn)
        except StopIteration:
            return
        yield item


def load(data: Sequence[Source], convert: Callable[[Row, FieldMap], T], seed: int) -> Iterator[T]:
    """All rows of all sources, converted and mixed, lazily. `convert` gets each row and its source's `fields`.

    Raises:
        UserError: a row can't be read or converted (with `bad_rows: refuse`), or no rows are left.
    """
    skipped, count = _Skipped(), 0
    streams = [_converted(source, convert, skipped if source.bad_rows == "skip" else refuse) for source in data]
    for item in mix(streams, [source.weight for source in data], seed):
        count += 1
        yield item
    if skipped.count:
        _log.warning(skipped.summary())
    if not count:
        reason = f"; {skipped.summary()}" if skipped.count else "; check `start` and the files"
        raise UserError(f"data: no rows left{reason}")


class _Skipped:
    """Counts the bad rows that a source's `bad_rows: skip` lets pass, and keeps the first few for the log."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def __call__(self, error: UserError) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(str(error))

    def summary(self) -> str:
        return f"{self.count} bad rows skipped, the first: {' | '.join(self.first)}"


def _converted(source: Source, convert: Callable[[Row, FieldMap], T], on_bad: OnBad) -> Iterator[T]:
    for row in rows(source, on_bad):
        try:
            item = convert(row, source.fields)
        except UserError as error:
            on_bad(error)
        else:
            yield item


def _all_rows(source: Source, on_bad: OnBad) -> Iterator[Row]:
    if source.village is not None:
        for index, fields in enumerate(village_world.rows(source.village)):
            yield Row(f"village {source.village.part}:{index + 1}", fields)
    elif source.hub is not None:
        yield from _hub_rows(source)
    else:
        # All paths are checked before the first row is read: a typo in the last one must show at once, not hours later.
        numbered = any(column.isdigit() for column in (source.fields or {}).values())
        for path in files(source):
            yield from read_file(path, numbered, on_bad)


def _hub_rows(source: Source) -> Iterator[Row]:
    import datasets

    place = f"{source.hub}@{source.revision} [{source.split}]"
    try:
        table = datasets.load_dataset(source.hub, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # the hub's clients raise dozens of types; the user must look here for all of them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{place}: can't be loaded ({reason}); check id, name, split, revision, network") from None
    for index, fields in enumerate(table):
        yield Row(f"{place}:{index + 1}", dict(fields))


def _expand(pattern: str) -> list[str]:
    is_pattern = not os.path.exists(pattern) and glob.has_magic(pattern)
    paths = sorted(glob.glob(pattern, recursive=True)) if is_pattern else [pattern]
    if not paths:
        raise UserError(f"{pattern}: no file matches this pattern; correct it, or put the files there")
    for path in paths:
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder; give a pattern, e.g. {os.path.join(path, '*.jsonl')}")
        if not os.path.exists(path):
            raise UserError(f"{path}: no such file; correct the path")
        if not ending_of(path):
            raise UserError(f"{path}: unknown ending; known are {', '.join(ENDINGS)}")
        if os.path.getsize(path) == 0:
            raise UserError(f"{path}: the file is empty; fill it or leave it out")
    return paths


def described(identity: Mapping[str, Any]) -> str:
    """A source's identity in words (Markdown): what was read, which rows of it, and its weight in a mix."""
    if village := identity.get("village"):
        fields = ", ".join(f"{name} {value}" for name, value in village.items() if name != "part")
        text = f"the Village's {village.get('part')} ({fields})"
    elif hub := identity.get("hub"):
        name, revision, subset, split = hub
        text = f"{_code(name)} at {_code(revision)}, {'' if subset is None else f'{subset}, '}split {split}"
    else:
        files = identity.get("files") or []
        text = "files of sha256 " + ", ".join(_code(str(digest)[:16]) for _, digest in files)
    start, limit = identity.get("start") or 0, identity.get("limit")
    rows = f"; rows from {start + 1}" + (f" to {start + limit}" if limit else "") if start or limit else ""
    weight = f"; weight {identity['weight']:g}" if identity.get("weight", 1.0) != 1.0 else ""
    return text + rows + weight


def _code(text: Any) -> str:
    return f"`{str(text).replace('`', '')}`"
