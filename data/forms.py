"""Forms: what the stages read. The rows of every format are brought to one of them here, and data sets are loaded.

- text          {"text"}
- prompt        {"messages": [{"role", "content"}, ...]} ending in a user turn
- conversation  {"messages": ...} ending in an assistant turn
- label         {"messages": prompt, "answer": str, "label": bool}, whether the answer is good
- ranking       {"messages": prompt, "answers": [str], "ranks": [int]}, 1 = best, equal = tie; also "labeler", "group",
                and "finished": [bool], whether each answer ended by itself
- choices       {"query", "choices": [str], "gold": int}, also "task"

`meta`, a dict, is carried through all of them. Documents and the answers of K-way rankings (a policy's own samples)
keep their white space; turns lose it (`turns`). Answers of a ranking come in a seeded random order, because in
published pairs the position gives the winner away (AlpacaEval's output_1 is nearly always the same generator).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from gptlife.data.errors import UserError
from gptlife.data.formats import LABELER, is_labelled, map_fields, recognised
from gptlife.data.readers import Row
from gptlife.data.sources import FieldMap, Source, load
from gptlife.data.turns import ROW_ACT, Form, Messages, ending_in_user, in_order, shown


def to_text(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"text"}. Raises UserError, as all of `to_*` do, with the row's place, the fault and the next act."""
    row, format = recognised(row, field_map, "text")
    return {**format.read(row), **_carried(row)}


def to_conversation(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"messages"} that end in an assistant turn. Raises UserError."""
    row, format = recognised(row, field_map, "conversation")
    return {"messages": _ending_in_assistant(row, format.read(row)["messages"]), **_carried(row)}


def to_label(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"messages", "answer", "label"}: a prompt, one answer, and whether it is good. Raises UserError."""
    row = _with_decoded_label(map_fields(row, field_map))
    label, completion = row.fields.get("label"), row.fields.get("completion")
    if label is not None and not is_labelled(row.fields):
        wanted = "true or false (0 and 1 only beside prompt and completion)"
        raise UserError(f"{row.place}: 'label' must be {wanted}, found {shown(label)}; {ROW_ACT}")
    if isinstance(completion, list) and len(completion) > 1:
        raise UserError(f"{row.place}: 'completion' has {len(completion)} turns, a label is of one answer; {ROW_ACT}")
    row, format = recognised(row, None, "label")
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
    row, format = recognised(row, field_map, "prompt", "conversation", "label", "ranking")
    messages = format.read(row)["messages"]
    if format.form in ("conversation", "label") and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return {"messages": ending_in_user(row, messages), **_carried(row)}


def to_ranking(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"messages", "answers", "ranks"}; a pair has ranks 1 and 2, a tie 1 and 1. Raises UserError."""
    row, format = recognised(row, field_map, "ranking")
    ranking = format.read(row)
    ending_in_user(row, ranking["messages"])
    return {**ranking, **_carried(row, *LABELER)}


def to_choices(row: Row, field_map: FieldMap = None) -> Form:
    """The row as {"query", "choices", "gold"}; `gold` counts from 0. Raises UserError."""
    row, format = recognised(row, field_map, "choices")
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


def _ending_in_assistant(row: Row, messages: Messages) -> Messages:
    in_order(row, messages)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{row.place}: the last turn is the {messages[-1]['role']}'s, not the assistant's; {ROW_ACT}")
    return messages


def _carried(row: Row, *names: str) -> Form:
    """What goes along unread: `meta`, and `names` where the row has them."""
    carried = {name: row.fields[name] for name in ("meta", *names) if row.fields.get(name) is not None}
    if not isinstance(carried.get("meta", {}), dict):
        raise UserError(f"{row.place}: 'meta' must be an object {{...}}, found {shown(carried['meta'])}; {ROW_ACT}")
    return carried
