"""A prompt with its answers as token ids, within a limit: the encoding that rankings, judges and best of n share.

A reward model reads `prompt + answer`, with the end-of-text token if the answer ended by itself and without it if
sampling was cut off. The caller says what happens to a row over the limit (`too_long`). PPO does not use this: its rows
are the tokens that were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from gptlife.data.errors import UserError
from gptlife.data.tokens import encode_answer, encode_prompt
from gptlife.data.turns import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["drop", "cut", "refuse"]
"""What happens to a row over the limit: it is left out, loses its last tokens, or is an error."""


class EncodedAnswers(NamedTuple):
    """Token ids of one prompt and of its answers; a dropped answer is None."""

    prompt: list[int]
    answers: list[list[int] | None]

    @property
    def rows(self) -> list[list[int] | None]:
        """The prompt followed by each answer."""
        return [None if answer is None else self.prompt + answer for answer in self.answers]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    answers: Sequence[str],
    finished: Sequence[bool] | None,
    *,
    limit: int,
    too_long: TooLong,
    place: str,
) -> EncodedAnswers:
    """Encode a prompt and its answers.

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
    encoded: list[list[int] | None] = []
    for text, done in zip(answers, ended, strict=True):
        ids = encode_answer(tokenizer, text, done)
        if len(ids) > room and too_long == "refuse":
            count = f"{len(prompt) + len(ids)} tokens with its answer"
            raise UserError(f"{place} has {count}, the limit is {limit}; shorten it or leave it out")
        encoded.append(None if len(ids) > room and too_long == "drop" else ids[: max(0, room)])
    return EncodedAnswers(prompt, encoded)
