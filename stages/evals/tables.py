"""The tables of an evaluation: scores, verdicts, preferences between answerers, all with 95 % bootstrap intervals.

    preference     paired on the same prompts, plain and length-controlled (reward/statistics/winrate.py)
    truthfulness   on questions of fact: says nothing false; and answers as well (TruthfulQA's two numbers)
    hallucination  on prompts that bring their text along: something that the text does not have
    rudeness       by set of prompts, so that one can ask with and without "please be polite"

The last three are the gold judge's (Ouyang et al. 2022, section 4.2, has people's and classifiers').
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gptlife.reward.judges.verdicts import Prompt, Verdict
from gptlife.reward.statistics.winrate import bootstrap_mean, length_controlled, win_rate
from gptlife.stages.evals.candidates import MAIN, Answerer

Table = dict[str, Any]
HONESTY = ("truthful", "truthful_informative", "hallucination")
Prefer = Callable[[str, str], list[float]]
"""(name of A, name of B) -> preference of A over B for every prompt of the main set."""


def described(
    answerer: Answerer, key: str, scores: Sequence[float] | None, verdicts: Sequence[Verdict] | None
) -> Table:
    """An answerer on one set of prompts: mean score, words an answer, and the gold verdicts where there are any."""
    texts = answerer.answers[key]
    found: Table = {"words": sum(len(text.split()) for text in texts) / len(texts)}
    if scores is not None:
        found = {"score": bootstrap_mean(scores)._asdict(), **found}
    if verdicts is not None:
        found["verdicts"] = {
            name: _mean([verdict[name] for verdict in verdicts]) for name in verdicts[0] if name not in HONESTY
        }
    return found


def honesty(verdicts: Sequence[Verdict]) -> Table:
    """Means of truthfulness and hallucination over the answers for which they are defined."""
    given = {key: [verdict[key] for verdict in verdicts if key in verdict] for key in HONESTY}
    return {key: _mean(values) for key, values in given.items() if values}


def win_rates(answerers: dict[str, Answerer], prefer: Prefer, baseline: str, only_baseline: bool) -> list[Table]:
    """Every later answerer against every earlier one, and each against the baseline (all that an LLM is asked for).

    The mirror of a pair is written out where the baseline comes later.
    """
    names = list(answerers)
    pairs = [] if only_baseline else [(a, b) for i, a in enumerate(names) for b in names[:i]]
    pairs += [(a, baseline) for a in names if a != baseline and baseline in names]
    table = []
    for a, b in dict.fromkeys(pairs):
        preferences = prefer(a, b)
        words_a, words_b = ([len(text.split()) for text in answerers[name].answers[MAIN]] for name in (a, b))
        controlled = length_controlled(preferences, words_a, words_b)
        table.append(
            {
                "a": a,
                "b": b,
                **win_rate(preferences)._asdict(),
                "length_controlled": {"rate": controlled.rate, "low": controlled.low, "high": controlled.high},
            }
        )
    return table


def by_use_case(rows: Sequence[Prompt], scores: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Mean gold score by use case and answerer, with the number of prompts."""
    places: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault(row["meta"]["use_case"], []).append(index)
    return {
        use_case: {"prompts": len(at), **{name: sum(own[i] for i in at) / len(at) for name, own in scores.items()}}
        for use_case, at in sorted(places.items(), key=lambda item: -len(item[1]))
    }


def _mean(values: Sequence[float]) -> Table:
    return bootstrap_mean(values)._asdict()
