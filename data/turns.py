"""Turns: a row's fields read as documents, prompts and conversations, whatever shape they were published in.

White space around a turn is layout and is removed: some generators begin every answer with a space, and a reward model
would learn to detect it. So is an "<|endoftext|>" at the end of an answer (files made for GPT-3's fine-tuning, such as
T0's, spell it out): the chat template writes the end, and the model would learn the spelled one as text.

Every refusal is a UserError: `place: fault; next act`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptlife.data.errors import UserError
from gptlife.data.readers import Row
from gptlife.data.values import is_int

Messages = list[dict[str, str]]
Form = dict[str, Any]
"""A row in one of the forms that `gptlife.data.forms` lists."""

_ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"},
}
_END_MARK = "<|endoftext|>"
EMPTY_ACT = "fill it, remove the row, or set bad_rows: skip"
ROW_ACT = "fix or remove the row, or set bad_rows: skip"

PROMPT_FIELDS = ("messages", "conversations", "prompt", "instruction")
"""Fields that may hold a prompt, in the order in which they are tried."""
ALPACA_ANSWERS = ("output", "response")


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


def turn(row: Row, role: str, name: str, text: str) -> dict[str, str]:
    """{"role", "content"}, stripped of white space and of an answer's spelled end; an empty one is refused."""
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
        raise UserError(f"{row.place}: '{name}' holds {shown(message)}, which is not a message; {ROW_ACT}")
    speaker, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(speaker, str) or speaker not in _ROLES:
        roles = f"known are {', '.join(_ROLES)}"
        raise UserError(f"{row.place}: '{name}' has role {shown(speaker)}, {roles}; {ROW_ACT}")
    if not isinstance(text, str):
        raise UserError(f"{row.place}: '{name}' has content {shown(text)}, which is not text; {ROW_ACT}")
    return turn(row, _ROLES[speaker], name, text)


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


def first_of(row: Row, names: tuple[str, ...]) -> str:
    """The first of `names` that the row has; the row's format says that it has one."""
    return next(name for name in names if row.fields.get(name) is not None)


def from_text(row: Row) -> Form:
    """A document."""
    if not string(row, "text").strip():
        raise UserError(f"{row.place}: 'text' is empty; {EMPTY_ACT}")
    return {"text": row.fields["text"]}


def from_choices(row: Row) -> Form:
    """A question with possible answers, of which number `gold` (from 0) is right."""
    choices, gold = strings(row, "choices"), row.fields["gold"]
    if len(choices) < 2:
        raise UserError(f"{row.place}: 'choices' has {len(choices)} entries, at least 2 are needed; {ROW_ACT}")
    if not is_int(gold) or not 0 <= gold < len(choices):
        raise UserError(f"{row.place}: 'gold' is {shown(gold)}, not one of 0 to {len(choices) - 1}; {ROW_ACT}")
    return {"query": string(row, "query"), "choices": choices, "gold": gold}


def from_prompt(row: Row) -> Form:
    """A prompt alone."""
    return {"messages": read_prompt(row)}


def from_messages(row: Row) -> Form:
    """OpenAI's `messages`."""
    return {"messages": system_turn(row) + read_messages(row, "messages")}


def from_sharegpt(row: Row) -> Form:
    """ShareGPT's `conversations`."""
    return {"messages": system_turn(row) + read_messages(row, "conversations")}


def from_completion(row: Row) -> Form:
    """`prompt` and `completion`, each a text or a list of messages."""
    return {"messages": read_prompt(row) + _answer(row, "completion")}


def from_alpaca(row: Row) -> Form:
    """`instruction`, perhaps `input`, and `output` or `response`."""
    return {"messages": read_prompt(row) + _answer(row, first_of(row, ALPACA_ANSWERS))}


def from_question(row: Row) -> Form:
    """`question` and `answer`."""
    question = turn(row, "user", "question", string(row, "question"))
    return {"messages": [question, turn(row, "assistant", "answer", string(row, "answer"))]}


def _answer(row: Row, name: str) -> Messages:
    if isinstance(row.fields[name], list):
        return read_messages(row, name)
    return [turn(row, "assistant", name, string(row, name))]


def in_order(row: Row, messages: Messages) -> Messages:
    """The messages, if user and assistant alternate, beginning with the user or with one system turn."""
    roles = [turn["role"] for turn in messages]
    if "system" in roles[1:]:
        raise UserError(f"{row.place}: turn {roles.index('system', 1) + 1} is the system's, not the first; {ROW_ACT}")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    for index, role in enumerate(spoken):
        if role != ("user", "assistant")[index % 2]:
            number = index + 1 + len(roles) - len(spoken)
            fault = f"turns {number - 1} and {number}: {role} twice" if index else "the first turn is the assistant's"
            raise UserError(f"{row.place}: roles out of order ({fault}); {ROW_ACT}")
    return messages


def ending_in_user(row: Row, messages: Messages) -> Messages:
    """The messages in order, if the user speaks last."""
    in_order(row, messages)
    if not messages or messages[-1]["role"] != "user":
        fault = f"ends in the {messages[-1]['role']}'s turn" if messages else "has no turn"
        raise UserError(f"{row.place}: the prompt {fault}, not in the user's; {ROW_ACT}")
    return messages


def read_transcript(row: Row, name: str) -> Messages:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; turns of one role in a row are joined; the last may be empty."""
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", string(row, name))
    if before.strip() or not parts:
        raise UserError(
            f"{row.place}: '{name}' has no prompt and is not a transcript (\\n\\nHuman: ...); {ROW_ACT}, "
            "or name the prompt in `fields`"
        )
    turns: Messages = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role, text = ("user" if speaker == "Human" else "assistant"), text.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{text}"
        else:
            turns.append({"role": role, "content": text})
    # "Assistant: Human: ..." and a bare "Human" at the end are leaked turn marks: the human speaks last.
    if re.search(r"\bHuman:|\n\nHuman$", turns[-1]["content"]) and turns[-1]["role"] == "assistant":
        raise UserError(f"{row.place}: '{name}' ends in a Human turn; {ROW_ACT}")
    if any(not turn["content"] for turn in turns[:-1]):
        raise UserError(f"{row.place}: '{name}' has an empty turn; {EMPTY_ACT}")
    return turns
