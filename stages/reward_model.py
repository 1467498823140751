"""Stage `reward_model`: learn a scalar score from rankings of K answers.

Loss per prompt: -1/#pairs Σ log σ(r_better - r_worse) over its untied pairs; all pairs of a prompt stand in one batch
element, with K forward rows instead of C(K,2) pairs (Ouyang et al. 2022, Eq 1 and section 3.5: shuffled pairs overfit
within an epoch). One epoch, 9e-6, cosine to 10 %, 64 prompts a batch (C.2). Pairs are K = 2. The score is read at the
last real token, and is then shifted so that demonstrations have mean 0 (section 3.5) and scaled so that the answers'
scores have unit standard deviation (Ziegler et al. 2019).

With `members` > 1 an ensemble (Coste et al. 2023): the same training again for each member with a seed of its own,
hence another head and another order of the rankings, and if wanted on a resample of them. The first member is the
output as it is without an ensemble; the others lie under `members/1`, `members/2`, ..., each with its own log. How
their scores become one is for those who read them to say (`reward/ensemble.py`).

Left out: the pretraining mix that the paper's 6B model was initialised with.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from gptlife.data.config import Execution, Share
from gptlife.data.sources import Data
from gptlife.reward.judges.judge import JudgeConfig
from gptlife.stages.modeling.adapters import LoRA
from gptlife.stages.preferences.rankings import Rankings, Row, demonstrations, encode, load, sharing_is_exact
from gptlife.stages.runtime.stage import Metrics, Stage
from gptlife.stages.training.config import FinetuningConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from gptlife.stages.modeling.batch import Batch


class RewardModelConfig(FinetuningConfig):
    """Train a reward model on rankings."""

    data: Data | None = None
    """Rankings or pairs; None: those of the input `comparisons`, and of any further inputs (later rounds)."""
    validation: Data | Share = 0.1
    """Rankings held aside, or the share of `data`; the input `comparisons` brings its own."""
    test: Data | None = None
    """Further rankings (of other people, say) that are only reported on, as `test_...`."""
    rankings: int | None = Field(None, ge=1)
    """Rankings to train on, the first so many: for learning curves; None: all."""
    gold: JudgeConfig | None = None
    """A judge that knows the truth, for the rank correlation of the held-out answers' scores with it."""
    members: int = Field(1, ge=1)
    """Models in the ensemble, trained one after the other; each has its own seed. [Coste et al. 2023 use 5]"""
    bootstrap: bool = False
    """Each member learns from a resample (with replacement) of the rankings."""
    demonstrations: Data | None = None
    """Conversations whose mean score becomes 0; None: the mean over the training answers does."""
    normalise: bool = True
    """Scale the scores of the training answers to unit standard deviation."""
    learning_rate: NonNegativeFloat = 9e-6
    """Peak. [InstructGPT C.2]"""
    epochs: PositiveFloat = 1
    """Passes over the rankings; more overfit. [InstructGPT C.2]"""
    batch_size: PositiveInt = 64
    """Global batch in prompts. [InstructGPT C.2]"""
    share_prompts: Execution[bool] = True
    """Read a prompt once for all its answers, where the model can: a half to a third of the tokens, the same scores."""
    lora: LoRA | None = None
    """Train low-rank adapters and the head instead of all weights; merged on save."""


@dataclass(frozen=True)
class _Given:
    """What every member is made from, encoded."""

    base: Path
    tokenizer: Any
    train: list[Row]
    held_out: dict[str, list[Row]]
    """`validation`, and where there is one `test`."""
    shown: list[list[int]]


def run(
    config: RewardModelConfig, output: Path, *, base: Path, comparisons: Path | None = None, **further: Path
) -> Metrics:
    """Train, normalise and save every member; metrics: see `reward_metrics`, the first member's training, the cost.

    `further` inputs are further comparisons, such as a second round's.

    Raises:
        UserError: for data or lengths that don't fit the model.
    """
    from gptlife.stages.modeling.loading import member_path
    from gptlife.stages.preferences.metrics import gold_judge, held_out_metrics, member_scores
    from gptlife.stages.runtime.device import peak_gpu_memory_mb
    from gptlife.stages.training.setup import accelerator_for

    accelerator = accelerator_for(config, output)
    gold = gold_judge(config.gold)
    given = _given(config, base, [path for path in (comparisons, *further.values()) if path is not None])
    folders = [member_path(output, number) for number in range(config.members)]
    first, *others = [_member(config, number, output, given, accelerator) for number in range(config.members)]
    scores = member_scores(folders, list(given.held_out.values()), accelerator.device)
    accelerator.wait_for_everyone()  # the first process moves the output to its place once it is done
    metrics = {**first}
    for (name, rows), scores_MN in zip(given.held_out.items(), scores, strict=True):
        metrics |= held_out_metrics(scores_MN, rows, name, gold)
    for key in ("tokens", "seconds", "checkpoints", "checkpoint_seconds"):
        metrics[key] = first[key] + sum(other[key] for other in others)
    return {
        **metrics,
        "members": config.members,
        "rankings": len(given.train),
        **{f"{name}_rankings": len(rows) for name, rows in given.held_out.items()},
        "peak_gpu_memory_mb": peak_gpu_memory_mb(accelerator.device),
    }


def _given(config: RewardModelConfig, base: Path, comparisons: Sequence[Path]) -> _Given:
    from gptlife.stages.modeling import lengths, loading

    tokenizer = loading.load_tokenizer(base)
    limit = lengths.limit_of(config.max_length, loading.load_config(base), "reward_model.max_length")
    parts = {name: encode(rows, tokenizer, limit, name) for name, rows in load(config, comparisons).items()}
    shown = demonstrations(config.demonstrations, tokenizer, limit)
    return _Given(base, tokenizer, parts.pop("data"), parts, shown)


def _member(config: RewardModelConfig, number: int, output: Path, given: _Given, accelerator: Accelerator) -> Metrics:
    """Train a member and save it; one that a run before this finished, and that is as it was, is left alone."""
    from gptlife.stages.modeling import loading
    from gptlife.stages.runtime.artifact import CHECKPOINTS
    from gptlife.stages.runtime.files import keep_piece, kept_by_all, sums

    folder, mark = loading.member_path(output, number), output / CHECKPOINTS / f"member-{number}.json"
    kept = kept_by_all(accelerator, mark)
    if kept is None or kept["files"] != sums(folder, kept["files"]):
        folder.mkdir(parents=True, exist_ok=True)
        seed = config.seed if number == 0 else random.Random(f"member {config.seed} {number}").getrandbits(31)
        model, metrics = _train(config.model_copy(update={"seed": seed}), number, folder, given, accelerator)
        if accelerator.is_main_process:
            loading.save(model, given.tokenizer, folder)
            written = [path.name for path in folder.iterdir() if path.is_file()]
            keep_piece(mark, {"metrics": metrics, "files": sums(folder, written)})
        accelerator.free_memory()
        accelerator.wait_for_everyone()
        kept = {"metrics": metrics}
    if number > 0 and accelerator.is_main_process:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return dict(kept["metrics"])


def _train(
    config: RewardModelConfig, number: int, folder: Path, given: _Given, accelerator: Accelerator
) -> tuple[Any, Metrics]:
    """One member, trained with `config.seed` and normalised; and what its training was like."""
    from accelerate.utils import set_seed

    from gptlife.stages.modeling import adapters, loading
    from gptlife.stages.modeling.forward import SelectedScores
    from gptlife.stages.modeling.scorer import score
    from gptlife.stages.preferences.metrics import accuracy, margins
    from gptlife.stages.training.loop import fit
    from gptlife.stages.training.setup import epochs

    set_seed(config.seed)
    model = loading.load_scorer(given.base, fresh_head=True)
    initialise_head(model, config.seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.lora is not None:
        model = adapters.add_lora(model, config.lora, "SEQ_CLS")
    train = given.train
    if config.bootstrap:
        train = random.Random(f"bootstrap {config.seed}").choices(train, k=len(train))
    plan = epochs(config, len(train), config.batch_size, config.epochs, config.warmup_steps)
    validation = given.held_out["validation"]
    answers = [tokens for row in validation for tokens in row["tokens"]]

    def validate(current: nn.Module) -> dict[str, float]:
        by_ranking = margins(score(accelerator.unwrap_model(current), answers), validation)
        return {"validation_accuracy": accuracy([margin for own in by_ranking for margin in own])}

    reader = SelectedScores(model).to(accelerator.device)
    metrics = fit(
        reader,
        Rankings(train, config.share_prompts and sharing_is_exact(reader.eval(), train[:4])),
        plan,
        _loss,
        config,
        accelerator,
        folder,
        "reward_model" if number == 0 else f"reward_model {loading.MEMBERS}/{number}",
        describe=_describe,
        validate=validate,
        validate_every=config.validate_every or max(1, round(len(plan.sizes) / config.epochs / 4)),
    )
    model = adapters.merge_lora(model)
    gain, bias = _normalise(model, config, given)
    kept = {key: value for key, value in metrics.items() if key != "validation_accuracy"}
    return model, {**kept, "gain": gain, "bias": bias}


def _normalise(model: Any, config: RewardModelConfig, given: _Given) -> tuple[float, float]:
    """Fold gain and bias into the model; both are taken from all training answers, resampled or not."""
    from gptlife.reward.ranking import normalisation
    from gptlife.stages.modeling.forward import SelectedScores
    from gptlife.stages.modeling.scorer import fold_normalisation, score

    reader = SelectedScores(model).eval()
    answer_scores = score(reader, [tokens for row in given.train for tokens in row["tokens"]][:5000])
    gain, bias = normalisation(answer_scores) if config.normalise else (1.0, -float(answer_scores.mean()))
    if given.shown:
        bias = -gain * float(score(reader, given.shown).mean())
    fold_normalisation(model, gain, bias)
    return gain, bias


def initialise_head(model: Any, seed: int) -> None:
    """N(0, 1/sqrt(D + 1)), as in lm-human-preferences; the same on every process."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    width = model.score.weight.shape[-1]
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)


def _loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    from gptlife.reward.ranking import ranking_loss_flat

    scores_N = model(batch.inputs, batch.select)
    terms = ranking_loss_flat(scores_N, batch.targets["ranks"], batch.targets["group"])
    return terms.loss_sum, {"correct": terms.correct_pairs, "pairs": terms.n_pairs}


def _describe(sums: dict[str, float], denominator: float) -> dict[str, float]:
    return {"loss": sums["loss"] / denominator, "accuracy": sums["correct"] / max(1.0, sums["pairs"])}


STAGE = Stage(
    "reward_model",
    RewardModelConfig,
    run,
    inputs=("base",),
    optional=("comparisons",),
    open=True,
    title="reward model",
    family="reward",
    about="A language model with a scalar head: how good an answer is to a prompt, as the labelers rank.",
)

if __name__ == "__main__":
    STAGE.main()
