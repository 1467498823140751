"""What limits the reward model: the labels, the way it is read, or what it can see? One row per variant.

    python benchmarks/reward_limits.py --store store --seed 0

Reads the SFT models and the rankings of a finished `instructgpt-village` and trains the same reward model on the first
4,800 rankings several times, each time with one change:

    truth       the gold judge ranks the training answers, so that no label is wrong (ties below the labelers' .06)
    batch 4     four times as many steps, 3e-4
    with LM     plus half the language-model loss on each prompt's best answer (Askell et al. 2021, appendix)
    mean, sum   the head read at every token of the answer, and averaged, or added (over ten)
    trunk       starts from the smaller or larger SFT model

Accuracy is on the labelers' held-out rankings, `gold` on the pairs between which the gold judge sees a difference.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lives import planned, table
from torch import Tensor
from torch.nn.functional import cross_entropy

from gptlife.data.tokens import encode_prompt
from gptlife.data.village.labelers import TIE
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.judge import load_judge
from gptlife.reward.judges.verdicts import scores_of
from gptlife.reward.ranking import ranking_loss_flat
from gptlife.stages.modeling import loading
from gptlife.stages.preferences.metrics import held_out_metrics
from gptlife.stages.preferences.rankings import Rankings, encode
from gptlife.stages.reward_model import initialise_head
from gptlife.stages.training.setup import cosine

RANKINGS, LIMIT = 4800, 320
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to train; the defaults are the recipe's."""

    truth: bool = False
    batch: int = 16
    rate: float = 5e-4
    lm: float = 0.0
    read: str = "last"
    base: str = "sft"


VARIANTS = {
    "as in the recipe": Variant(),
    "ranked by the truth": Variant(truth=True),
    "batches of 4": Variant(batch=4, rate=3e-4),
    "with the language-model loss": Variant(lm=0.5),
    "mean over the answer's tokens": Variant(read="mean"),
    "sum over the answer's tokens": Variant(read="sum"),
    "smaller trunk": Variant(base="sft_small"),
    "larger trunk": Variant(base="sft_large"),
    "larger trunk, ranked by the truth": Variant(base="sft_large", truth=True),
}


def main() -> None:
    """Train every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    steps = {step.name: step.path for step in planned("instructgpt-village", arguments.seed, arguments.store)}
    found = []
    for name, variant in VARIANTS.items():
        metrics = measure(variant, steps[variant.base], steps["comparisons"], arguments.seed)
        keys = ("validation_accuracy_training", "validation_accuracy_heldout", "validation_gold_accuracy")
        found.append([name, *(f"{100 * metrics[key]:.1f}" for key in keys)])
        print(*found[-1], sep=" | ", flush=True)
    print(table(["accuracy, %", "training labelers", "held-out labelers", "gold"], found))


def measure(variant: Variant, base: Path, comparisons: Path, seed: int) -> dict[str, Any]:
    """Train one variant; its held-out metrics."""
    tokenizer, gold = loading.load_tokenizer(base), load_judge(JudgeConfig(village=True), "gold")
    train, held_out = _read(comparisons / "train.jsonl")[:RANKINGS], _read(comparisons / "validation.jsonl")
    if variant.truth:
        train = [
            {**row, "ranks": by_truth(scores_of(gold([row] * len(row["answers"]), row["answers"])))} for row in train
        ]
    train, held_out = (encode(rows, tokenizer, LIMIT, "data") for rows in (train, held_out))
    for row in (*train, *held_out):
        row["prompt"] = len(encode_prompt(tokenizer, row["messages"]))
    model = loading.load_scorer(base, fresh_head=True)
    initialise_head(model, seed)
    _fit(variant, model, train, seed)
    model.eval()
    with torch.no_grad():
        scores = [_scores(variant, model, held_out[i : i + 16])[0] for i in range(0, len(held_out), 16)]
    return held_out_metrics(torch.cat(scores).unsqueeze(0), held_out, "validation", gold)


def by_truth(scores: Sequence[float]) -> list[int]:
    """Ranks (1, 2, 2, 3) without noise or taste; answers nearer than a labeler's TIE to a rank's best share it."""
    leaders: list[float] = []
    for score in sorted(scores, reverse=True):
        if not leaders or leaders[-1] - score >= TIE:
            leaders.append(score)
    return [1 + sum(leader - score >= TIE for leader in leaders) for score in scores]


def _fit(variant: Variant, model: Any, train: list[Row], seed: int) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=variant.rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True
    )
    order = random.Random(seed).sample(range(len(train)), len(train))
    steps = math.ceil(len(train) / variant.batch)
    for step in range(steps):
        batch = [train[index] for index in order[step * variant.batch : (step + 1) * variant.batch]]
        for group in optimizer.param_groups:
            group["lr"] = variant.rate * cosine(step / steps, 0.0, 0.1)
        for rows in (batch[start : start + 4] for start in range(0, len(batch), 4)):
            (_loss(variant, model, rows) / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _loss(variant: Variant, model: Any, rows: list[Row]) -> Tensor:
    scores_N, hidden_NTD, given = _scores(variant, model, rows)
    loss = ranking_loss_flat(scores_N, given["ranks"], given["group"]).loss_sum
    if variant.lm:
        best_N = given["ranks"] == torch.tensor([min(row["ranks"]) for row in rows])[given["place"]]
        predicts_NT = given["answer"][:, 1:] & best_N.unsqueeze(1)
        logits_MV = hidden_NTD[:, :-1][predicts_NT] @ model.get_input_embeddings().weight.T
        loss = loss + variant.lm * len(rows) * cross_entropy(logits_MV, given["tokens"][:, 1:][predicts_NT])
    return loss


def _scores(variant: Variant, model: Any, rows: list[Row]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """scores_N of all answers, the trunk's last states, and the batch with `answer`, the mask of answers' tokens."""
    batch = Rankings(rows).collate(range(len(rows)))
    given = {"tokens": batch.inputs["input_ids"], "select": batch.select, **batch.targets}
    trunk = getattr(model, model.base_model_prefix)
    hidden_NTD = trunk(input_ids=given["tokens"], use_cache=False).last_hidden_state
    given["place"] = given["group"]
    ends_N = given["select"].int().argmax(1)
    begins_N = torch.tensor([row["prompt"] for row in rows])[given["place"]]
    places_T = torch.arange(hidden_NTD.shape[1])
    given["answer"] = (places_T >= begins_N.unsqueeze(1)) & (places_T <= ends_N.unsqueeze(1))
    read_NT = given["select"] if variant.read == "last" else given["answer"]
    summed_N = (model.score(hidden_NTD).squeeze(-1) * read_NT).sum(1)
    share_N = {"last": 1.0, "sum": 10.0, "mean": read_NT.sum(1)}[variant.read]
    return summed_N / share_N, hidden_NTD, given


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


if __name__ == "__main__":
    main()
