"""Stage `kto`: learn from single answers labelled desirable or undesirable, through TRL.

Ethayarajh et al. 2024, Kahneman-Tversky optimisation (arXiv 2402.01306, its final version), section 4. With DPO's
implicit reward r and the reference point z0 = max(0, beta · KL(policy || reference)), the loss of a desirable answer is
desirable_weight · (1 - σ(r - z0)), that of an undesirable one undesirable_weight · (1 - σ(z0 - r)). The KL is estimated
without gradient from answers to other prompts of the same `kl_batch_size` rows. Forward, loss and backward are
`trl.KTOTrainer`'s; the rest is as in `dpo`.

Without `data` the labels come from rankings: the answers ranked best are desirable, those ranked worst undesirable (all
of them where some share the rank), and those between are left out, as is a ranking whose answers are all tied.

Left out: weights chosen from the counts of the labels, and the paper's ablation without a KL (z0 = 0).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from gptlife.stages.preferences.config import SHOWN, PreferenceConfig, check_data
from gptlife.stages.preferences.labels import labelled_rows
from gptlife.stages.runtime.stage import Metrics, Stage


class KTOConfig(PreferenceConfig):
    """Train a policy on answers with single labels by Kahneman-Tversky optimisation."""

    desirable_weight: PositiveFloat = 1.0
    """Weight of desirable answers. [KTO section 4: 1]"""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of undesirable ones; weighted, there should be 1 to 3/2 times as many desirable. [KTO section 4; its first
    version: 4/3]"""
    kl_batch_size: int | None = Field(None, ge=2)
    """Answers over which the KL is estimated, in one forward pass over all processes; None: the whole batch. It changes
    the result; lower it when memory runs out (`micro_batch_tokens` serves the validation only). [KTO section 4: 8 to
    128]"""
    learning_rate: NonNegativeFloat = 5e-6
    """Peak. [KTO section 4, for AdamW, where DPO has 5e-7]"""
    batch_size: int = Field(32, ge=2)
    """Global batch in answers. [KTO section 4]"""
    warmup_steps: NonNegativeInt = 150
    """Steps to the peak, at most half of all. [the authors' code, ContextualAI/HALOs]"""

    @model_validator(mode="after")
    def _kl_batches(self) -> KTOConfig:
        if self.kl_batch_size is not None and self.batch_size % self.kl_batch_size:
            size, batch = self.kl_batch_size, self.batch_size
            raise ValueError(f"kl_batch_size: {size} does not divide batch_size {batch}; choose one that does")
        return self


def run(config: KTOConfig, output: Path, *, policy: Path, comparisons: Path | None = None) -> Metrics:
    """Train and save; metrics: loss, KL, implicit-reward accuracy and margin on training and held-out answers.

    Raises:
        UserError: for data or lengths that don't fit the model, a batch that the processes can't share, a gradient
            that is not finite.
    """
    from gptlife.stages.preferences import trl_loop, trl_trainer
    from gptlife.stages.preferences.implicit_rewards import label_answers, label_metrics

    counts: Metrics = {}
    weights = (config.desirable_weight, config.undesirable_weight)

    def encoded(tokenizer: Any, limit: int) -> Any:
        source = (config.data, config.validation, config.seed, [comparisons])
        train, held_out = labelled_rows(*source, tokenizer, limit, "kto")
        for prefix, rows in (("", train), ("validation_", held_out)):
            desirable = sum(row["label"] for row in rows)
            counts.update({f"{prefix}desirable": desirable, f"{prefix}undesirable": len(rows) - desirable})
        shown = [row for label in (True, False) for row in [r for r in train if r["label"] is label][: SHOWN // 2]]
        return [label_columns(row) for row in train], {
            name: (label_answers(rows), partial(label_metrics, rows, name, config.beta, weights))
            for name, rows in (("validation", held_out), ("train", shown))
        }

    options = {"desirable_weight": weights[0], "undesirable_weight": weights[1]}
    return {**trl_loop.train(trl_trainer.KTOTrainer, config, output, policy, options, encoded), **counts}


def label_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A labelled answer as TRL's columns: `prompt_ids`, `completion_ids`, `label`."""
    prompt, answer = row["encoded"].split()
    return {"prompt_ids": prompt.tokens, "completion_ids": answer, "label": row["label"]}


STAGE = Stage(
    "kto",
    KTOConfig,
    run,
    inputs=("policy",),
    optional=("comparisons",),
    check=check_data("kto"),
    title="KTO",
    family="preference",
    about="A policy trained on answers that are each labelled desirable or undesirable; no reward model between.",
)

if __name__ == "__main__":
    STAGE.main()
