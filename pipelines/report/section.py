"""What a section of the report is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gptlife.pipelines.report.life import Life


class Section(NamedTuple):
    """A part of the page: its template is `sections/<template>.html`, its anchor `#<anchor>`."""

    anchor: str
    link: str
    """What the page's navigation calls it; `link` in the context goes before."""
    build: Callable[[Life], dict[str, Any] | None]
    """What its template shows of a life; None leaves the section out."""
    template: str
