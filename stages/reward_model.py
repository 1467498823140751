"""Stage `reward_model`: learn a scalar score from rankings of K answers.

Loss per prompt: -1/#pairs Σ log σ(r_better - r_worse) over its untied pairs; all pairs of a prompt stand in one batch
element, with K forward rows instead of C(K,2) pairs (Ouyang et al. 2022, Eq 1 and section 3.5: shuffled pairs overfit
within an epoch). One epoch, 9e-6, cosine to 10 %, 64 prompts a batch (C.2). Pairs are K = 2. The score is read at the
last real token, and is then shifted so that demonstrations have mean 0 (section 3.5) and scaled so that the answers'
scores have unit standard deviation (Ziegler et al. 2019).

Left out: the pretraining mix that the paper's 6B model was initialised with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.config import UserError
from gptlife.data.sources import Data
from gptlife.stages.stage import Metrics, Stage
from gptlife.stages.training_config import LoRA, TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

Row = dict[str, Any]


class RewardModelConfig(TrainingConfig):
    """Train a reward model on rankings."""

    data: Data | None = None
    """Rankings or pairs; None: those of the input `comparisons`."""
    validation: Data | float = 0.1
    """Rankings held aside, or the share of `data`; the input `comparisons` brings its own."""
    demonstrations: Data | None = None
    """Conversations whose mean score becomes 0; None: the mean over the training answers does."""
    normalise: bool = True
    """Scale the scores of the training answers to unit standard deviation."""
    learning_rate: float = 9e-6
    """Peak. [InstructGPT C.2]"""
    epochs: float = 1
    """Passes over the rankings; more overfit. [InstructGPT C.2]"""
    batch_size: int = 64
    """Global batch in prompts. [InstructGPT C.2]"""
    warmup_steps: int = 0
    """[not given in InstructGPT]"""
    weight_decay: float = 0.0
    """[not given in InstructGPT]"""
    max_length: int | None = None
    """Prompt and answer of more tokens are left out of their ranking; None: the model's context."""
    validate_every: int = 0
    """Steps between validations; 0: four times an epoch."""
    lora: LoRA | None = None
    """Train low-rank adapters and the head instead of all weights; merged on save."""


class Rankings:
    """Rankings as examples: one example is a prompt with its K encoded answers."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        # K rows as wide as the longest: what one example costs in a forward pass.
        self.lengths = [len(row["tokens"]) * max(len(tokens) for tokens in row["tokens"]) for row in rows]
        self.weights = [1.0] * len(rows)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """All answers of the prompts as rows: tokens_NT, select_NT (last tokens), ranks_N, group_N."""
        import torch

        from gptlife.reward.model import last_positions
        from gptlife.reward.reading import pad_right

        cpu = torch.device("cpu")
        tokens = [ids for index in indices for ids in self.rows[index]["tokens"]]
        return {
            "tokens": pad_right(tokens, 0, cpu),
            "select": last_positions(tokens, cpu),
            "ranks": torch.tensor([rank for index in indices for rank in self.rows[index]["ranks"]]),
            "group": torch.tensor([index for index in indices for _ in self.rows[index]["ranks"]]),
        }


def run(config: RewardModelConfig, output: Path, *, base: Path, comparisons: Path | None = None) -> Metrics:
    """Train, normalise and save; metrics: accuracy by labeler group, calibration, the always-longer baseline.

    Raises:
        UserError: for data or lengths that don't fit the model.
    """
    from gptlife.reward.model import fold_normalisation, score
    from gptlife.reward.ranking import normalisation
    from gptlife.reward.reading import SelectedScores
    from gptlife.stages import models
    from gptlife.stages.hardware import peak_gpu_memory_mb
    from gptlife.stages.loop import fit
    from gptlife.stages.training import accelerator_for, epochs

    accelerator = accelerator_for(config)
    tokenizer = models.load_tokenizer(base)
    model = models.load_scorer(base, fresh_head=True)
    _initialise_head(model, config.seed)
    limit = models.limit_of(config.max_length, model, "reward_model.max_length")
    found, held_out = _rankings(config, comparisons)
    train, validation = (
        _encode(rows, tokenizer, limit, name) for rows, name in ((found, "data"), (held_out, "validation"))
    )
    shown = _demonstrations(config, tokenizer, limit)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.lora is not None:
        model = models.add_lora(model, config.lora, "SEQ_CLS")
    reader = SelectedScores(model).to(accelerator.device)
    plan = epochs(config, len(train), config.batch_size, config.epochs, config.warmup_steps)

    def validate(current: nn.Module) -> dict[str, float]:
        margins = _margins(accelerator.unwrap_model(current), validation)
        return {"validation_accuracy": _accuracy([m for row in margins for m in row])}

    metrics = fit(
        reader,
        Rankings(train),
        plan,
        _loss,
        config,
        accelerator,
        output,
        "reward_model",
        describe=_describe,
        validate=validate,
        validate_every=config.validate_every or max(1, round(len(plan.sizes) / config.epochs / 4)),
    )
    model = models.merge_lora(model)
    reader = SelectedScores(model).eval()
    answer_scores = score(reader, [tokens for row in train for tokens in row["tokens"]][:5000])
    gain, bias = normalisation(answer_scores) if config.normalise else (1.0, -float(answer_scores.mean()))
    if shown:
        bias = -gain * float(score(reader, shown).mean())
    fold_normalisation(model, gain, bias)
    if accelerator.is_main_process:
        models.save(model, tokenizer, output)
    return {
        **{key: value for key, value in metrics.items() if key != "validation_accuracy"},
        **_held_out_metrics(reader, validation),
        "gain": gain,
        "bias": bias,
        "rankings": len(train),
        "validation_rankings": len(validation),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(accelerator.device),
    }


def _initialise_head(model: Any, seed: int) -> None:
    """N(0, 1/sqrt(D + 1)), as in lm-human-preferences; the same on every process."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    width = model.score.weight.shape[-1]
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)


def _rankings(config: RewardModelConfig, comparisons: Path | None) -> tuple[list[Row], list[Row]]:
    from gptlife.data.formats import rankings
    from gptlife.stages.sft import split

    if config.data is not None:
        found = rankings(config.data, config.seed)
        if isinstance(config.validation, float):
            return split(found, config.validation, "reward_model.validation")
        return found, rankings(config.validation, config.seed)
    if comparisons is None:
        raise UserError("reward_model.data: no rankings; give `data`, or the input `comparisons`")
    train, held_out = (_read(comparisons / f"{name}.jsonl") for name in ("train", "validation"))
    return train, held_out


def _read(path: Path) -> list[Row]:
    """The rankings that the stage `comparisons` wrote."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no rankings can be read ({error}); run the stage `comparisons` again") from None


def _encode(rows: Sequence[Row], tokenizer: Any, limit: int, place: str) -> list[Row]:
    """Rankings with `tokens`: each answer after its prompt, end-of-text at the end where the answer has one."""
    from gptlife.data.tokens import encode_answer, encode_prompt

    encoded = []
    for row in rows:
        prompt = encode_prompt(tokenizer, row["messages"])
        ended = row.get("finished") or [True] * len(row["answers"])
        answers = [
            prompt + encode_answer(tokenizer, text, done) for text, done in zip(row["answers"], ended, strict=True)
        ]
        kept = [index for index, tokens in enumerate(answers) if len(tokens) <= limit]
        ranks = [row["ranks"][index] for index in kept]
        if len(set(ranks)) > 1:
            texts = [row["answers"][index] for index in kept]
            encoded.append({**row, "tokens": [answers[i] for i in kept], "ranks": ranks, "answers": texts})
    if not encoded:
        raise UserError(f"reward_model.{place}: no ranking has two untied answers of at most {limit} tokens")
    return encoded


def _demonstrations(config: RewardModelConfig, tokenizer: Any, limit: int) -> list[list[int]]:
    """The demonstrations of at most `limit` tokens, encoded; none where the config names none."""
    from gptlife.data.formats import conversations
    from gptlife.data.tokens import encode_conversation

    if config.demonstrations is None:
        return []
    encoded = [encode_conversation(tokenizer, row["messages"])[0] for row in conversations(config.demonstrations)]
    shown = [tokens for tokens in encoded if len(tokens) <= limit]
    if not shown:
        raise UserError(
            f"reward_model.demonstrations: none of {len(encoded)} has at most {limit} tokens; "
            "give shorter ones, or raise max_length"
        )
    return shown


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    from gptlife.reward.ranking import ranking_loss_flat

    terms = ranking_loss_flat(model(batch["tokens"], batch["select"]), batch["ranks"], batch["group"])
    return terms.loss_sum, {"correct": terms.correct_pairs, "pairs": terms.n_pairs}


def _describe(sums: dict[str, float], denominator: float) -> dict[str, float]:
    return {"loss": sums["loss"] / denominator, "accuracy": sums["correct"] / max(1.0, sums["pairs"])}


def _margins(reader: Any, rows: Sequence[Row]) -> list[list[float]]:
    """For each ranking, score of the better minus score of the worse over its untied pairs."""
    from gptlife.reward.model import score
    from gptlife.stages.comparisons import pairs

    flat = score(reader, [tokens for row in rows for tokens in row["tokens"]]).tolist()
    margins, start = [], 0
    for row in rows:
        own = flat[start : start + len(row["tokens"])]
        margins.append([own[better] - own[worse] for better, worse in pairs(row["ranks"])])
        start += len(own)
    return margins


def _accuracy(margins: Sequence[float]) -> float:
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / max(1, len(margins))


def _held_out_metrics(reader: Any, rows: Sequence[Row]) -> Metrics:
    """Accuracy overall and by labeler group, calibration, and what always choosing the longer answer would reach."""
    from gptlife.reward.calibration import reliability
    from gptlife.stages.comparisons import pairs

    margins = _margins(reader, rows)
    flat = [margin for row in margins for margin in row]
    longer: list[float] = []
    groups: dict[str, list[float]] = {}
    for row, own in zip(rows, margins, strict=True):
        groups.setdefault(str(row.get("group") or "all"), []).extend(own)
        sizes = [len(text) for text in row["answers"]]
        longer += [float(sizes[better] - sizes[worse]) for better, worse in pairs(row["ranks"])]
    return {
        "validation_accuracy": _accuracy(flat),
        **{f"validation_accuracy_{group}": _accuracy(own) for group, own in sorted(groups.items())},
        "longer_baseline": _accuracy(longer),
        "validation_pairs": len(flat),
        "calibration": asdict(reliability(flat)),
    }


STAGE = Stage("reward_model", RewardModelConfig, run, inputs=("base",), optional=("comparisons",))

if __name__ == "__main__":
    STAGE.main()
