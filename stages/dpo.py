"""Stage `dpo`: learn from rankings without a reward model, by direct preference optimisation, through TRL.

Rafailov et al. 2023 (arXiv 2305.18290), Eq 7. With the implicit reward of an answer

    r = beta · log(policy(answer | prompt) / reference(answer | prompt))

the loss of a pair is -log σ(r_chosen - r_rejected); the reference is the `policy` that training starts from. A ranking
of K answers gives all its untied pairs, or its best and worst one, and every pair is an example of its own. Forward,
loss and backward are `trl.DPOTrainer`'s; tokens, order of the pairs, optimizer, schedule and checkpoints are ours
(`preferences/trl_trainer.py`, `trl_loop.py`), so that stages can be compared.

Left out: RMSprop (the paper's optimizer; AdamW does as well, says its code), TRL's other losses, and batches of like
length (TRL pads a batch to its longest answer).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from gptlife.data.rankings import pairs
from gptlife.stages.preferences.config import SHOWN, PreferenceConfig, check_data
from gptlife.stages.preferences.rankings import Row, answers_of, encode, train_and_held_out
from gptlife.stages.runtime.stage import Metrics, Stage


class DPOConfig(PreferenceConfig):
    """Train a policy on rankings by direct preference optimisation."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels assumed to be swapped; 0: the paper's loss. [conservative DPO: Mitchell 2023, "A note on DPO
    with noisy preferences"]"""
    pairs: Literal["all", "best_worst"] = "all"
    """Which pairs of a ranking: `all` that are not tied, or the `best_worst` ones: one pair."""
    learning_rate: NonNegativeFloat = 5e-7
    """Peak. [the paper's code, for models of 3 to 7 billion parameters; DPO App. B has 1e-6]"""
    batch_size: PositiveInt = 64
    """Global batch in pairs. [DPO App. B]"""
    warmup_steps: NonNegativeInt = 150
    """Steps to the peak, at most half of all. [DPO App. B]"""


def run(config: DPOConfig, output: Path, *, policy: Path, comparisons: Path | None = None) -> Metrics:
    """Train and save; metrics: loss, implicit-reward accuracy and margin on training and held-out pairs.

    Raises:
        UserError: for data or lengths that don't fit the model, a batch that the processes can't share, a gradient
            that is not finite.
    """
    from gptlife.stages.preferences import trl_loop, trl_trainer
    from gptlife.stages.preferences.implicit_rewards import pair_metrics

    counts: Metrics = {}

    def encoded(tokenizer: Any, limit: int) -> Any:
        parts = train_and_held_out(config.data, config.validation, config.seed, [comparisons], "dpo")
        train, held_out = (
            encode(part, tokenizer, limit, f"dpo.{name}", empty=False)
            for part, name in zip(parts, ("data", "validation"), strict=True)
        )
        rows = [row for ranking in train for row in pair_rows(ranking, config.pairs)]
        counts.update(pairs=len(rows), rankings=len(train), validation_rankings=len(held_out))
        counts["validation_pairs"] = sum(len(pairs(ranking["ranks"])) for ranking in held_out)
        return rows, {
            name: (answers_of(part), partial(pair_metrics, part, name, config.label_smoothing))
            for name, part in (("validation", held_out), ("train", train[:SHOWN]))
        }

    options = loss_options(config.label_smoothing)
    return {**trl_loop.train(trl_trainer.DPOTrainer, config, output, policy, options, encoded), **counts}


def loss_options(smoothing: float) -> dict[str, Any]:
    """TRL's settings of the loss.

    Label smoothing s: with TRL's `sigmoid` L(m) = -log σ(m) and `robust` R = ((1-s) L(m) - s L(-m)) / (1-2s), the loss
    of conservative DPO (1-s) L(m) + s L(-m) is 2(1-s) L(m) - (1-2s) R. TRL 1.16 ignores `label_smoothing` in `sigmoid`.
    """
    if not smoothing:
        return {"loss_type": ["sigmoid"]}
    weights = [2 * (1 - smoothing), -(1 - 2 * smoothing)]
    return {"loss_type": ["sigmoid", "robust"], "loss_weights": weights, "label_smoothing": smoothing}


def pair_rows(ranking: Row, which: Literal["all", "best_worst"]) -> list[dict[str, list[int]]]:
    """An encoded ranking's pairs as TRL's columns: `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Of answers that share the best or the worst rank, `best_worst` takes the first.
    """
    ranks = ranking["ranks"]
    prompts, answers = zip(*(answer.split() for answer in ranking["encoded"]), strict=True)
    chosen = pairs(ranks) if which == "all" else [(ranks.index(min(ranks)), ranks.index(max(ranks)))]
    return [
        {"prompt_ids": prompts[better].tokens, "chosen_ids": answers[better], "rejected_ids": answers[worse]}
        for better, worse in chosen
    ]


STAGE = Stage(
    "dpo",
    DPOConfig,
    run,
    inputs=("policy",),
    optional=("comparisons",),
    check=check_data("dpo"),
    title="DPO",
    family="preference",
    about="A policy trained on the pairs of ranked answers; no reward model stands between.",
)

if __name__ == "__main__":
    STAGE.main()
