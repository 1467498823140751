"""Configs of judges and labelers: what they refuse, and what enters an address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_stub import config

from gptlife.data.config import decode, sha256_of_file
from gptlife.data.errors import UserError
from gptlife.reward.judges.config import JudgeConfig, PanelConfig

LLM = {"endpoint": "http://localhost:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    "raw",
    [{}, {"village": True, "reward_model": True}, {"village": True, "function": "a:b"}, {"village": True, "llm": LLM}],
)
def test_exactly_one_judge(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^judge: name exactly one judge"):
        decode(JudgeConfig, raw, "judge")


@pytest.mark.parametrize("raw", [{}, {"village": "training", "function": "a:b"}])
def test_exactly_one_panel(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^labelers: name exactly one panel"):
        decode(PanelConfig, raw, "labelers")


def test_identities_of_outputs_that_exist() -> None:
    """Written down from the addresses of outputs made before: they must not change."""
    judge = {"function": None, "llm": None, "reward_model": False, "village": True}
    assert decode(JudgeConfig, {"village": True}, "x").identity(sha256_of_file) == judge
    panel = {"function": None, "seed": 0, "village": "heldout"}
    assert decode(PanelConfig, {"village": "heldout"}, "x").identity(sha256_of_file) == panel


@pytest.mark.parametrize("model", [JudgeConfig, PanelConfig])
def test_a_function_enters_the_address_by_content(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(prompts, answers): ...\n", encoding="utf-8")
    identity = decode(model, {"function": f"{path}:f"}, "x").identity(sha256_of_file)
    assert identity["function"] == f"{sha256_of_file(str(path))}:f"


def test_what_enters_the_address() -> None:
    plain = config("http://localhost:8000/v1")
    same = config(
        "http://localhost:8000/v1", timeout=1.0, retries=0, parallel=3, prompt_price=1.0, completion_price=1.0,
        key_variable="KEY", max_unparseable=0.5,
    )  # fmt: skip
    assert same.identity(str) == plain.identity(str)
    for change in ({"model": "x"}, {"both_orders": False}, {"instruction": "x"}, {"temperature": 1.0}):
        assert config("http://localhost:8000/v1", **change).identity(str) != plain.identity(str)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"endpoint": "localhost:8000"},
            r"^judge\.llm\.endpoint: expected an address such as http://localhost:8000/v1$",
        ),
        ({"endpoint": "http://h:port/v1"}, r"^judge\.llm\.endpoint: port could not be cast"),
        ({"endpoint": "http://h/v 1"}, r"^judge\.llm\.endpoint: expected an address"),
        (
            {"endpoint": "http://me:secret@h/v1"},
            r"^judge\.llm\.endpoint: the address has more than host, port and path; put a key into the variable",
        ),
        ({"endpoint": "http://h/v1?api-key=secret"}, r"^judge\.llm\.endpoint: the address has more than host"),
        ({"prompt_price": 1.0}, r"^judge\.llm: give both prompt_price and completion_price, or neither$"),
        ({"parallel": 0}, r"^judge\.llm\.parallel: "),
    ],
)
def test_refused_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config(fields.get("endpoint", "http://h/v1"), **fields)
    assert "secret" not in str(caught.value)
