"""Stage `reward_model`: learn a scalar score from rankings of K answers.

Loss per prompt: -1/#pairs Σ log σ(r_better - r_worse) over its untied pairs; all pairs of a prompt are in one batch
element, with K forward rows instead of C(K,2) pairs (Ouyang et al. 2022, Eq 1 and section 3.5: shuffled pairs overfit
within an epoch). One epoch, 9e-6, cosine to 10 %, 64 prompts per batch (C.2). Pairs are K = 2. The score is read at the
last real token, then shifted so that demonstrations have mean 0 (section 3.5) and scaled so that the answers' scores
have unit standard deviation (Ziegler et al. 2019).

`members` > 1 trains an ensemble (Coste et al. 2023): each member with a seed of its own, hence another head and another
order of the rankings, and with `bootstrap` on a resample of them. The first member is the same output as without an
ensemble; the others lie under `members/1`, `members/2`, ..., each with its own log. The stages that read an ensemble
choose how to combine the scores (`reward/ensemble.py`).

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
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.reward.judges.config import JudgeConfig
from gptlife.stages.modeling.adapters import LoRA
from gptlife.stages.preferences.config import check_data
from gptlife.stages.preferences.rankings import (
    Rankings,
    Row,
    answers_of,
    demonstrations,
    encode,
    sharing_is_exact,
    train_and_held_out,
)
from gptlife.stages.runtime.stage import Metrics, Stage
from gptlife.stages.training.config import FinetuningConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from gptlife.data.tokens import Encoded
    from gptlife.stages.modeling.forward import Batch


class RewardModelConfig(FinetuningConfig):
    """Train a reward model on rankings."""

    data: Data | None = None
    """Rankings or pairs; None: those of the input `comparisons`, and of any further inputs (later rounds)."""
    validation: Data | Share = 0.1
    """Rankings held out, or the share of `data`; the input `comparisons` brings its own."""
    test: Data | None = None
    """Further rankings (by other labelers, say) that are only evaluated, as `test_...`."""
    rankings: int | None = Field(None, ge=1)
    """Train on the first so many rankings only, for learning curves; None: all."""
    gold: JudgeConfig | None = None
    """A judge that knows the truth; the held-out answers' scores are correlated with its own."""
    members: int = Field(1, ge=1)
    """Models in the ensemble, trained one after the other, each with its own seed. [Coste et al. 2023 use 5]"""
    bootstrap: bool = False
    """Train each member on a resample (with replacement) of the rankings."""
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
    """Read a prompt once for all its answers, where the model allows it: the same scores for a half to a third of the
    tokens."""
    lora: LoRA | None = None
    """Train low-rank adapters and the head instead of all weights; merged on save."""


@dataclass(frozen=True)
class _Inputs:
    """What every member is trained on, encoded."""

    base: Path
    tokenizer: Any
    train: list[Row]
    held_out: dict[str, list[Row]]
    """`validation`, and where there is one `test`."""
    demonstrations: list[Encoded]


def run(
    config: RewardModelConfig, output: Path, *, base: Path, comparisons: Path | None = None, **further: Path
) -> Metrics:
    """Train, normalise and save every member; metrics: `preferences/metrics.py`, the first member's training, the cost.

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
    inputs = _encoded(config, base, [comparisons, *further.values()])
    folders = [member_path(output, number) for number in range(config.members)]
    first, *others = [_member(config, number, output, inputs, accelerator) for number in range(config.members)]
    scores = member_scores(folders, list(inputs.held_out.values()), accelerator.device)
    accelerator.wait_for_everyone()  # the first process moves the output to its place once it is done
    metrics = {**first}
    for (name, rows), scores_MN in zip(inputs.held_out.items(), scores, strict=True):
        metrics |= held_out_metrics(scores_MN, rows, name, gold)
    for key in ("tokens", "seconds", "checkpoints", "checkpoint_seconds"):
        metrics[key] = first[key] + sum(other[key] for other in others)
    return {
        **metrics,
        "members": config.members,
        "rankings": len(inputs.train),
        **{f"{name}_rankings": len(rows) for name, rows in inputs.held_out.items()},
        "peak_gpu_memory_mb": peak_gpu_memory_mb(accelerator.device),
    }


def _encoded(config: RewardModelConfig, base: Path, comparisons: Sequence[Path | None]) -> _Inputs:
    """The rankings to train on, those held out (`validation`, and `test` where the config has it), demonstrations.

    Raises:
        UserError: when there are none, or fewer than `config.rankings`.
    """
    from gptlife.data.forms import rankings
    from gptlife.stages.modeling import lengths, loading

    tokenizer = loading.load_tokenizer(base)
    limit = lengths.limit_of(config.max_length, loading.load_config(base), "reward_model.max_length")
    train, validation = train_and_held_out(config.data, config.validation, config.seed, comparisons, "reward_model")
    if config.rankings is not None and config.rankings > len(train):
        raise UserError(f"reward_model.rankings: {config.rankings} wanted, but there are {len(train)}; lower it")
    parts = {"data": train[: config.rankings], "validation": validation}
    if config.test is not None:
        parts["test"] = rankings(config.test, config.seed)
    encoded = {name: encode(rows, tokenizer, limit, f"reward_model.{name}") for name, rows in parts.items()}
    shown = demonstrations(config.demonstrations, tokenizer, limit)
    return _Inputs(base, tokenizer, encoded.pop("data"), encoded, shown)


def _member(config: RewardModelConfig, number: int, output: Path, inputs: _Inputs, accelerator: Accelerator) -> Metrics:
    """Train a member and save it; one that an earlier run finished, and whose files are unchanged, is kept."""
    from gptlife.stages.modeling import loading
    from gptlife.stages.runtime.artifact import CHECKPOINTS
    from gptlife.stages.runtime.files import keep_piece, kept_by_all, sums

    folder, mark = loading.member_path(output, number), output / CHECKPOINTS / f"member-{number}.json"
    kept = kept_by_all(accelerator, mark)
    if kept is None or kept["files"] != sums(folder, kept["files"]):
        folder.mkdir(parents=True, exist_ok=True)
        seed = config.seed if number == 0 else random.Random(f"member {config.seed} {number}").getrandbits(31)
        model, metrics = _train(config.model_copy(update={"seed": seed}), number, folder, inputs, accelerator)
        if accelerator.is_main_process:
            loading.save(model, inputs.tokenizer, folder)
            written = [path.name for path in folder.iterdir() if path.is_file()]
            keep_piece(mark, {"metrics": metrics, "files": sums(folder, written)})
        accelerator.free_memory()
        accelerator.wait_for_everyone()
        kept = {"metrics": metrics}
    if number > 0 and accelerator.is_main_process:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return dict(kept["metrics"])


def _train(
    config: RewardModelConfig, number: int, folder: Path, inputs: _Inputs, accelerator: Accelerator
) -> tuple[Any, Metrics]:
    """One member, trained with `config.seed` and normalised; and the metrics of its training."""
    from gptlife.reward.statistics.accuracy import accuracy
    from gptlife.stages.modeling import adapters, loading
    from gptlife.stages.modeling.forward import SelectedScores
    from gptlife.stages.modeling.scorer import score
    from gptlife.stages.preferences.metrics import margins
    from gptlife.stages.training.loop import fit
    from gptlife.stages.training.setup import epochs

    model = _fresh(config, inputs.base)
    train, validation = inputs.train, inputs.held_out["validation"]
    if config.bootstrap:
        train = random.Random(f"bootstrap {config.seed}").choices(train, k=len(train))
    plan = epochs(config, len(train), config.batch_size, config.epochs, config.warmup_steps)
    answers = answers_of(validation)

    def validate(current: nn.Module) -> dict[str, float]:
        by_ranking = margins(score(accelerator.unwrap_model(current), answers).tolist(), validation)
        return {"validation_accuracy": accuracy([margin for of_row in by_ranking for margin in of_row])}

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
        validate_every=config.validation_interval(len(plan.sizes)),
    )
    del metrics["validation_accuracy"]  # measured again on the saved member
    model = adapters.merge_lora(model)
    gain, bias = _normalise(model, config, inputs)
    return model, {**metrics, "gain": gain, "bias": bias}


def _fresh(config: RewardModelConfig, base: Path) -> Any:
    """The base with a new head, and adapters if wanted; everything random in it is drawn from `config.seed`."""
    from accelerate.utils import set_seed

    from gptlife.stages.modeling import adapters, loading

    set_seed(config.seed)
    model = loading.load_scorer(base, fresh_head=True)
    initialise_head(model, config.seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model if config.lora is None else adapters.add_lora(model, config.lora, "SEQ_CLS")


def _normalise(model: Any, config: RewardModelConfig, inputs: _Inputs) -> tuple[float, float]:
    """Fold gain and bias into the model; both come from all training answers, also where a resample was trained on."""
    from gptlife.reward.ranking import normalisation
    from gptlife.stages.modeling.forward import SelectedScores
    from gptlife.stages.modeling.scorer import fold_normalisation, score

    reader = SelectedScores(model).eval()
    answer_scores = score(reader, answers_of(inputs.train)[:5000])
    gain, bias = normalisation(answer_scores) if config.normalise else (1.0, -float(answer_scores.mean()))
    if inputs.demonstrations:
        bias = -gain * float(score(reader, inputs.demonstrations).mean())
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
    check=check_data("reward_model"),
    title="reward model",
    family="reward",
    about="A language model with a scalar head: how good an answer is to a prompt, as the labelers rank.",
)

if __name__ == "__main__":
    STAGE.main()
