"""Stage `best_of_n`: N answers per prompt from a policy, and what choosing among them by a reward model is worth.

The baseline of PPO that needs no training, and the cheap half of an over-optimisation study (Gao et al. 2022,
arXiv 2210.10760): one sample of answers gives the proxy and the gold score of best-of-n for every n <= N, and fits of
the curves (both in reward/statistics/). Inputs beside `policy` and `reward` are further reward models, which choose
among the same answers. An ensemble chooses by its rule, and as `<input>.1` its first member chooses alone. What a
reward model reads is said in stages/evals/reward.py: end-of-text where an answer ended, cut at its context.

Output: `answers.jsonl`, a row per prompt: messages, meta, answers, finished, scores (by reward model, one per answer),
gold (one per answer, where there is a judge), best (the first `answer_n` answers' best by `reward`). Finished chunks of
answers are kept, so a run that was killed goes on with the next chunk.

Left out: the KL of answers that repeat, which is lower; log n - (n-1)/n is its upper bound.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt, model_validator

from gptlife.data.config import Execution
from gptlife.data.errors import UserError
from gptlife.data.sources import Data
from gptlife.reward.ensemble import EnsembleConfig
from gptlife.reward.judges.config import JudgeConfig
from gptlife.reward.judges.verdicts import Judge, scores_of
from gptlife.stages.generation.config import SamplingConfig
from gptlife.stages.runtime.stage import Metrics, Stage

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gptlife.data.tokens import Encoded
    from gptlife.reward.statistics.winrate import Floats

Row = dict[str, Any]
GOLD = "gold"


class BestOfNConfig(SamplingConfig):
    """Sample N answers per prompt and choose among them by reward models."""

    prompts: Data
    """Prompts that no stage has seen; conversations count without their last answer."""
    samples: int = Field(64, ge=2, le=1000)
    """N: answers sampled per prompt."""
    ns: list[int] | None = None
    """Sizes n of the curves, rising, the first one 1; None: 1, 2, 4, ... and N."""
    answer_n: int = Field(16, ge=1)
    """The best of how many is written as the prompt's answer (`best`)."""
    judge: JudgeConfig | None = None
    """What gives the gold score; `reward_model: true`: the input `gold`, which then chooses nothing. None: no gold."""
    ensemble: EnsembleConfig | None = None
    """How an ensemble's scores become one; None: the default rule."""
    chunk: Execution[PositiveInt] = 32
    """Prompts per chunk: what a killed run loses at most."""

    @model_validator(mode="after")
    def _sizes(self) -> BestOfNConfig:
        if self.answer_n > self.samples:
            raise ValueError(f"answer_n: {self.answer_n} is more than samples ({self.samples}); lower it")
        if self.ns is not None and (self.ns[:1] != [1] or self.ns != sorted({*self.ns}) or self.ns[-1] > self.samples):
            raise ValueError(f"ns: {self.ns} does not rise from 1 to at most samples ({self.samples}); fix it")
        return self

    def sizes(self) -> list[int]:
        """`ns`, or the powers of two below N, and N."""
        powers = (2**k for k in range(self.samples.bit_length()))
        return self.ns or [*(n for n in powers if n < self.samples), self.samples]


def run(config: BestOfNConfig, output: Path, *, policy: Path, reward: Path, **more: Path) -> Metrics:
    """Sample, score, choose; metrics: for every reward model the curve over n, and its fits.

    Raises:
        UserError: when the judge lacks what it needs, or a prompt does not fit.
    """
    from gptlife.data.forms import prompts
    from gptlife.reward.judges.judge import load_judge
    from gptlife.stages.training.setup import accelerator_for

    started = time.monotonic()
    check(config, more)
    by_model = config.judge is not None and config.judge.reward_model
    judge = load_judge(config.judge, "best_of_n.judge") if config.judge is not None and not by_model else None
    accelerator = accelerator_for(config, output)
    rows = _sample_all(config, accelerator, prompts(config.prompts, config.seed), policy, output)
    metrics: Metrics = {}
    if accelerator.is_main_process:
        scores: dict[str, Floats] = {}
        for name, path in {"reward": reward, **more}.items():
            scores |= _scores_of(config, accelerator, rows, path, name)
        gold = scores[GOLD] if by_model else None if judge is None else _judged(judge, rows)
        if by_model:  # the judge chooses nothing
            scores = {name: each for name, each in scores.items() if name.partition(".")[0] != GOLD}
        _write(config, rows, scores, gold, output)
        metrics = _metrics(config, rows, scores, gold)
    return {**metrics, "seconds": round(time.monotonic() - started, 2)}


def check(config: BestOfNConfig, inputs: Collection[str]) -> None:
    """Refuse a reward model as the judge where it is not among the inputs. Raises UserError."""
    if config.judge is not None and config.judge.reward_model and GOLD not in inputs:
        raise UserError("best_of_n.judge: reward_model needs the input `gold`; give it, or name another judge")


def _sample_all(
    config: BestOfNConfig, accelerator: Accelerator, prompts: Sequence[Row], policy: Path, output: Path
) -> list[Row]:
    """Every prompt with its `answers` and `finished`, in order."""
    from gptlife.stages.generation.chunks import in_chunks, sample_answers
    from gptlife.stages.modeling import loading
    from gptlife.stages.runtime.metric_log import MetricLog

    tokenizer = loading.load_tokenizer(policy)
    model = loading.load_causal(policy, tokenizer).to(accelerator.device).eval()

    def make(start: int) -> list[Row]:
        counts = dict.fromkeys(range(start, min(start + config.chunk, len(prompts))), config.samples)
        return sample_answers(
            accelerator,
            model,
            tokenizer,
            prompts,
            counts,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=f"{config.seed} best_of_n",
            generation_batch_size=config.generation_batch_size,
            place="best_of_n.prompts",
        )

    done: list[Row] = []
    with MetricLog(output, "best_of_n", len(prompts), main=accelerator.is_main_process) as journal:
        for part in in_chunks(accelerator, output, "answers", len(prompts), config.chunk, make):
            done += part
            n_answers = len(part) * config.samples
            journal.step(len(part), {"answers": n_answers}, f"{n_answers} answers")
    return done


def _scores_of(
    config: BestOfNConfig, accelerator: Accelerator, rows: Sequence[Row], path: Path, name: str
) -> dict[str, Floats]:
    """`name`: scores_PN of the reward model at `path`; of an ensemble also `name.1`, its first member's."""
    from gptlife.stages.evals.reward import RewardModel

    model = RewardModel(path, config.ensemble, accelerator.device)
    answers: list[Encoded] = []
    for number, row in enumerate(rows, 1):
        place = f"best_of_n.inputs.{name}: prompt {number}"
        answers += model.encode(row["messages"], row["answers"], row["finished"], place)
    scores_MS = model.member_scores(answers)
    scores = {name: model.combined(scores_MS)}
    if len(scores_MS) > 1:
        scores[f"{name}.1"] = scores_MS[0]
    return {key: scores_S.double().view(len(rows), config.samples).numpy() for key, scores_S in scores.items()}


def _judged(judge: Judge, rows: Sequence[Row]) -> Floats:
    """gold_PN by a judge that is not a model."""
    import numpy as np

    asked = [row for row in rows for _ in row["answers"]]
    verdicts = judge(asked, [text for row in rows for text in row["answers"]])
    return np.array(scores_of(verdicts)).reshape(len(rows), -1)


def _write(
    config: BestOfNConfig, rows: Sequence[Row], scores: dict[str, Floats], gold: Floats | None, output: Path
) -> None:
    best = scores["reward"][:, : config.answer_n].argmax(1)
    with (output / "answers.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            added: Row = {"scores": {name: scores_PN[number].tolist() for name, scores_PN in scores.items()}}
            if gold is not None:
                added["gold"] = gold[number].tolist()
            added["best"] = row["answers"][int(best[number])]
            file.write(json.dumps({**row, **added}, ensure_ascii=False) + "\n")


def _metrics(config: BestOfNConfig, rows: Sequence[Row], scores: dict[str, Floats], gold: Floats | None) -> Metrics:
    ns, n_answers = config.sizes(), len(rows) * config.samples
    chosen = {name: _chosen(scores_PN, gold, ns) for name, scores_PN in scores.items()}
    return {
        "prompts": len(rows),
        "samples": config.samples,
        "answer_n": config.answer_n,
        "finished_share": sum(sum(row["finished"]) for row in rows) / n_answers,
        "words": sum(len(text.split()) for row in rows for text in row["answers"]) / n_answers,
        "curves": {name: _curve(values, ns) for name, values in chosen.items()},
        "fits": {name: _fits(values, ns) for name, values in chosen.items()},
    }


def _chosen(scores_PN: Floats, gold_PN: Floats | None, ns: Sequence[int]) -> dict[str, Floats]:
    """values_PM of the answer that the scores choose, for M sizes n: `proxy`; with a judge `gold` and `win_rate`."""
    from gptlife.reward.statistics.best_of_n import best_of_n, win_shares

    values = {"proxy": scores_PN}
    if gold_PN is not None:
        values |= {"gold": gold_PN, "win_rate": win_shares(gold_PN)}
    return {name: best_of_n(scores_PN, values_PN, ns) for name, values_PN in values.items()}


def _curve(values: dict[str, Floats], ns: Sequence[int]) -> list[dict[str, Any]]:
    """A point for every n: its KL, d = sqrt(KL), and each value's mean with its interval over prompts."""
    from gptlife.reward.statistics.best_of_n import best_of_n_kl, curve_estimates

    estimates = {name: curve_estimates(values_PM) for name, values_PM in values.items()}
    return [
        {
            "n": n,
            "kl": best_of_n_kl(n),
            "d": best_of_n_kl(n) ** 0.5,
            **{name: by_n[m]._asdict() for name, by_n in estimates.items()},
        }
        for m, n in enumerate(ns)
    ]


def _fits(values: dict[str, Floats], ns: Sequence[int]) -> dict[str, Any] | None:
    """Both forms for proxy and gold, recentred to n = 1, and the peak that the first half predicts for gold."""
    from gptlife.reward.statistics.best_of_n import best_of_n_kl, bootstrap_curves
    from gptlife.reward.statistics.overoptimisation import FORMS, POINTS_MIN, fit, predict_peak

    d_M = [best_of_n_kl(n) ** 0.5 for n in ns[1:]]
    if len(d_M) < POINTS_MIN:
        return None
    fits: dict[str, Any] = {}
    for name in ("proxy", GOLD):
        if name in values:
            gain_PM = values[name][:, 1:] - values[name][:, :1]
            replicates_SM = bootstrap_curves(gain_PM)
            fits[name] = {
                form: fit(d_M, gain_PM.mean(0), form, replicates_SM=replicates_SM)._asdict() for form in FORMS
            }
            if name == GOLD and (len(d_M) + 1) // 2 >= POINTS_MIN:
                fits["predicted"] = predict_peak(d_M, gain_PM.mean(0), "best_of_n")._asdict()
    return fits


STAGE = Stage(
    "best_of_n",
    BestOfNConfig,
    run,
    inputs=("policy", "reward"),
    open=True,
    check=check,
    title="best of n",
    family="answers",
    about=(
        "N sampled answers per prompt with every reward model's scores; `best` is the first reward model's favourite."
    ),
)

if __name__ == "__main__":
    STAGE.main()
