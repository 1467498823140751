"""Turns: prompts and conversations read from a row's fields, whatever shape they were published in.

White space around a turn is layout, not content, and is removed: some generators begin every answer with a space, and
a reward model would learn to smell it. So is an "<|endoftext|>" that an answer ends with (files made for GPT-3's
fine-tuning, such as T0's, spell it out): the chat template writes the end, and the spelled one would be learnt as text.
Every refusal is a UserError `place: fault; next act`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptlife.data.errors import UserError
from gptlife.data.readers import Row

Messages = list[dict[str, str]]

_ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"},
}
_END_MARK = "<|endoftext|>"
EMPTY_ACT = "fill it, remove the row, or set bad_rows: skip"
ROW_ACT = "mend or remove the row, or set bad_rows: skip"

PROMPT_FIELDS = ("messages", "conversations", "prompt", "instruction")
"""Where a prompt may stand, in the order in which they are tried."""


def string(row: Row, name: str) -> str:
    """The text in field `name`."""
    value = row.fields.get(name)
    if not isinstance(value, str):
        raise UserError(f"{row.place}: '{name}' must be text, found {shown(value)}; {ROW_ACT}")
    return value


def strings(row: Row, name: str) -> list[str]:
    """The list of texts in field `name`."""
    value = row.fields[name]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{row.place}: '{name}' must be a list of texts, found {shown(value)}; {ROW_ACT}")
    return value


def shown(value: Any) -> str:
    """The value as a message shows it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def names_of(fields: Mapping[str, Any]) -> str:
    """The names of a row's fields as a message shows them: at most 200 characters."""
    text = ", ".join(fields) or "none"
    return text if len(text) <= 200 else f"{text[:197]}..."


def is_int(value: Any) -> bool:
    """Whether the value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def turn(row: Row, role: str, name: str, text: str) -> dict[str, str]:
    """{"role", "content"} without white space around, an answer without a written end mark; refuses an empty one."""
    text = text.strip()
    if role == "assistant":
        text = text.removesuffix(_END_MARK).rstrip()
    if not text:
        what = "answer" if role == "assistant" else "prompt" if role == "user" else "turn"
        raise UserError(f"{row.place}: {what} ('{name}') is empty; {EMPTY_ACT}")
    return {"role": role, "content": text}


def read_messages(row: Row, name: str) -> Messages:
    """The message list in field `name`, in OpenAI's terms (role, content) or ShareGPT's (from, value)."""
    value = row.fields[name]
    if not isinstance(value, list) or not value:
        raise UserError(f"{row.place}: '{name}' must be a list of messages, found {shown(value)}; {ROW_ACT}")
    return [read_message(row, name, message) for message in value]


def read_message(row: Row, name: str, message: Any) -> dict[str, str]:
    """One turn of field `name` as {"role", "content"}."""
    if not isinstance(message, Mapping):
        raise UserError(f"{row.place}: '{name}' holds {shown(message)}, no message; {ROW_ACT}")
    said_by, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(said_by, str) or said_by not in _ROLES:
        found = f"role {shown(said_by)}, known are {', '.join(_ROLES)}"
        raise UserError(f"{row.place}: '{name}' has {found}; {ROW_ACT}")
    if not isinstance(text, str):
        raise UserError(f"{row.place}: '{name}' has content {shown(text)}, no text; {ROW_ACT}")
    return turn(row, _ROLES[said_by], name, text)


def system_turn(row: Row) -> Messages:
    """The turn in field `system` (ShareGPT and LLaMA-Factory keep it apart), if there is one."""
    system = row.fields.get("system")
    return [turn(row, "system", "system", string(row, "system"))] if system else []


def read_prompt(row: Row) -> Messages:
    """The prompt of the row, from the first of PROMPT_FIELDS that it has."""
    name = next((name for name in PROMPT_FIELDS if row.fields.get(name) is not None), None)
    if name is None:
        raise UserError(f"{row.place}: there is no prompt; {ROW_ACT}")
    value = row.fields[name]
    if isinstance(value, list):
        return system_turn(row) + read_messages(row, name)
    text = string(row, name)
    if name == "instruction":
        extra = row.fields.get("input")
        text = f"{text.strip()}\n\n{extra.strip()}" if isinstance(extra, str) and extra.strip() else text
    elif text.startswith("\n\nHuman:"):
        messages = read_transcript(row, name)
        return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages
    return [*system_turn(row), turn(row, "user", name, text)]


def read_conversation(row: Row, name: str) -> Messages:
    """The turns of a row whose format is `name`; who speaks last is not checked."""
    if name in ("messages", "sharegpt"):
        return system_turn(row) + read_messages(row, "messages" if name == "messages" else "conversations")
    if name == "question_answer":
        return [
            turn(row, "user", "question", string(row, "question")),
            turn(row, "assistant", "answer", string(row, "answer")),
        ]
    answers = {"prompt_completion": ("completion",), "alpaca": ("output", "response")}[name]
    field = next(field for field in answers if row.fields.get(field) is not None)
    if isinstance(row.fields[field], list):
        return read_prompt(row) + read_messages(row, field)
    return [*read_prompt(row), turn(row, "assistant", field, string(row, field))]


def in_order(row: Row, messages: Messages) -> Messages:
    """The messages, if user and assistant take turns, the user first, after a system turn at most."""
    roles = [turn["role"] for turn in messages]
    if "system" in roles[1:]:
        raise UserError(f"{row.place}: turn {roles.index('system', 1) + 1} is the system's, not the first; {ROW_ACT}")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    for place, role in enumerate(spoken):
        if role != ("user", "assistant")[place % 2]:
            number = place + 1 + len(roles) - len(spoken)
            found = (
                "the first turn is the assistant's" if not place else f"turns {number - 1} and {number}: {role} twice"
            )
            raise UserError(f"{row.place}: roles out of order ({found}); {ROW_ACT}")
    return messages


def ending_in_user(row: Row, messages: Messages) -> Messages:
    """The messages in order, if the user speaks last."""
    in_order(row, messages)
    if not messages or messages[-1]["role"] != "user":
        found = f"ends in the {messages[-1]['role']}'s turn" if messages else "has no turn"
        raise UserError(f"{row.place}: the prompt {found}, not in the user's; {ROW_ACT}")
    return messages


def read_transcript(row: Row, name: str) -> Messages:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; neighbours of one role are joined; the last may be empty."""
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", string(row, name))
    if before.strip() or not parts:
        raise UserError(
            f"{row.place}: '{name}' has no prompt and is no transcript (\\n\\nHuman: ...); {ROW_ACT}, "
            "or name the prompt in `fields`"
        )
    turns: Messages = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role, text = ("user" if speaker == "Human" else "assistant"), text.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{text}"
        else:
            turns.append({"role": role, "content": text})
    # "Assistant: Human: ..." and a bare "Human" at the end are leaked turn marks: the human has the last word.
    if re.search(r"\bHuman:|\n\nHuman$", turns[-1]["content"]) and turns[-1]["role"] == "assistant":
        raise UserError(f"{row.place}: '{name}' ends in a Human turn; {ROW_ACT}")
    if any(not turn["content"] for turn in turns[:-1]):
        raise UserError(f"{row.place}: '{name}' has an empty turn; {EMPTY_ACT}")
    return turns
