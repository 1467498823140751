"""The file of a language model's replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlife.data.errors import UserError
from gptlife.reward.judges.reply_cache import Kept, ReplyCache

REPLY = Kept("1", 1000, None, 2, "Because.\nVerdict: 1")


def test_replies_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "replies"
    ReplyCache(path).add("x", REPLY)
    again = ReplyCache(path)
    assert again["x"] == REPLY
    assert (again.keys(), "y" in again) == ({"x"}, False)


def test_a_line_cut_short_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "replies"
    ReplyCache(path).add("x", REPLY)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    cache = ReplyCache(path)
    assert path.read_bytes() == whole
    cache.add("y", REPLY)
    assert ReplyCache(path).keys() == {"x", "y"}


def test_without_a_file_replies_live_in_memory() -> None:
    cache = ReplyCache(None)
    cache.add("x", REPLY)
    assert cache["x"] == REPLY


@pytest.mark.parametrize("line", ["no json", "[1]", '{"verdict": "1"}', '{"request": "x", "verdict": "1"}'])
def test_a_cache_of_something_else_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "replies"
    ReplyCache(path).add("x", REPLY)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"replies:2: not a judge's reply; remove the line$"):
        ReplyCache(path)
