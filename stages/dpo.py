"""Stage `dpo`: learn from rankings without a reward model, by direct preference optimisation, through TRL.

Rafailov et al. 2023 (arXiv 2305.18290), Eq 7. With the implicit reward of an answer

    r = beta · log(policy(answer | prompt) / reference(answer | prompt))

the loss of a pair is -log σ(r_chosen - r_rejected); the reference is the `policy` that training starts from. Rankings
are those of `reward_model`; a ranking of K answers gives all its untied pairs, or its best and worst one, and every
pair is an example of its own. Forward, loss and backward are `trl.DPOTrainer`'s; tokens, order of the pairs, optimizer
and schedule are ours (`dpo_trainer.py`, `dpo_loop.py`), so the stages can be compared.

Left out: RMSprop (the paper's optimizer; AdamW does as well, says its code), the other losses that TRL has, and
batches of like length (TRL pads a batch to its longest answer).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from gptlife.data.config import Share
from gptlife.data.errors import UserError
from gptlife.data.rankings import pairs
from gptlife.data.sources import Data
from gptlife.stages.modeling.adapters import LoRA
from gptlife.stages.preferences.rankings import train_and_held_out
from gptlife.stages.runtime.stage import Metrics, Stage
from gptlife.stages.training.config import FinetuningConfig

if TYPE_CHECKING:
    from gptlife.stages.modeling.forward import SelectedLogits

Row = dict[str, Any]
_SHOWN = 400
"""Training rankings on which `train_accuracy` is measured."""


class DPOConfig(FinetuningConfig):
    """Train a policy on rankings by direct preference optimisation."""

    data: Data | None = None
    """Rankings or pairs; None: those of the input `comparisons`."""
    validation: Data | Share = 0.1
    """Rankings held aside, or the share of `data`; the input `comparisons` brings its own."""
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the reference; the higher, the nearer the policy stays. [DPO App. B; 0.5 for TL;DR]"""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be swapped; 0: the paper's loss. [conservative DPO: Mitchell 2023, "A note on DPO
    with noisy preferences"]"""
    pairs: Literal["all", "best_worst"] = "all"
    """Which pairs of a ranking: `all` that are not tied, or the `best_worst` ones: one pair."""
    learning_rate: NonNegativeFloat = 5e-7
    """Peak. [the paper's code, for models of 3 to 7 billion parameters; DPO App. B has 1e-6]"""
    epochs: PositiveFloat = 1
    """Passes over the pairs, rounded to whole batches. [the paper's code]"""
    batch_size: PositiveInt = 64
    """Global batch in pairs. [DPO App. B]"""
    warmup_steps: NonNegativeInt = 150
    """Steps to the peak, at most half of all. [DPO App. B]"""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights, against the model without them; merged on save."""


class Ranking(NamedTuple):
    """A prompt's tokens, its answers' tokens (with end-of-text where one ended), their ranks and the labeler group."""

    prompt: list[int]
    answers: list[list[int]]
    ranks: list[float]
    group: str


def run(config: DPOConfig, output: Path, *, policy: Path, comparisons: Path | None = None) -> Metrics:
    """Train and save; metrics: loss, implicit-reward accuracy and margin on training and held-out pairs.

    Raises:
        UserError: for data or lengths that don't fit the model, a batch that the processes can't share, a gradient
            that is not finite, and where TRL is missing.
    """
    if importlib.util.find_spec("trl") is None:
        raise UserError("dpo: TRL is not installed; pip install gptlife[dpo]")
    from gptlife.stages.modeling import adapters, lengths, loading
    from gptlife.stages.modeling.forward import SelectedLogits
    from gptlife.stages.preferences import trl_loop, trl_trainer
    from gptlife.stages.runtime.device import peak_gpu_memory_mb
    from gptlife.stages.runtime.notices import quiet_libraries
    from gptlife.stages.runtime.provenance import resume_as_begun
    from gptlife.stages.training.setup import epochs

    quiet_libraries()
    settings = trl_trainer.settings_of(config, output)
    resume_as_begun(output, config.model_dump())
    tokenizer, model = loading.load_tokenizer(policy), loading.load_causal(policy)
    limit = lengths.limit_of(config.max_length, model, "dpo.max_length")
    found, held_aside = train_and_held_out(config, [comparisons] if comparisons else [], "dpo")
    train, held_out = _encode(found, tokenizer, limit, "data"), _encode(held_aside, tokenizer, limit, "validation")
    rows = [row for ranking in train for row in pair_rows(ranking, config.pairs)]
    steps = max(1, round(len(rows) * config.epochs / config.batch_size))
    plan = epochs(config, len(rows), config.batch_size, steps * config.batch_size / len(rows), config.warmup_steps)
    reader, shown = SelectedLogits(model.to(settings.device)).eval(), train[:_SHOWN]
    # The policy is its own reference yet, in a resumed run too: checkpoints are loaded later.
    before, shown_before = answer_logprobs(reader, held_out), answer_logprobs(reader, shown)

    def validate() -> dict[str, float]:
        return pair_metrics(config, held_out, answer_logprobs(reader, held_out), before, "validation")

    # With adapters the reference is the model without them; they are put inside `model`, so `reader` sees them too.
    reference = loading.load_causal(policy) if config.lora is None else None
    trainer = trl_trainer.PairTrainer(config, plan, settings, model, reference, tokenizer, rows)
    metrics = trl_loop.train(trainer, output, validate, config.validate_every or max(1, round(steps / 4)))
    on_train = pair_metrics(config, shown, answer_logprobs(reader, shown), shown_before, "train")
    if trainer.accelerator.is_main_process:
        loading.save(adapters.merge_lora(trainer.model), tokenizer, output)
    return {
        **metrics,
        **on_train,
        "pairs": len(rows),
        "rankings": len(train),
        "validation_pairs": sum(len(pairs(ranking.ranks)) for ranking in held_out),
        "validation_rankings": len(held_out),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(settings.device),
    }


def _encode(rows: Sequence[Row], tokenizer: Any, limit: int, place: str) -> list[Ranking]:
    """The rankings with two untied answers of at most `limit` tokens, prompt included."""
    from gptlife.data.tokens import encode_answer, encode_prompt

    encoded = []
    for row in rows:
        prompt = encode_prompt(tokenizer, row["messages"])
        ended = row.get("finished") or [True] * len(row["answers"])
        answers = [encode_answer(tokenizer, text, done) for text, done in zip(row["answers"], ended, strict=True)]
        kept = [index for index, tokens in enumerate(answers) if tokens and len(prompt) + len(tokens) <= limit]
        ranks = [row["ranks"][index] for index in kept]
        if len(set(ranks)) > 1:
            encoded.append(Ranking(prompt, [answers[i] for i in kept], ranks, str(row.get("group") or "all")))
    if not encoded:
        raise UserError(f"dpo.{place}: no ranking has two untied answers of at most {limit} tokens")
    return encoded


def pair_rows(ranking: Ranking, which: Literal["all", "best_worst"]) -> list[dict[str, list[int]]]:
    """A ranking's pairs as TRL's columns: `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Of answers that share the best or the worst rank, `best_worst` takes the first.
    """
    ranks, answers = ranking.ranks, ranking.answers
    found = pairs(ranks) if which == "all" else [(ranks.index(min(ranks)), ranks.index(max(ranks)))]
    return [
        {"prompt_ids": ranking.prompt, "chosen_ids": answers[better], "rejected_ids": answers[worse]}
        for better, worse in found
    ]


def answer_logprobs(reader: SelectedLogits, rankings: Sequence[Ranking]) -> list[list[float]]:
    """log p(answer | prompt) in nats of every answer, summed over its tokens, end-of-text included."""
    import torch

    from gptlife.data.packing import length_batches
    from gptlife.stages.training.lm import TargetRows

    rows = TargetRows(
        [(r.prompt + tokens, [False] * len(r.prompt) + [True] * len(tokens)) for r in rankings for tokens in r.answers]
    )
    device, flat = next(reader.parameters()).device, [0.0] * len(rows)
    with torch.no_grad():
        for group in length_batches(rows.lengths, tokens_per_batch=16384):
            batch = rows.collate(group).to(device)
            logits_NV, targets_N = reader(batch.inputs, batch.select), batch.targets["tokens"][batch.select]
            nll_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
            for index, own in zip(group, nll_N.split(batch.select.sum(1).tolist()), strict=True):
                flat[index] = -float(own.double().sum())
    ends = list(accumulate((len(ranking.answers) for ranking in rankings), initial=0))
    return [flat[start:end] for start, end in pairwise(ends)]


def pair_metrics(
    config: DPOConfig, rankings: Sequence[Ranking], now: list[list[float]], before: list[list[float]], name: str
) -> dict[str, float]:
    """Loss (nats), accuracy (an equal reward counts half) and margin of the implicit rewards over all untied pairs.

    `now` and `before` are `answer_logprobs` of the policy and of the reference.
    """
    groups: dict[str, list[float]] = {}
    for ranking, after, first in zip(rankings, now, before, strict=True):
        rewards = [config.beta * (a - b) for a, b in zip(after, first, strict=True)]
        own = groups.setdefault(ranking.group, [])
        own += [rewards[better] - rewards[worse] for better, worse in pairs(ranking.ranks)]
    flat = [margin for own in groups.values() for margin in own]
    by_group = {f"{name}_accuracy_{group}": _accuracy(own) for group, own in sorted(groups.items())}
    return {
        f"{name}_loss": sum(_loss(margin, config.label_smoothing) for margin in flat) / len(flat),
        f"{name}_accuracy": _accuracy(flat),
        f"{name}_margin": sum(flat) / len(flat),
        **(by_group if len(groups) > 1 else {}),
    }


def _loss(margin: float, smoothing: float) -> float:
    """-(1 - s) log σ(margin) - s log σ(-margin)."""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))) + smoothing * margin


def _accuracy(margins: Sequence[float]) -> float:
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)


STAGE = Stage(
    "dpo",
    DPOConfig,
    run,
    inputs=("policy",),
    optional=("comparisons",),
    title="DPO",
    family="preference",
    about="A policy trained on the pairs of ranked answers; no reward model stands between.",
)

if __name__ == "__main__":
    STAGE.main()
