"""Formats: the published shapes of data sets, each brought to one form.

Forms (what the stages read; `meta`, a dict, is carried through all of them):
- text          {"text"}
- prompt        {"messages": [{"role", "content"}, ...]} ending in a user turn
- conversation  {"messages": ...} ending in an assistant turn
- label         {"messages": prompt, "answer": str, "label": bool}, whether the answer is good
- ranking       {"messages": prompt, "answers": [str], "ranks": [int]}, 1 = best, equal = tie; also "labeler", "group",
                and "finished": [bool], whether each answer ended by itself
- choices       {"query", "choices": [str], "gold": int}, also "task"

`FORMATS` lists the formats, told apart by their field names. A new one is an entry there and the function that reads
it. Conversations come as `messages`, ShareGPT's `conversations`, prompt + completion, Alpaca's instruction (+ input) +
output | response, or question + answer. Each of them with a boolean `label` is the format `labelled`, as TRL's KTO
trainer has it; 0 and 1 are labels too beside prompt + completion, where nothing else can be meant. Pairs come as
chosen + rejected: answers to a prompt, message lists, ShareGPT turns (LLaMA-Factory), or whole transcripts
"\\n\\nHuman: ...\\n\\nAssistant: ..." (Anthropic HH, [Bai et al. 2022, arXiv 2204.05862]).

Documents and the answers of K-way rankings (a policy's own samples) keep their white space; turns lose it (`turns`).
Answers of a ranking come in a seeded random order, because in published pairs the position gives the winner away
(AlpacaEval's output_1 is nearly always the same generator).

Left out: trees of replies (OpenAssistant), tool calls, content in parts (images).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gptlife.data import rankings as ranked
from gptlife.data import turns
from gptlife.data.errors import UserError
from gptlife.data.readers import Row
from gptlife.data.sources import FieldMap, Source, load
from gptlife.data.turns import (
    ROW_ACT,
    Form,
    Messages,
    ending_in_user,
    in_order,
    names_of,
    shown,
)
from gptlife.data.values import is_int


class Format(NamedTuple):
    """One published shape of a row."""

    name: str
    form: str
    fields: tuple[tuple[str, ...], ...]
    """Groups of field names: a row has the format when it has a field of every group, and `applies` agrees."""
    read: Callable[[Row], Form]
    """The row in its form. The order of turns and who speaks last are checked afterwards, by `to_*`."""
    optional: tuple[str, ...] = ()
    """Further fields that are read or carried along."""
    example: str = ""
    """A field map for this format, where it is the one that errors suggest for its form."""
    applies: Callable[[Mapping[str, Any]], bool] = lambda fields: True
    """For formats that names alone don't tell apart."""


def _is_labelled(fields: Mapping[str, Any]) -> bool:
    label = fields["label"]
    return isinstance(label, bool) or (
        is_int(label) and label in (0, 1) and None not in (fields.get("prompt"), fields.get("completion"))
    )


def _labelled(conversation: Format) -> Format:
    """The format of such conversations whose last answer has a label."""

    def read(row: Row) -> Form:
        return {**conversation.read(row), "label": bool(row.fields["label"])}

    fields = (("label",), *conversation.fields)
    example = conversation.example and f"{conversation.example[:-1]}, label: c}}"
    return Format("labelled", "label", fields, read, conversation.optional, example, _is_labelled)


_SYSTEM, _LABELER = ("system",), ("labeler", "group")
_CONVERSATIONS = (
    Format("messages", "conversation", (("messages",),), turns.from_messages, _SYSTEM),
    Format("sharegpt", "conversation", (("conversations",),), turns.from_sharegpt, _SYSTEM),
    Format(
        "prompt_completion",
        "conversation",
        (("prompt",), ("completion",)),
        turns.from_completion,
        _SYSTEM,
        "{prompt: a, completion: b}",
    ),
    Format(
        "alpaca",
        "conversation",
        (("instruction",), turns.ALPACA_ANSWERS),
        turns.from_alpaca,
        ("input", "system"),
    ),
    Format("question_answer", "conversation", (("question",), ("answer",)), turns.from_question),
)
FORMATS = (
    Format(
        "ranking",
        "ranking",
        (turns.PROMPT_FIELDS, ranked.ANSWER_FIELDS, ranked.RANK_FIELDS),
        ranked.from_k_answers,
        ("input", "system", "finished", *_LABELER),
    ),
    Format(
        "alpaca_eval",
        "ranking",
        (("instruction",), ("output_1",), ("output_2",), ("preference",)),
        ranked.from_judged_pair,
        ("input", "system", *_LABELER),
    ),
    Format(
        "pair",
        "ranking",
        (("chosen",), ("rejected",)),
        ranked.from_pair,
        (*turns.PROMPT_FIELDS, "input", "system", *_LABELER),
        "{prompt: a, chosen: b, rejected: c}",
    ),
    Format(
        "choices",
        "choices",
        (("query",), ("choices",), ("gold",)),
        turns.from_choices,
        ("task",),
        "{query: a, choices: b, gold: c}",
    ),
    *(_labelled(conversation) for conversation in _CONVERSATIONS),
    *_CONVERSATIONS,
    Format("text", "text", (("text",),), turns.from_text, (), "{text: a}"),
    Format("prompt", "prompt", (("prompt", "instruction"),), turns.from_prompt, ("input", "system"), "{prompt: a}"),
)
"""Every format; the first that a row has counts."""
KNOWN_FIELDS = {"meta"} | {name for format in FORMATS for group in (*format.fields, format.optional) for name in group}
"""Every field that a format reads."""


def detect(fields: Mapping[str, Any]) -> Format | None:
    """The format that these fields have, or None. Fields that are null count as absent."""
    present = {name for name, value in fields.items() if value is not None or name == "preference"}
    for format in FORMATS:
        if all(present.intersection(group) for group in format.fields) and format.applies(fields):
            return format
    return None


def map_fields(row: Row, field_map: FieldMap) -> Row:
    """The row under our field names: only what `field_map` names (and `meta`), everything where there is no map.

    Raises:
        UserError: the map names a field that is not ours, or that the row does not have.
    """
    if field_map is None:
        return row
    if strangers := sorted(set(field_map) - KNOWN_FIELDS):
        ours = ", ".join(sorted(KNOWN_FIELDS))
        raise UserError(f"fields: '{strangers[0]}' is not a field of any format; use one of: {ours}")
    kept = {"meta": row.fields["meta"]} if "meta" in row.fields else {}
    return Row(row.place, kept | {ours: _reach(row, theirs) for ours, theirs in field_map.items()})


def to_text(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"text"}. Raises UserError, as all of `to_*` do, with the row's place, the fault and the next act."""
    row, format = _recognised(row, field_map, "text")
    return {**format.read(row), **_carried(row)}


def to_conversation(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"messages"} that end in an assistant turn. Raises UserError."""
    row, format = _recognised(row, field_map, "conversation")
    return {"messages": _ending_in_assistant(row, format.read(row)["messages"]), **_carried(row)}


def to_label(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"messages", "answer", "label"}: a prompt, one answer, and whether it is good. Raises UserError."""
    row = _with_decoded_label(map_fields(row, field_map))
    label, completion = row.fields.get("label"), row.fields.get("completion")
    if label is not None and not _is_labelled(row.fields):
        wanted = "true or false (0 and 1 only beside prompt and completion)"
        raise UserError(f"{row.place}: 'label' must be {wanted}, found {shown(label)}; {ROW_ACT}")
    if isinstance(completion, list) and len(completion) > 1:
        raise UserError(f"{row.place}: 'completion' has {len(completion)} turns, a label is of one answer; {ROW_ACT}")
    row, format = _recognised(row, None, "label")
    form = format.read(row)
    *prompt, answer = _ending_in_assistant(row, form["messages"])
    return {
        "messages": ending_in_user(row, prompt),
        "answer": answer["content"],
        "label": form["label"],
        **_carried(row),
    }


def _with_decoded_label(row: Row) -> Row:
    """The row with the label of a CSV file, where every value is text, as the value that it spells."""
    spelled = {"true": True, "false": False, "1": 1, "0": 0}
    label = row.fields.get("label")
    value = spelled.get(label.strip().lower()) if isinstance(label, str) else None
    return row if value is None else Row(row.place, {**row.fields, "label": value})


def to_prompt(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"messages"} that end in a user turn; a conversation loses its last answer. Raises UserError."""
    row, format = _recognised(row, field_map, "prompt", "conversation", "label", "ranking")
    messages = format.read(row)["messages"]
    if format.form in ("conversation", "label") and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return {"messages": ending_in_user(row, messages), **_carried(row)}


def to_ranking(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"messages", "answers", "ranks"}; a pair has ranks 1 and 2, a tie 1 and 1. Raises UserError."""
    row, format = _recognised(row, field_map, "ranking")
    ranking = format.read(row)
    ending_in_user(row, ranking["messages"])
    return {**ranking, **_carried(row, *_LABELER)}


def to_choices(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"query", "choices", "gold"}; `gold` counts from 0. Raises UserError."""
    row, format = _recognised(row, field_map, "choices")
    return {**format.read(row), **_carried(row, "task")}


CONVERT: dict[str, Callable[[Row, FieldMap], Form]] = {
    "text": to_text,
    "prompt": to_prompt,
    "conversation": to_conversation,
    "label": to_label,
    "ranking": to_ranking,
    "choices": to_choices,
}
"""Form -> what brings a row to it."""


def texts(data: Sequence[Source], seed: int = 0) -> Iterator[str]:
    """The documents, lazily: they may be more than memory holds.

    `seed` (here and below) draws the mix of sources with different weights (`sources.mix`).

    Raises:
        UserError: bad row (with `bad_rows: refuse`), unreadable file, or no rows left. So do all loaders.
    """
    return (form["text"] for form in _load(data, "text", seed))


def conversations(data: Sequence[Source], seed: int = 0) -> list[Form]:
    """All conversations: {"messages"} ending in an assistant turn."""
    return list(_load(data, "conversation", seed))


def prompts(data: Sequence[Source], seed: int = 0) -> list[Form]:
    """All prompts: {"messages"} ending in a user turn; conversations lose their last answer."""
    return list(_load(data, "prompt", seed))


def labelled(data: Sequence[Source], seed: int = 0) -> list[Form]:
    """All labelled answers: {"messages", "answer", "label"}."""
    return list(_load(data, "label", seed))


def rankings(data: Sequence[Source], seed: int = 0) -> list[Form]:
    """All rankings: {"messages", "answers", "ranks"}, the answers of each in an order drawn from `seed`."""
    return [_shuffled(form, f"{seed}/{index}") for index, form in enumerate(_load(data, "ranking", seed))]


def choices(data: Sequence[Source], seed: int = 0) -> list[Form]:
    """All multiple-choice items: {"query", "choices", "gold"}."""
    return list(_load(data, "choices", seed))


def _load(data: Sequence[Source], form: str, seed: int) -> Iterator[Form]:
    return load(data, CONVERT[form], seed)


def _shuffled(ranking: Form, seed: str) -> Form:
    """The ranking with its answers (and ranks) in an order drawn from `seed`."""
    order = list(range(len(ranking["answers"])))
    random.Random(seed).shuffle(order)
    lists = [name for name in ("answers", "ranks", "finished") if name in ranking]
    return {**ranking, **{name: [ranking[name][index] for index in order] for name in lists}}


def _recognised(row: Row, field_map: FieldMap, *forms: str) -> tuple[Row, Format]:
    """The row under our names and its format, if that is of one of `forms`."""
    row = map_fields(row, field_map)
    format = detect(row.fields)
    example = next(format.example for format in FORMATS if format.form == forms[0] and format.example)
    if format is None:
        fault = f"no known format (fields: {names_of(row.fields)})"
        raise UserError(f"{row.place}: {fault}; name them in `fields`, e.g. fields: {example}")
    if format.form not in forms:
        fault = f"{_a(forms[0])} is needed, this row is {_a(format.form)} (format {format.name})"
        raise UserError(f"{row.place}: {fault}; give other data, or name the fields, e.g. fields: {example}")
    return row, format


def _a(form: str) -> str:
    return {"choices": "choices", "label": "a labelled answer"}.get(form, f"a {form}")


def _ending_in_assistant(row: Row, messages: Messages) -> Messages:
    in_order(row, messages)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{row.place}: the last turn is the {messages[-1]['role']}'s, not the assistant's; {ROW_ACT}")
    return messages


def _reach(row: Row, name: str) -> Any:
    """The row's field `name`; `a.b` is field b of the table in field a, unless a field has that very name."""
    value: Any = row.fields
    for part in [name] if name in row.fields else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{row.place}: no field '{name}' (fields: {names_of(row.fields)}); correct `fields`")
        value = value[part]
    return value


def _carried(row: Row, *names: str) -> Form:
    """What goes along unread: `meta`, and `names` where the row has them."""
    carried = {name: row.fields[name] for name in ("meta", *names) if row.fields.get(name) is not None}
    if not isinstance(carried.get("meta", {}), dict):
        raise UserError(f"{row.place}: 'meta' must be an object {{...}}, found {shown(carried['meta'])}; {ROW_ACT}")
    return carried
