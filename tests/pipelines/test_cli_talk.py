"""`gptlife chat` and `gptlife compare`: what they print."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from gptlife.stages.generation import chat


class Speaker:
    """Says the whole conversation, its settings and its seed over again."""

    name = "parrot"

    class tokenizer:
        chat_template = "x"

    def answer(self, messages, sampling, seed):
        said = "|".join(message["content"] for message in messages)
        return f"{said}#{sampling.temperature},{sampling.max_tokens},{seed}"


@pytest.fixture
def two_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories `a` and `b` that are taken for models."""
    monkeypatch.setattr(chat, "load", lambda path: Speaker())
    for name in ("a", "b"):
        (folder / name).mkdir()


def test_the_chat_command_reads_lines(gptlife, two_models, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n/quit\n"))
    talked = gptlife("chat", "a", "--temperature", "0", "--max-tokens", "12")
    assert talked.code == 0, talked.err
    assert talked.out == "the cat#0.0,12,1\n"
    assert "a (/reset, /quit)" in talked.err


def test_the_compare_command_puts_answers_side_by_side(gptlife, two_models):
    compared = gptlife("compare", "a", "b", "--prompt", "what is [this]?")
    assert compared.code == 0
    assert compared.out.count("what is [this]?#0") == 2
    assert gptlife("compare", "a", "b").err == "gptlife: compare: no prompts; give --prompt TEXT or --prompts FILE\n"
