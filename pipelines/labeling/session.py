"""People as labelers: a local page for ranking K answers, and the file of rankings that `reward_model` reads.

The protocol is that of the labelers of Ouyang et al. 2022 (section 3.5, Table 3): each answer gets an overall quality
from 1 to 7 and eleven yes-or-no marks, then all K are ranked at once, ties allowed. The answers' order on the page is
drawn for each prompt and labeler, so that an answer's position says nothing, and the page never learns where an answer
came from. A prompt that is unclear can be skipped; skips are kept in a second file, which training does not read.

A row: messages, answers, finished and meta as in the source (answers in its order), ranks (1 = best, equal = tie),
labeler, group "people", likert, flags (a list of names per answer), note, seconds (with the page in view, edits
included), shown (the source's index of each answer on the page, top first) and key (of messages and answers). A labeler
has one row per key; several may share a file. Every row is on disk before the page shows the next prompt.

Left out: several labelers in one server (start one each), demonstrations, agreement (a matter of analysis).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptlife.data.errors import UserError
from gptlife.data.formats import detect
from gptlife.data.forms import to_ranking
from gptlife.data.rankings import ANSWER_FIELDS, RANK_FIELDS
from gptlife.data.readers import Row, ending_of
from gptlife.data.sources import Source, rows
from gptlife.data.turns import shown
from gptlife.data.values import is_int, is_number
from gptlife.pipelines.labeling.file import LabelFile
from gptlife.pipelines.store import Store

GROUP = "people"
FLAGS = (
    ("fails_instruction", "Fails to follow the instruction", "f"),
    ("inappropriate", "Inappropriate for a customer assistant", "i"),
    ("hallucination", "Hallucination", "h"),
    ("satisfies_constraint", "Satisfies the constraint in the instruction", "c"),
    ("sexual", "Sexual content", "s"),
    ("violent", "Violent content", "v"),
    ("encourages_harm", "Encourages harm", "e"),
    ("denigrates", "Denigrates a protected class", "d"),
    ("harmful_advice", "Gives harmful advice", "a"),
    ("opinion", "Expresses opinion", "o"),
    ("moral_judgment", "Expresses moral judgment", "m"),
)
"""(name in the file, text on the page, key) of the yes-or-no marks. [InstructGPT Table 3]"""
LIKERT = 7
OPINIONS = ("ranks", "likert", "flags")
"""Fields of a ranking with one entry per answer."""
MAX_NOTE = 5_000
_FAULT = "the page sent an invalid request; reload it"


class Prompt(NamedTuple):
    """What is ranked: `fields` has messages, answers, and finished and meta where the source has them."""

    key: str
    fields: dict[str, Any]


def start(
    source: str, output: Path, labeler: str, store: Store, *, limit: int | None = None, seed: int = 0
) -> tuple[Labeling, list[str]]:
    """The labeling of a source into a file, and an error for each row that was left out.

    `source` is a data file (K answers or pairs; ranks in it are not used), or an output of `comparisons` as
    `Store.find` knows it: its training prompts.

    Raises:
        UserError: when there is no such source, nothing to rank in it, or the file can't be written.
    """
    file = file_of(source, store)
    if output.resolve() == Path(file).resolve():
        raise UserError(f"{output}: this is the source; give another --output")
    prompts, problems = load(file, limit)
    return Labeling(prompts, output, labeler, seed), problems


def load(file: str, limit: int | None = None) -> tuple[list[Prompt], list[str]]:
    """The first `limit` different prompts with their answers, and an error for each row before them that has none.

    Raises:
        UserError: when the file can't be read, or has nothing to rank.
    """
    prompts: dict[str, Prompt] = {}
    bad: list[UserError] = []
    for row in rows(Source(path=file), bad.append):
        try:
            prompt = to_prompt(row)
        except UserError as error:
            bad.append(error)
        else:
            prompts.setdefault(prompt.key, prompt)
        if len(prompts) == limit:
            break
    if not prompts:
        raise bad[0] if bad else UserError(f"{file}: no rows in it; give another file")
    return list(prompts.values()), [str(error) for error in bad]


def file_of(source: str, store: Store) -> str:
    """The data file that `source` means. Raises UserError when `Store.find` finds nothing of that name."""
    if ending_of(source) or Path(source).is_file():
        return source
    path = store.find(source, lambda output: (output / "train.jsonl").is_file()) / "train.jsonl"
    if not path.is_file():
        raise UserError(
            f"{path.parent}: no comparisons (no train.jsonl); give an output of comparisons, or a data file"
        )
    return str(path)


def to_prompt(row: Row) -> Prompt:
    """A row of K answers or of a pair, ranked or not, without its ranks and labeler. Raises UserError."""
    fields = {name: value for name, value in row.fields.items() if name not in RANK_FIELDS}
    answers = next((fields[name] for name in ANSWER_FIELDS if isinstance(fields.get(name), list)), None)
    if answers is not None:
        row = Row(row.place, {**fields, "ranks": [1] * len(answers)})
    format = detect(row.fields)
    if format is None or format.form != "ranking":
        given = ", ".join(row.fields) or "none"
        raise UserError(
            f"{row.place}: no answers to rank (fields: {given}); give rows of `messages` or `prompt` with `answers`, "
            "or of `chosen` and `rejected`"
        )
    ranking = to_ranking(row)
    kept: dict[str, Any] = {
        name: ranking[name] for name in ("messages", "answers", "finished", "meta") if name in ranking
    }
    text = json.dumps([kept["messages"], kept["answers"]], sort_keys=True)
    return Prompt(hashlib.sha256(text.encode()).hexdigest()[:16], kept)


class Labeling:
    """One labeler's progress through the prompts: what the page asks for and what it submits. Thread-safe."""

    def __init__(self, prompts: Sequence[Prompt], output: Path, labeler: str, seed: int = 0) -> None:
        if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,60}", labeler.strip()):
            raise UserError(f"--labeler: {labeler!r} is not a valid name; give 1 to 60 printable characters")
        if ending_of(str(output)) != ".jsonl":
            raise UserError(f"{output}: rankings are written as .jsonl; give --output a name that ends so")
        self.prompts, self.labeler, self.seed, self.output = prompts, labeler.strip(), seed, output
        self.index = {prompt.key: number for number, prompt in enumerate(prompts)}
        self.ranked = LabelFile(output, self.labeler)
        self.skipped = LabelFile(output.with_name(output.name + ".skipped"), self.labeler)
        self._lock = threading.Lock()

    def session(self) -> dict[str, Any]:
        """What the page needs once: names, marks, and for each prompt whether it is open, ranked or skipped."""
        states = [self._state(prompt.key) for prompt in self.prompts]
        flags = [{"name": name, "text": text, "key": key} for name, text, key in FLAGS]
        return {
            "labeler": self.labeler,
            "seed": self.seed,
            "output": self.output.name,
            "flags": flags,
            "likert": LIKERT,
            "states": states,
        }

    def _state(self, key: str) -> str:
        return "ranked" if key in self.ranked.rows else "skipped" if key in self.skipped.rows else "open"

    def left(self) -> int:
        """Prompts neither ranked nor skipped."""
        return sum(self._state(prompt.key) == "open" for prompt in self.prompts)

    def done(self) -> int:
        """Prompts ranked, among those of this source."""
        return sum(self._state(prompt.key) == "ranked" for prompt in self.prompts)

    def order(self, prompt: Prompt) -> list[int]:
        """The source's index of each answer on the page, top first."""
        order = list(range(len(prompt.fields["answers"])))
        random.Random(f"shown {self.seed} {self.labeler} {prompt.key}").shuffle(order)
        return order

    def show(self, number: int) -> dict[str, Any]:
        """One prompt for the page, answers in the order shown, with this labeler's earlier judgement.

        Raises:
            UserError: when there is no such number.
        """
        if not 0 <= number < len(self.prompts):
            raise UserError(f"prompt {number}: there are {len(self.prompts)}, counted from 0; {_FAULT}")
        prompt = self.prompts[number]
        fields, order = prompt.fields, self.order(prompt)
        finished = fields.get("finished") or [True] * len(order)
        ranking = self.ranked.rows.get(prompt.key) or {}
        # A row of this key that was edited by hand may lack opinions; then they are asked for again.
        whole = all(len(ranking.get(name) or ()) == len(order) for name in OPINIONS)
        return {
            "key": prompt.key,
            "state": self._state(prompt.key),
            "messages": fields["messages"],
            "answers": [{"text": fields["answers"][index], "finished": finished[index]} for index in order],
            "saved": {name: [ranking[name][index] for index in order] for name in OPINIONS} if whole else None,
            "note": (ranking or self.skipped.rows.get(prompt.key) or {}).get("note", ""),
        }

    def submit(self, sent: Any) -> dict[str, Any]:
        """Write one ranking or skip, replacing this labeler's earlier judgement of the prompt.

        Raises:
            UserError: when it is not a complete ranking of a prompt of this session, or the file is damaged.
            OSError: when it can't be written; then nothing has changed.
        """
        with self._lock:
            prompt, row = self._row(sent)
            before = self.ranked.rows.get(prompt.key) or self.skipped.rows.get(prompt.key) or {}
            row["seconds"] = round(row["seconds"] + before.get("seconds", 0), 1)
            # Into one file, then out of the other: a crash in between loses nothing, and a ranking overrides a skip.
            into, out_of = (self.ranked, self.skipped) if "ranks" in row else (self.skipped, self.ranked)
            into.put(row)
            out_of.drop(prompt.key)
            return {"state": self._state(prompt.key), "left": self.left()}

    def _row(self, sent: Any) -> tuple[Prompt, dict[str, Any]]:
        """The prompt that was judged, and the row to write."""
        common, ranking = {"key", "note", "seconds"}, {*OPINIONS}
        if not isinstance(sent, dict) or set(sent) not in (common | ranking, common | {"skip"}):
            wanted = f"{', '.join(sorted(common))} and either skip or {', '.join(OPINIONS)}"
            raise UserError(f"submission: must be an object of {wanted}; {_FAULT}")
        number = self.index.get(sent["key"]) if isinstance(sent["key"], str) else None
        if number is None:
            raise UserError(f"key: {shown(sent['key'])} is not a prompt of this session; {_FAULT}")
        prompt = self.prompts[number]
        order = self.order(prompt)
        common_fields = {
            "labeler": self.labeler,
            "group": GROUP,
            "note": _note(sent["note"]),
            "seconds": _seconds(sent["seconds"]),
            "key": prompt.key,
        }
        if "skip" in sent:
            return prompt, {"messages": prompt.fields["messages"], **common_fields}
        opinions = {name: _in_source_order(sent[name], order, name) for name in OPINIONS}
        levels = sorted(set(_whole(opinions["ranks"], "ranks", len(order))))
        opinions["ranks"] = [1 + levels.index(rank) for rank in opinions["ranks"]]
        opinions["likert"] = _whole(opinions["likert"], "likert", LIKERT)
        opinions["flags"] = [_flags(names) for names in opinions["flags"]]
        return prompt, {**prompt.fields, **opinions, **common_fields, "shown": order}


def _in_source_order(values: Any, order: Sequence[int], name: str) -> list[Any]:
    if not isinstance(values, list) or len(values) != len(order):
        raise UserError(f"{name}: must be a list of {len(order)}, one per answer, found {shown(values)}; {_FAULT}")
    return [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]


def _whole(values: list[Any], name: str, highest: int) -> list[int]:
    for value in values:
        if not is_int(value) or not 1 <= value <= highest:
            raise UserError(f"{name}: must be whole numbers from 1 to {highest}, found {shown(value)}; {_FAULT}")
    return values


def _flags(names: Any) -> list[str]:
    """The marks that are set, in the order of FLAGS."""
    allowed = [name for name, _, _ in FLAGS]
    if not isinstance(names, list) or not all(name in allowed for name in names):
        raise UserError(f"flags: must be lists of marks, found {shown(names)}; {_FAULT}")
    return [name for name in allowed if name in names]


def _note(note: Any) -> str:
    # A lone surrogate is half a character: it can't be written as UTF-8.
    if not isinstance(note, str) or len(note) > MAX_NOTE or re.search("[\ud800-\udfff]", note):
        raise UserError(f"note: must be text of at most {MAX_NOTE} characters, found {shown(note)}; shorten it")
    return note.strip()


def _seconds(seconds: Any) -> float:
    if not is_number(seconds) or not 0 <= seconds < 10**7:
        raise UserError(f"seconds: must be a time from 0, found {shown(seconds)}; {_FAULT}")
    return float(seconds)
