"""What a model reads as one row: a prompt, a prompt with its answer, a conversation, a stretch of text.

Everything between the encoding (`tokens.py`, `answers.py`) and the tensors (`stages/modeling/batch.py`) passes this
object on whole. Another modality is a field here and an entry of `inputs` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Encoded:
    """Token ids, and which of them are learnt or scored; `len` counts the tokens."""

    tokens: list[int]
    marks: list[bool]
    """For each token, whether it is the model's to say: an answer and its end token. A prompt has none."""

    @classmethod
    def prompt(cls, tokens: Sequence[int]) -> Encoded:
        """Tokens that the model only reads."""
        return cls(list(tokens), [False] * len(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def followed_by(self, answer: Sequence[int]) -> Encoded:
        """This row with the tokens of an answer behind it, marked."""
        return replace(self, tokens=[*self.tokens, *answer], marks=self.marks + [True] * len(answer))

    def without_last(self) -> Encoded:
        """All tokens but the last: what is read to predict each token but the first."""
        return replace(self, tokens=self.tokens[:-1], marks=self.marks[:-1])

    def split(self) -> tuple[Encoded, list[int]]:
        """The prompt and the answer's tokens of `prompt.followed_by(answer)`."""
        begin = len(self) - sum(self.marks)
        return replace(self, tokens=self.tokens[:begin], marks=self.marks[:begin]), self.tokens[begin:]
