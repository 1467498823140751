"""The tables of an evaluation: scores, verdicts, preferences between candidates, all with 95 % bootstrap intervals.

preference  paired on the same prompts, plain and length-controlled (reward/statistics/winrate.py)
verdicts    each averaged over the answers that have it: a judge leaves one out where it is not defined
honesty     the verdicts `HONESTY`, by themselves
groups      mean scores by an entry of the prompts' `meta`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gptlife.reward.judges.verdicts import Prompt, Verdict, scores_of
from gptlife.reward.statistics.winrate import bootstrap_mean, length_controlled, win_rate

Table = dict[str, Any]
Prefer = Callable[[str, str], list[float]]
"""(name of A, name of B) -> preference of A over B for every prompt of the main set."""
HONESTY = ("truthful", "truthful_informative", "hallucination")
"""Says nothing false on a question of fact, and answers it as well (TruthfulQA's two numbers; Lin et al. 2021); says
something that the prompt's own text does not have (Ouyang et al. 2022, section 4.2)."""


def described(texts: Sequence[str], verdicts: Sequence[Verdict] | None) -> Table:
    """A candidate on one set of prompts: mean score, words per answer, and the verdicts where there are any."""
    table: Table = {"words": sum(map(n_words, texts)) / len(texts)}
    if verdicts is None:
        return table
    table = {"score": _mean(scores_of(verdicts)), **table}
    means = means_of(verdicts)
    kept = {key: mean for key, mean in means.items() if key not in HONESTY}
    return {**table, "verdicts": kept} if len(kept) > 1 else table


def honesty(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts `HONESTY` that were given."""
    means = means_of(verdicts)
    return {key: means[key] for key in HONESTY if key in means}


def means_of(verdicts: Sequence[Verdict]) -> Table:
    """Each verdict's mean over the rows that have it."""
    keys = dict.fromkeys(key for verdict in verdicts for key in verdict)
    return {key: _mean([verdict[key] for verdict in verdicts if key in verdict]) for key in keys}


def win_rates(texts: Mapping[str, Sequence[str]], prefer: Prefer, baseline: str, only_baseline: bool) -> list[Table]:
    """Every later candidate against every earlier one, and each against the baseline (all that an LLM is asked for).

    `texts` are the answers to the main prompts by candidate. The mirror of a pair is written where the baseline comes
    later.
    """
    names = list(texts)
    pairs = [] if only_baseline else [(a, b) for i, a in enumerate(names) for b in names[:i]]
    pairs += [(a, baseline) for a in names if a != baseline and baseline in names]
    table = []
    for a, b in dict.fromkeys(pairs):
        preferences = prefer(a, b)
        words_a, words_b = ([n_words(text) for text in texts[name]] for name in (a, b))
        controlled = length_controlled(preferences, words_a, words_b)
        rates = {"rate": controlled.rate, "low": controlled.low, "high": controlled.high}
        table.append({"a": a, "b": b, **win_rate(preferences)._asdict(), "length_controlled": rates})
    return table


def by_group(rows: Sequence[Prompt], scores: Mapping[str, Sequence[float]], entry: str) -> dict[str, Table]:
    """Mean score by candidate, and the number of prompts, for each value of `entry` in the prompts' `meta`.

    The largest group comes first; prompts without the entry are left out.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if entry in row.get("meta", {}):
            groups.setdefault(str(row["meta"][entry]), []).append(index)
    return {
        group: {"prompts": len(at), **{name: sum(each[i] for i in at) / len(at) for name, each in scores.items()}}
        for group, at in sorted(groups.items(), key=lambda item: -len(item[1]))
    }


def tasks_table(tasks: Mapping[str, Mapping[str, Table]]) -> dict[str, dict[str, Table]]:
    """By task and candidate, from what each candidate's tasks gave."""
    names: Iterable[str] = dict.fromkeys(task for given in tasks.values() for task in given)
    return {task: {name: given[task] for name, given in tasks.items() if task in given} for task in names}


def n_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def _mean(values: Sequence[float]) -> Table:
    return bootstrap_mean(values)._asdict()
