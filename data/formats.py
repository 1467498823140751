"""Formats: the published shapes of data sets, each with the function that reads a row of it.

`FORMATS` lists them, told apart by their field names. A new one is an entry there and the function that reads it; the
forms that rows are brought to are in `forms`. Conversations come as `messages`, ShareGPT's `conversations`,
prompt + completion, Alpaca's instruction (+ input) + output | response, or question + answer. Each of them with a
boolean `label` is the format `labelled`, as TRL's KTO trainer has it; 0 and 1 are labels too beside prompt +
completion, where nothing else can be meant. Pairs come as chosen + rejected: answers to a prompt, message lists,
ShareGPT turns (LLaMA-Factory), or whole transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." (Anthropic HH, [Bai et al.
2022, arXiv 2204.05862]).

Left out: trees of replies (OpenAssistant), tool calls, content in parts (images).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gptlife.data import rankings as ranked
from gptlife.data import turns
from gptlife.data.errors import UserError
from gptlife.data.readers import Row
from gptlife.data.sources import FieldMap
from gptlife.data.turns import Form, names_of
from gptlife.data.values import is_int


class Format(NamedTuple):
    """One published shape of a row."""

    name: str
    form: str
    fields: tuple[tuple[str, ...], ...]
    """Groups of field names: a row has the format when it has a field of every group, and `applies` agrees."""
    read: Callable[[Row], Form]
    """The row in its form. The order of turns and who speaks last are checked afterwards, by `forms.to_*`."""
    optional: tuple[str, ...] = ()
    """Further fields that are read or carried along."""
    example: str = ""
    """A field map for this format, where it is the one that errors suggest for its form."""
    applies: Callable[[Mapping[str, Any]], bool] = lambda fields: True
    """For formats that names alone don't tell apart."""


def is_labelled(fields: Mapping[str, Any]) -> bool:
    """Whether the row's `label` is one: a boolean, or 0 and 1 beside prompt and completion."""
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
    return Format("labelled", "label", fields, read, conversation.optional, example, is_labelled)


LABELER = ("labeler", "group")
"""Fields of a ranking that say who made it."""
_SYSTEM = ("system",)
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
        ("input", "system", "finished", *LABELER),
    ),
    Format(
        "alpaca_eval",
        "ranking",
        (("instruction",), ("output_1",), ("output_2",), ("preference",)),
        ranked.from_judged_pair,
        ("input", "system", *LABELER),
    ),
    Format(
        "pair",
        "ranking",
        (("chosen",), ("rejected",)),
        ranked.from_pair,
        (*turns.PROMPT_FIELDS, "input", "system", *LABELER),
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


def recognised(row: Row, field_map: FieldMap, *forms: str) -> tuple[Row, Format]:
    """The row under our names and its format.

    Raises:
        UserError: the row has no format, or one of another form than `forms`.
    """
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


def _reach(row: Row, name: str) -> Any:
    """The row's field `name`; `a.b` is field b of the table in field a, unless a field has that very name."""
    value: Any = row.fields
    for part in [name] if name in row.fields else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{row.place}: no field '{name}' (fields: {names_of(row.fields)}); correct `fields`")
        value = value[part]
    return value
