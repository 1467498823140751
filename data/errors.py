"""The one error type whose text is written for users, and suggestions for misspelt names."""

from __future__ import annotations

import difflib


class UserError(Exception):
    """An error that the user can fix. Its text is one line: place, value, next act. The command exits with 2.

    Line ends, control characters and terminal codes in the text are escaped, so that it stays one line.
    """

    def __init__(self, message: str) -> None:
        escaped = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(escaped))


def suggest(word: str, names: list[str]) -> str:
    """`; did you mean 'x'?`, or the list of all `names` when none is similar."""
    similar = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{similar[0]}'?" if similar else f"; there are: {', '.join(dict.fromkeys(names))}"
