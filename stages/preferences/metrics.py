"""What held-out rankings tell of a reward model: is it right, does it know when, does it order as the truth does?

An ensemble is measured by the mean of its members' scores, beside the accuracy of every member and every rule; whether
its members disagree where it is wrong is what a rule that pays for disagreement lives on.

Legend: M members, N answers, all rankings' in a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gptlife.data.errors import UserError
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.verdicts import Judge, scores_of
from gptlife.stages.runtime.stage import Metrics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Row = dict[str, Any]


def gold_judge(config: JudgeConfig | None) -> Judge | None:
    """The judge that the scores are compared with, loaded before anything is trained.

    Raises:
        UserError: when it can't be found, or is itself a reward model.
    """
    from gptlife.reward.judges.judge import load_judge

    if config is not None and config.reward_model:
        raise UserError("reward_model.gold: reward_model has no score before it is trained; name another judge")
    return None if config is None else load_judge(config, "reward_model.gold")


def member_scores(folders: Sequence[Path], parts: Sequence[Sequence[Row]], device: torch.device) -> list[Tensor]:
    """scores_MN of each part's answers, by the members as they lie in their folders."""
    import torch

    from gptlife.stages.modeling import loading
    from gptlife.stages.modeling.forward import SelectedScores
    from gptlife.stages.modeling.scorer import score

    found: list[list[Tensor]] = [[] for _ in parts]
    for folder in folders:
        reader = SelectedScores(loading.load_scorer(folder)).to(device).eval()
        for rows, own in zip(parts, found, strict=True):
            own.append(score(reader, [tokens for row in rows for tokens in row["tokens"]]))
    return [torch.stack(own) for own in found]


def margins(scores_N: Tensor, rows: Sequence[Row]) -> list[list[float]]:
    """For each ranking, score of the better minus score of the worse over its untied pairs."""
    from gptlife.data.rankings import pairs

    return [
        [own[better] - own[worse] for better, worse in pairs(row["ranks"])]
        for row, own in zip(rows, _by_ranking(scores_N, rows), strict=True)
    ]


def _by_ranking(scores_N: Tensor, rows: Sequence[Row]) -> list[list[float]]:
    flat, found, start = scores_N.tolist(), [], 0
    for row in rows:
        found.append(flat[start : start + len(row["answers"])])
        start += len(row["answers"])
    return found


def accuracy(margins: Sequence[float]) -> float:
    """Share of the pairs whose better answer scores higher; an equal score counts half."""
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / max(1, len(margins))


def held_out_metrics(scores_MN: Tensor, rows: Sequence[Row], name: str, gold: Judge | None = None) -> Metrics:
    """All that rankings which were not trained on tell; `name` (`validation`, `test`) begins the metrics' names.

    Accuracy overall, by labeler group, by confidence and by the labelers' agreement; calibration; what always choosing
    the longer answer would reach; with several members their disagreement, with `gold` the correlation with it.
    """
    from gptlife.data.rankings import pairs
    from gptlife.reward.statistics.calibration import accuracy_by, reliability

    scores_N = scores_MN.mean(0)
    by_ranking = margins(scores_N, rows)
    flat = [margin for own in by_ranking for margin in own]
    longer: list[float] = []
    groups: dict[str, list[float]] = {}
    for row, own in zip(rows, by_ranking, strict=True):
        groups.setdefault(str(row.get("group") or "all"), []).extend(own)
        sizes = [len(text) for text in row["answers"]]
        longer += [float(sizes[better] - sizes[worse]) for better, worse in pairs(row["ranks"])]
    bare = "" if name == "validation" else f"{name}_"
    return {
        f"{name}_accuracy": accuracy(flat),
        **{f"{name}_accuracy_{group}": accuracy(own) for group, own in sorted(groups.items())},
        f"{bare}longer_baseline": accuracy(longer),
        f"{name}_pairs": len(flat),
        f"{bare}calibration": asdict(reliability(flat)),
        f"{name}_by_confidence": accuracy_by([abs(margin) for margin in flat], flat),
        **_by_agreement(by_ranking, rows, name),
        **(_ensemble_metrics(scores_MN, rows, name) if len(scores_MN) > 1 else {}),
        **(_gold_metrics(scores_N, rows, name, gold) if gold is not None else {}),
    }


def _by_agreement(by_ranking: Sequence[Sequence[float]], rows: Sequence[Row], name: str) -> Metrics:
    """Accuracy where a second labeler orders the pair as the first one did (`agreed`), and where not (`disputed`)."""
    from gptlife.data.rankings import pairs

    found: dict[str, list[float]] = {"agreed": [], "disputed": []}
    for row, own in zip(rows, by_ranking, strict=True):
        second = set(pairs(row.get("second_ranks") or []))
        for pair, margin in zip(pairs(row["ranks"]), own, strict=True):
            if pair in second or pair[::-1] in second:
                found["agreed" if pair in second else "disputed"].append(margin)
    metrics: Metrics = {}
    for kind, flat in found.items():
        if flat:
            metrics |= {f"{name}_{kind}_accuracy": accuracy(flat), f"{name}_{kind}_pairs": len(flat)}
    return metrics


def _ensemble_metrics(scores_MN: Tensor, rows: Sequence[Row], name: str) -> Metrics:
    """Accuracy of every member and of every rule (λ = 1), and whether disagreement tells where the mean is wrong.

    `disagreement` is the members' standard deviation of an answer's score, the mean over answers; `by_disagreement` is
    the accuracy by quarters of the pairs, from the least to the most standard deviation of the pair's margin. Read it
    beside `by_confidence`: wide margins also spread more, and are right more often.
    """
    import torch

    from gptlife.reward.ensemble import EnsembleConfig, Rule, combine
    from gptlife.reward.statistics.calibration import accuracy_by

    def flat(scores_N: Tensor) -> list[float]:
        return [margin for own in margins(scores_N, rows) for margin in own]

    rules = {rule: combine(scores_MN, EnsembleConfig(rule=rule)) for rule in get_args(Rule)}
    members = [flat(scores_N) for scores_N in scores_MN]
    doubt = torch.tensor(members, dtype=torch.float64).std(0, correction=0).tolist()
    return {
        f"{name}_member_accuracies": [accuracy(own) for own in members],
        **{f"{name}_{rule}_accuracy": accuracy(flat(scores_N)) for rule, scores_N in rules.items()},
        f"{name}_disagreement": float(scores_MN.std(0, correction=0).mean()),
        f"{name}_by_disagreement": accuracy_by(doubt, flat(rules["mean"])),
    }


def _gold_metrics(scores_N: Tensor, rows: Sequence[Row], name: str, gold: Judge) -> Metrics:
    """Spearman's correlation of score and gold score, over a prompt's answers (the mean over prompts) and over all.

    `gold_accuracy` is that on the pairs of a prompt's answers between which the gold judge sees a difference. Answers
    that several labelers ranked are judged once.
    """
    from gptlife.data.rankings import pairs
    from gptlife.reward.statistics.calibration import spearman

    once = {
        json.dumps([row["messages"], row["answers"]]): (row, own)
        for row, own in zip(rows, _by_ranking(scores_N, rows), strict=True)
    }
    asked = [(row, text) for row, _ in once.values() for text in row["answers"]]
    flat = iter(scores_of(gold([row for row, _ in asked], [text for _, text in asked])))
    judged = [(own, [next(flat) for _ in own]) for _, own in once.values()]
    found = [rho for own, truth in judged if (rho := spearman(own, truth)) is not None]
    right = [own[i] - own[j] for own, truth in judged for i, j in pairs([-value for value in truth])]
    both = [(score, value) for own, truth in judged for score, value in zip(own, truth, strict=True)]
    return {
        f"{name}_gold_accuracy": accuracy(right),
        f"{name}_gold_spearman": sum(found) / len(found) if found else None,
        f"{name}_gold_spearman_pooled": spearman([score for score, _ in both], [value for _, value in both]),
    }
