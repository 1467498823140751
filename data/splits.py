"""Splits: rows held out from training."""

from __future__ import annotations

from typing import Any

from gptlife.data.errors import UserError


def split(rows: list[Any], share: float, place: str) -> tuple[list[Any], list[Any]]:
    """The rows without the last `share` of them, and those last rows. `place` begins an error's text.

    Raises:
        UserError: either part would be empty.
    """
    held = round(len(rows) * share)
    if not 0 < held < len(rows):
        act = "give another share, or more rows"
        raise UserError(f"{place}: a share of {share} of {len(rows)} rows leaves no row on one side; {act}")
    return rows[:-held], rows[-held:]
