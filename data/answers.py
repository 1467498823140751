"""A prompt with its answers as token ids, within a limit: the encoding that rankings, judges and best of n share.

A reward model reads `prompt + answer`, with the end-of-text token if the answer ended by itself and without it if
sampling was cut off. The caller says what happens to a row over the limit (`too_long`). PPO does not use this: its rows
are the tokens that were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded, encode_answer, encode_prompt
from gptlife.data.turns import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["drop", "cut", "refuse"]
"""What happens to a row over the limit: it is left out, loses its last tokens, or is an error."""


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    answers: Sequence[str],
    finished: Sequence[bool] | None,
    *,
    limit: int,
    too_long: TooLong,
    place: str,
) -> list[Encoded | None]:
    """The prompt followed by each of its answers; None for a dropped one.

    Args:
        messages: the prompt, ending in the user's turn.
        finished: for each answer, whether it ended by itself and so gets the end-of-text token; None: all did.
        limit: most tokens of prompt and answer together, the end-of-text token included.
        too_long: what to do with a longer row. `cut` keeps its first `limit` tokens.
        place: begins an error's text, e.g. "evaluation.prompts: prompt 3".

    Raises:
        UserError: a row is too long and `too_long` is `refuse`, or the prompt alone fills the limit and it is `cut`.
    """
    prompt = encode_prompt(tokenizer, messages)
    room = limit - len(prompt)
    if too_long == "cut" and room < 1:
        raise UserError(f"{place} has {len(prompt)} tokens, the limit is {limit}; shorten it so that an answer fits")
    ended = [True] * len(answers) if finished is None else finished
    encoded: list[Encoded | None] = []
    for text, done in zip(answers, ended, strict=True):
        ids = encode_answer(tokenizer, text, done)
        if len(ids) > room and too_long == "refuse":
            count = f"{len(prompt) + len(ids)} tokens with its answer"
            raise UserError(f"{place} has {count}, the limit is {limit}; shorten it or leave it out")
        encoded.append(None if len(ids) > room and too_long == "drop" else prompt.followed_by(ids[: max(0, room)]))
    return encoded
