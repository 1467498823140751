"""The gold judge's verdicts by name, and where each is defined."""

from __future__ import annotations

import pytest

from gptlife.data.errors import UserError
from gptlife.data.village import verdicts as module
from gptlife.data.village.judge import Verdict
from gptlife.data.village.verdicts import verdicts

FACTUAL = {"task": "fact"}
CLOSED = {"task": "closed", "context": "A text."}
STORY = {"task": "story", "context": "A text."}
PLAIN = {"follows", "true", "rude", "concise", "score"}


def verdict_of(meta: dict[str, str], follows: float, true: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setattr(module, "judge", lambda meta, answer: Verdict(follows, true, False, True, 0.25))
    (verdict,) = verdicts([{"messages": [], "meta": meta}], ["An answer."])
    return verdict


def test_all_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = verdict_of(STORY, 0.5, True, monkeypatch)
    assert verdict == {"follows": 0.5, "true": 1.0, "rude": 0.0, "concise": 1.0, "score": 0.25}
    assert {type(value) for value in verdict.values()} == {float}


@pytest.mark.parametrize(
    ("follows", "true", "truthful", "informative"), [(1.0, True, 1, 1), (0.5, True, 1, 0), (1.0, False, 0, 0)]
)
def test_truthfulness_is_of_questions_of_fact(
    follows: float, true: bool, truthful: float, informative: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = verdict_of(FACTUAL, follows, true, monkeypatch)
    assert set(verdict) - PLAIN == {"truthful", "truthful_informative"}
    assert (verdict["truthful"], verdict["truthful_informative"]) == (truthful, informative)


@pytest.mark.parametrize(("true", "hallucination"), [(True, 0), (False, 1)])
def test_hallucination_is_of_prompts_with_a_text(
    true: bool, hallucination: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = verdict_of(CLOSED, 1.0, true, monkeypatch)
    assert set(verdict) - PLAIN == {"hallucination"}
    assert verdict["hallucination"] == hallucination


def test_prompts_of_something_else_are_refused() -> None:
    with pytest.raises(UserError, match=r"^judge\.village: a prompt has no `meta`, so it is not of the Village; use"):
        verdicts([{"messages": []}], ["An answer."])
