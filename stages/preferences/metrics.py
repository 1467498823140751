"""Metrics of a reward model on held-out rankings: is it right, does it know when, does it order as the truth does?

An ensemble is measured by the mean of its members' scores, beside the accuracy of every member and every rule, and by
whether its members disagree where it is wrong, which rules that penalise disagreement rely on.

Legend: M members, N answers of all rankings, one ranking after the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gptlife.data.errors import UserError
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.verdicts import Judge, scores_of
from gptlife.reward.statistics.accuracy import accuracy
from gptlife.stages.preferences.rankings import answers_of
from gptlife.stages.runtime.stage import Metrics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Row = dict[str, Any]


def gold_judge(config: JudgeConfig | None) -> Judge | None:
    """The judge that the scores are compared with, loaded before anything is trained.

    Raises:
        UserError: when it can't be loaded, or is itself a reward model.
    """
    from gptlife.reward.judges.judge import load_judge

    if config is not None and config.reward_model:
        raise UserError("reward_model.gold: reward_model has no score before it is trained; name another judge")
    return None if config is None else load_judge(config, "reward_model.gold")


def member_scores(folders: Sequence[Path], parts: Sequence[Sequence[Row]], device: torch.device) -> list[Tensor]:
    """scores_MN of each part's answers, by the members as they were saved."""
    import torch

    from gptlife.stages.modeling import loading
    from gptlife.stages.modeling.forward import SelectedScores
    from gptlife.stages.modeling.scorer import score

    scores: list[list[Tensor]] = [[] for _ in parts]
    for folder in folders:
        reader = SelectedScores(loading.load_scorer(folder)).to(device).eval()
        for rows, of_part in zip(parts, scores, strict=True):
            of_part.append(score(reader, answers_of(rows)))
    return [torch.stack(of_part) for of_part in scores]


def margins(scores: Sequence[float], rows: Sequence[Row]) -> list[list[float]]:
    """For each ranking, score of the better minus score of the worse over its untied pairs."""
    from gptlife.data.rankings import pairs

    return [
        [of_row[better] - of_row[worse] for better, worse in pairs(row["ranks"])]
        for row, of_row in zip(rows, _by_ranking(scores, rows), strict=True)
    ]


def _by_ranking(scores: Sequence[float], rows: Sequence[Row]) -> list[Sequence[float]]:
    ends = list(accumulate((len(row["answers"]) for row in rows), initial=0))
    return [scores[start:end] for start, end in pairwise(ends)]


def by_group(by_ranking: Sequence[Sequence[float]], rows: Sequence[Row]) -> dict[str, list[float]]:
    """The rankings' margins by labeler group (`all` where a ranking names none)."""
    groups: dict[str, list[float]] = {}
    for row, of_row in zip(rows, by_ranking, strict=True):
        groups.setdefault(str(row.get("group") or "all"), []).extend(of_row)
    return groups


def held_out_metrics(scores_MN: Tensor, rows: Sequence[Row], name: str, gold: Judge | None = None) -> Metrics:
    """Everything that is measured on rankings not trained on; `name` (`validation`, `test`) begins the metrics' names.

    Accuracy overall, by labeler group, by confidence and by the labelers' agreement; calibration; the accuracy of
    always choosing the longer answer; with several members their disagreement, with `gold` the correlation with it.
    """
    from gptlife.reward.statistics.calibration import accuracy_by, reliability

    scores = scores_MN.mean(0).tolist()
    by_ranking = margins(scores, rows)
    flat = [margin for of_row in by_ranking for margin in of_row]
    sizes = [float(len(text)) for row in rows for text in row["answers"]]
    bare = "" if name == "validation" else f"{name}_"
    return {
        f"{name}_accuracy": accuracy(flat),
        **{f"{name}_accuracy_{group}": accuracy(own) for group, own in sorted(by_group(by_ranking, rows).items())},
        f"{bare}longer_baseline": accuracy([margin for of_row in margins(sizes, rows) for margin in of_row]),
        f"{name}_pairs": len(flat),
        f"{bare}calibration": asdict(reliability(flat)),
        f"{name}_by_confidence": accuracy_by([abs(margin) for margin in flat], flat),
        **_by_agreement(by_ranking, rows, name),
        **(_ensemble_metrics(scores_MN, rows, name) if len(scores_MN) > 1 else {}),
        **(_gold_metrics(scores, rows, name, gold) if gold is not None else {}),
    }


def _by_agreement(by_ranking: Sequence[Sequence[float]], rows: Sequence[Row], name: str) -> Metrics:
    """Accuracy where a second labeler orders the pair as the first one did (`agreed`), and where not (`disputed`)."""
    from gptlife.data.rankings import pairs

    kinds: dict[str, list[float]] = {"agreed": [], "disputed": []}
    for row, of_row in zip(rows, by_ranking, strict=True):
        second = set(pairs(row.get("second_ranks") or []))
        for pair, margin in zip(pairs(row["ranks"]), of_row, strict=True):
            if pair in second or pair[::-1] in second:
                kinds["agreed" if pair in second else "disputed"].append(margin)
    metrics: Metrics = {}
    for kind, flat in kinds.items():
        if flat:
            metrics |= {f"{name}_{kind}_accuracy": accuracy(flat), f"{name}_{kind}_pairs": len(flat)}
    return metrics


def _ensemble_metrics(scores_MN: Tensor, rows: Sequence[Row], name: str) -> Metrics:
    """Accuracy of every member and of every rule (λ = 1), and whether the members disagree where the mean is wrong.

    `disagreement` is the members' standard deviation of an answer's score, averaged over answers; `by_disagreement` is
    the accuracy by quarters of the pairs, from the smallest to the largest standard deviation of the pair's margin.
    Read it beside `by_confidence`: wide margins also spread more, and are right more often.
    """
    import torch

    from gptlife.reward.ensemble import EnsembleConfig, Rule, combine
    from gptlife.reward.statistics.calibration import accuracy_by

    def flat(scores_N: Tensor) -> list[float]:
        return [margin for of_row in margins(scores_N.tolist(), rows) for margin in of_row]

    rules = {rule: combine(scores_MN, EnsembleConfig(rule=rule)) for rule in get_args(Rule)}
    members = [flat(scores_N) for scores_N in scores_MN]
    doubt = torch.tensor(members, dtype=torch.float64).std(0, correction=0).tolist()
    return {
        f"{name}_member_accuracies": [accuracy(own) for own in members],
        **{f"{name}_{rule}_accuracy": accuracy(flat(scores_N)) for rule, scores_N in rules.items()},
        f"{name}_disagreement": float(scores_MN.std(0, correction=0).mean()),
        f"{name}_by_disagreement": accuracy_by(doubt, flat(rules["mean"])),
    }


def _gold_metrics(scores: Sequence[float], rows: Sequence[Row], name: str, gold: Judge) -> Metrics:
    """Spearman's correlation of score and gold score, over a prompt's answers (averaged over prompts) and over all.

    `gold_accuracy` is the accuracy on the pairs of a prompt's answers that the gold judge scores differently. Answers
    that several labelers ranked are judged once.
    """
    from gptlife.data.rankings import pairs
    from gptlife.reward.statistics.calibration import spearman

    once = {
        json.dumps([row["messages"], row["answers"]]): (row, of_row)
        for row, of_row in zip(rows, _by_ranking(scores, rows), strict=True)
    }
    asked = [(row, text) for row, _ in once.values() for text in row["answers"]]
    truths = iter(scores_of(gold([row for row, _ in asked], [text for _, text in asked])))
    judged = [(of_row, [next(truths) for _ in of_row]) for _, of_row in once.values()]
    rhos = [rho for of_row, truth in judged if (rho := spearman(of_row, truth)) is not None]
    right = [of_row[i] - of_row[j] for of_row, truth in judged for i, j in pairs([-value for value in truth])]
    pooled = [(score, value) for of_row, truth in judged for score, value in zip(of_row, truth, strict=True)]
    return {
        f"{name}_gold_accuracy": accuracy(right),
        f"{name}_gold_spearman": sum(rhos) / len(rhos) if rhos else None,
        f"{name}_gold_spearman_pooled": spearman([score for score, _ in pooled], [value for _, value in pooled]),
    }
