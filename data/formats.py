"""Formats: every published shape of a data set, brought to one form.

Forms (what the stages read; `meta`, a dict, is carried through all of them):
- text          {"text"}
- prompt        {"messages": [{"role", "content"}, ...]} ending in a user turn
- conversation  {"messages": ...} ending in an assistant turn
- ranking       {"messages": prompt, "answers": [str], "ranks": [int]}, 1 = best, equal = tie; also "labeler", "group",
                and "finished": [bool], whether each answer ended by itself
- choices       {"query", "choices": [str], "gold": int}, also "task"

Formats are told apart by their field names (`detect`):
- text; messages; ShareGPT `conversations`; prompt + completion; Alpaca instruction (+ input) + output | response;
  question + answer; prompt or instruction alone; query + choices + gold
- pairs: chosen + rejected with a prompt, as message lists, as ShareGPT turns (LLaMA-Factory), or as whole transcripts
  "\\n\\nHuman: ...\\n\\nAssistant: ..." (Anthropic HH, [Bai et al. 2022, arXiv 2204.05862]); AlpacaEval output_1 +
  output_2 + preference
- K answers: prompt | messages, completions | answers, and ranking | ranks (1 = best) or scores (higher = better)

White space around a turn is layout, not content, and is removed: some generators begin every answer with a space, and
a reward model would learn to smell it. Documents and the answers of K-way rankings (a policy's own samples) stay as
they are.

The loaders read `Data`: all its sources, mixed by weight, with each one's `fields` and `bad_rows`. Answers of a ranking
come in a seeded random order, because in published pairs the position gives the winner away (AlpacaEval's output_1 is
nearly always the same generator).

Left out: trees of replies (OpenAssistant), tool calls, content in parts (images), unpaired labels (KTO).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gptlife.data.errors import UserError
from gptlife.data.rankings import ANSWER_FIELDS, RANK_FIELDS, read_ranking
from gptlife.data.readers import OnBad, Row, refuse
from gptlife.data.sources import Source, mix, rows
from gptlife.data.turns import (
    EMPTY_ACT,
    PROMPT_FIELDS,
    ROW_ACT,
    ending_in_user,
    in_order,
    is_int,
    names_of,
    read_conversation,
    read_prompt,
    shown,
    string,
    strings,
)

_log = logging.getLogger(__name__)

# (name, groups of field names): a row has the format when it has a field of every group. First match counts.
FORMATS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("ranking", (PROMPT_FIELDS, ANSWER_FIELDS, RANK_FIELDS)),
    ("alpaca_eval", (("instruction",), ("output_1",), ("output_2",), ("preference",))),
    ("pair", (("chosen",), ("rejected",))),
    ("choices", (("query",), ("choices",), ("gold",))),
    ("messages", (("messages",),)),
    ("sharegpt", (("conversations",),)),
    ("prompt_completion", (("prompt",), ("completion",))),
    ("alpaca", (("instruction",), ("output", "response"))),
    ("question_answer", (("question",), ("answer",))),
    ("text", (("text",),)),
    ("prompt", (("prompt", "instruction"),)),
)
FORM_OF = {
    "ranking": "ranking", "alpaca_eval": "ranking", "pair": "ranking", "choices": "choices", "text": "text",
    "messages": "conversation", "sharegpt": "conversation", "prompt_completion": "conversation",
    "alpaca": "conversation", "question_answer": "conversation", "prompt": "prompt",
}  # fmt: skip
KNOWN_FIELDS = {name for _, groups in FORMATS for group in groups for name in group} | {
    "input", "system", "meta", "labeler", "group", "finished", "task"
}  # fmt: skip

_EXAMPLE = {
    "text": "{text: a}",
    "conversation": "{prompt: a, completion: b}",
    "prompt": "{prompt: a}",
    "ranking": "{prompt: a, chosen: b, rejected: c}",
    "choices": "{query: a, choices: b, gold: c}",
}


def detect(fields: Mapping[str, Any]) -> str | None:
    """Name of the format that these fields have, or None. Fields that are null count as absent."""
    present = {name for name, value in fields.items() if value is not None or name == "preference"}
    for name, groups in FORMATS:
        if all(present.intersection(group) for group in groups):
            return name
    return None


def map_fields(row: Row, field_map: Mapping[str, str] | None) -> Row:
    """The row under our field names: only what `field_map` names (and `meta`), everything where there is no map.

    Raises:
        UserError: the map names a field that is not ours, or that the row does not have.
    """
    if field_map is None:
        return row
    if strangers := sorted(set(field_map) - KNOWN_FIELDS):
        known = ", ".join(sorted(KNOWN_FIELDS))
        raise UserError(f"fields: '{strangers[0]}' is none of ours; left of the colon goes one of: {known}")
    kept = {"meta": row.fields["meta"]} if "meta" in row.fields else {}
    return Row(row.place, kept | {ours: _reach(row, theirs) for ours, theirs in field_map.items()})


def to_text(row: Row, field_map: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row as {"text"}. Raises UserError, as all of `to_*` do, with the row's place, the fault and the next act."""
    row, _ = _recognised(row, field_map, ("text",))
    if not string(row, "text").strip():
        raise UserError(f"{row.place}: 'text' is empty; {EMPTY_ACT}")
    return {"text": row.fields["text"], **_extras(row)}


def to_conversation(row: Row, field_map: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row as {"messages"} that end in an assistant turn. Raises UserError."""
    row, name = _recognised(row, field_map, ("conversation",))
    messages = in_order(row, read_conversation(row, name))
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{row.place}: the last turn is the {messages[-1]['role']}'s, not the assistant's; {ROW_ACT}")
    return {"messages": messages, **_extras(row)}


def to_prompt(row: Row, field_map: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row as {"messages"} that end in a user turn; a conversation loses its last answer. Raises UserError."""
    row, name = _recognised(row, field_map, ("prompt", "conversation", "ranking"))
    if FORM_OF[name] == "ranking":
        messages = read_ranking(row, name)["messages"]
    elif name == "prompt":
        messages = read_prompt(row)
    else:
        messages = read_conversation(row, name)
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return {"messages": ending_in_user(row, messages), **_extras(row)}


def to_ranking(row: Row, field_map: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row as {"messages", "answers", "ranks"}; a pair has ranks 1 and 2, a tie 1 and 1. Raises UserError."""
    row, name = _recognised(row, field_map, ("ranking",))
    ranking = read_ranking(row, name)
    ending_in_user(row, ranking["messages"])
    return {**ranking, **_extras(row, "labeler", "group")}


def to_choices(row: Row, field_map: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row as {"query", "choices", "gold"}; `gold` counts from 0. Raises UserError."""
    row, _ = _recognised(row, field_map, ("choices",))
    choices, gold = strings(row, "choices"), row.fields["gold"]
    if len(choices) < 2:
        raise UserError(f"{row.place}: 'choices' has {len(choices)} entries, at least 2 are needed; {ROW_ACT}")
    if not is_int(gold) or not 0 <= gold < len(choices):
        raise UserError(f"{row.place}: 'gold' is {shown(gold)}, not one of 0 to {len(choices) - 1}; {ROW_ACT}")
    return {"query": string(row, "query"), "choices": choices, "gold": gold, **_extras(row, "task")}


def texts(data: Sequence[Source], seed: int = 0) -> Iterator[str]:
    """The documents, lazily: they may be more than memory holds.

    `seed` (here and below) draws the mix of sources with different weights.

    Raises:
        UserError: bad row (with `bad_rows: refuse`), unreadable file, or no rows left. So do all loaders.
    """
    return (form["text"] for form in _load(data, to_text, seed))


def conversations(data: Sequence[Source], seed: int = 0) -> list[dict[str, Any]]:
    """All conversations: {"messages"} ending in an assistant turn."""
    return list(_load(data, to_conversation, seed))


def prompts(data: Sequence[Source], seed: int = 0) -> list[dict[str, Any]]:
    """All prompts: {"messages"} ending in a user turn; conversations lose their last answer."""
    return list(_load(data, to_prompt, seed))


def rankings(data: Sequence[Source], seed: int = 0) -> list[dict[str, Any]]:
    """All rankings: {"messages", "answers", "ranks"}, the answers of each in an order drawn from `seed`."""
    return [_shuffled(form, f"{seed}/{index}") for index, form in enumerate(_load(data, to_ranking, seed))]


def choices(data: Sequence[Source], seed: int = 0) -> list[dict[str, Any]]:
    """All multiple-choice items: {"query", "choices", "gold"}."""
    return list(_load(data, to_choices, seed))


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
        return f"{self.count} bad rows left out, the first: {' | '.join(self.first)}"


_Convert = Callable[[Row, Mapping[str, str] | None], dict[str, Any]]


def _load(data: Sequence[Source], convert: _Convert, seed: int) -> Iterator[dict[str, Any]]:
    """All rows of all sources as forms, mixed. Row faults go where each source's `bad_rows` says."""
    skipped, count = _Skipped(), 0
    streams = [_forms(source, convert, skipped if source.bad_rows == "skip" else refuse) for source in data]
    for form in mix(streams, [source.weight for source in data], seed):
        count += 1
        yield form
    if skipped.count:
        _log.warning(skipped.summary())
    if not count:
        reason = f"; {skipped.summary()}" if skipped.count else "; check `start` and the files"
        raise UserError(f"data: no rows left{reason}")


def _forms(source: Source, convert: _Convert, on_bad: OnBad) -> Iterator[dict[str, Any]]:
    for row in rows(source, on_bad):
        try:
            form = convert(row, source.fields)
        except UserError as error:
            on_bad(error)
        else:
            yield form


def _shuffled(ranking: dict[str, Any], seed: str) -> dict[str, Any]:
    """The ranking with its answers (and ranks) in an order drawn from `seed`."""
    order = list(range(len(ranking["answers"])))
    random.Random(seed).shuffle(order)
    lists = [name for name in ("answers", "ranks", "finished") if name in ranking]
    return {**ranking, **{name: [ranking[name][place] for place in order] for name in lists}}


def _recognised(row: Row, field_map: Mapping[str, str] | None, forms: tuple[str, ...]) -> tuple[Row, str]:
    """The row under our names and its format, if that leads to one of `forms`."""
    row = map_fields(row, field_map)
    name = detect(row.fields)
    example = f"fields: {_EXAMPLE[forms[0]]}"
    if name is None:
        raise UserError(
            f"{row.place}: no known format (fields: {names_of(row.fields)}); name them in `fields`, e.g. {example}"
        )
    if FORM_OF[name] not in forms:
        found = f"{_article(forms[0])} is needed, this row is {_article(FORM_OF[name])} (format {name})"
        raise UserError(f"{row.place}: {found}; give other data, or name the fields, e.g. {example}")
    return row, name


def _article(form: str) -> str:
    return form if form == "choices" else f"a {form}"


def _reach(row: Row, name: str) -> Any:
    """The row's field `name`; `a.b` is field b of the table in field a, unless a field has that very name."""
    value: Any = row.fields
    for part in [name] if name in row.fields else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{row.place}: no field '{name}' (fields: {names_of(row.fields)}); correct `fields`")
        value = value[part]
    return value


def _extras(row: Row, *names: str) -> dict[str, Any]:
    """What goes along unread: `meta`, and `names` where the row has them."""
    found = {name: row.fields[name] for name in ("meta", *names) if row.fields.get(name) is not None}
    if not isinstance(found.get("meta", {}), dict):
        raise UserError(f"{row.place}: 'meta' must be an object {{...}}, found {shown(found['meta'])}; {ROW_ACT}")
    return found
