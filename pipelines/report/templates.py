"""The pages' templates and their style sheet."""

from __future__ import annotations

from importlib import resources

from jinja2 import ChainableUndefined, Environment, FunctionLoader

from gptlife.pipelines.report.numbers import FILTERS


def environment() -> Environment:
    """Templates by their path in report/; a missing value is empty, text is escaped, numbers have their filters."""
    made = Environment(
        autoescape=True,
        loader=FunctionLoader(_source),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= FILTERS
    return made


def style() -> str:
    """The style sheet of gptlife's pages."""
    return _source("style.css")


def _source(name: str) -> str:
    return resources.files("gptlife.pipelines.report").joinpath(name).read_text(encoding="utf-8")
