"""The one error type that a user is meant to read, and suggestions for misspelt names."""

from __future__ import annotations

import difflib


class UserError(Exception):
    """Something the user can mend. Its text is one line: place, value, next act. The command exits with 2.

    What a value holds (line ends, control characters, terminal codes) is spelled out, so that it stays one line.
    """

    def __init__(self, message: str) -> None:
        spelled = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(spelled))


def suggest(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?`, or the list of what there is when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"
