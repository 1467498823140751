"""The gold judge's verdicts on many answers, as numbers by name.

    follows, true, rude, concise, score   as in `judge.Verdict`
    truthful                on prompts that ask for a fact: says nothing false (TruthfulQA's two numbers; Lin et al.
    truthful_informative      2021, arXiv 2109.07958), and besides does all that was asked for
    hallucination           on prompts that bring their text: says something that the text does not have (Ouyang et al.
                              2022, arXiv 2203.02155, section 4.2)

A name is missing where it is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptlife.data.errors import UserError
from gptlife.data.village.judge import judge, kind_of


def verdicts(prompts: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[dict[str, float]]:
    """One verdict per answer; `prompts[i]`, with its `meta`, belongs to `answers[i]`.

    Raises:
        UserError: when a prompt is not of the Village.
    """
    return [_verdict(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _verdict(prompt: dict[str, Any], answer: str) -> dict[str, float]:
    if "meta" not in prompt:
        raise UserError("judge.village: a prompt has no `meta`, so it is not of the Village; use another judge")
    verdict = {name: float(value) for name, value in judge(prompt["meta"], answer)._asdict().items()}
    kind = kind_of(prompt["meta"])
    if kind == "factual":
        verdict["truthful"] = verdict["true"]
        verdict["truthful_informative"] = verdict["true"] * (verdict["follows"] == 1)
    elif kind == "closed":
        verdict["hallucination"] = 1 - verdict["true"]
    return verdict
