"""Stage `comparisons`: sample K answers per prompt from the policy and have labelers rank them.

K is drawn from 4..9 for each prompt, and one labeler ranks all K at once (Ouyang et al. 2022, section 3.5); equal ranks
are ties, which the ranking loss drops. Held-out prompts are ranked by a labeler of each group, so that the reward
model's accuracy can be read beside the labelers' agreement with each other.

Output: `train.jsonl` and `validation.jsonl`, one row per ranking: messages, answers, finished, ranks, labeler, group,
meta. The prompts are answered in chunks that are saved as they finish; a killed stage resumes at the next chunk.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt, model_validator

from gptlife.data.config import Execution, Share
from gptlife.data.errors import UserError
from gptlife.data.rankings import pairs
from gptlife.data.sources import Data
from gptlife.reward.judges.config import JudgeConfig, PanelConfig
from gptlife.reward.judges.labelers import Labeler
from gptlife.stages.generation.config import SamplingConfig
from gptlife.stages.runtime.stage import Metrics, Stage

if TYPE_CHECKING:
    from accelerate import Accelerator

    from gptlife.stages.runtime.metric_log import MetricLog

Row = dict[str, Any]


class ComparisonsConfig(SamplingConfig):
    """Sample answers and have them ranked."""

    prompts: Data
    """Prompts to answer; conversations count without their last answer."""
    validation: Data | Share = 0.1
    """Prompts whose rankings are held out, or the share of `prompts` to hold out."""
    labelers: PanelConfig
    """Who ranks the training answers."""
    heldout_labelers: PanelConfig | None = None
    """A second group of labelers, who rank the held-out answers as well."""
    gold: JudgeConfig | None = None
    """A judge that measures the labelers: the accuracy of perfect knowledge on their rankings."""
    answers_min: PositiveInt = 4
    """Fewest answers per prompt. [InstructGPT 3.5]"""
    answers_max: PositiveInt = 9
    """Most answers per prompt. [InstructGPT 3.5]"""
    chunk: Execution[PositiveInt] = 256
    """Prompts per chunk; each finished chunk is saved."""

    @model_validator(mode="after")
    def _range(self) -> ComparisonsConfig:
        if not 2 <= self.answers_min <= self.answers_max:
            raise ValueError(
                f"answers_min: {self.answers_min} must be at least 2 and not exceed answers_max ({self.answers_max}); "
                "lower it, or raise answers_max"
            )
        return self


def run(config: ComparisonsConfig, output: Path, *, policy: Path) -> Metrics:
    """Sample and rank; metrics: rankings, pairs, ties, agreement of the labelers, ceilings.

    Raises:
        UserError: for prompts that leave no room for an answer, or a labeler that gives another number of ranks.
    """
    from gptlife.data.forms import prompts
    from gptlife.data.splits import split
    from gptlife.stages.modeling import loading
    from gptlife.stages.runtime.metric_log import MetricLog
    from gptlife.stages.training.setup import accelerator_for

    started = time.monotonic()
    accelerator = accelerator_for(config, output)
    train = prompts(config.prompts, config.seed)
    if isinstance(config.validation, float):
        train, held_out = split(train, config.validation, "comparisons.validation")
    else:
        held_out = prompts(config.validation, config.seed)
    tokenizer = loading.load_tokenizer(policy)
    model = loading.load_causal(policy, tokenizer).to(accelerator.device).eval()
    sampled = {}
    n_prompts = len(train) + len(held_out)
    with MetricLog(output, "comparisons", n_prompts, main=accelerator.is_main_process) as metric_log:
        for name, rows in (("train", train), ("validation", held_out)):
            sampled[name] = _sample_all(config, accelerator, model, tokenizer, rows, name, output, metric_log)
    metrics: Metrics = {}
    if accelerator.is_main_process:
        for name, rows in sampled.items():
            rankings = _rank_all(config, rows, name)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rankings)
            (output / f"{name}.jsonl").write_text(text, encoding="utf-8")
            metrics |= {f"{name}_{key}": value for key, value in summary(rankings).items()}
        if config.gold is not None:
            metrics |= ceilings(rankings, config.gold)
    return {**metrics, "seconds": round(time.monotonic() - started, 2)}


def _sample_all(
    config: ComparisonsConfig,
    accelerator: Accelerator,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Row],
    name: str,
    output: Path,
    metric_log: MetricLog,
) -> list[Row]:
    """Every prompt with its `answers` and `finished`, in order."""
    from gptlife.stages.generation.chunks import in_chunks

    def make(start: int) -> list[Row]:
        return _sample_chunk(config, accelerator, model, tokenizer, prompts, name, start)

    done: list[Row] = []
    for part in in_chunks(accelerator, output, name, len(prompts), config.chunk, make):
        done += part
        n_answers = sum(len(row["answers"]) for row in part)
        metric_log.step(len(part), {f"{name}_answers": n_answers}, f"{name}: {n_answers} answers")
    return done


def _sample_chunk(
    config: ComparisonsConfig,
    accelerator: Accelerator,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Row],
    name: str,
    start: int,
) -> list[Row]:
    from gptlife.stages.generation.chunks import sample_answers

    counts = {
        index: random.Random(f"K {config.seed} {name} {index}").randint(config.answers_min, config.answers_max)
        for index in range(start, min(start + config.chunk, len(prompts)))
    }
    return sample_answers(
        accelerator,
        model,
        tokenizer,
        prompts,
        counts,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=f"{config.seed} {name}",
        generation_batch_size=config.generation_batch_size,
        place="comparisons.prompts",
    )


def _rank_all(config: ComparisonsConfig, rows: Sequence[Row], name: str) -> list[Row]:
    """One ranking per prompt, by a labeler drawn for it; held-out prompts get one from each group."""
    from gptlife.reward.judges.labelers import load_panel

    panels = [load_panel(config.labelers)]
    if name == "validation" and config.heldout_labelers is not None:
        panels.append(load_panel(config.heldout_labelers, "heldout_labelers"))
    rankings = []
    for index, row in enumerate(rows):
        for panel in panels:
            rng = random.Random(f"labeler {config.seed} {name} {index} {panel[0].group}")
            labeler = rng.choice(panel)
            ranking = _rank(labeler, row, rng)
            rankings.append({**row, "ranks": ranking, "labeler": labeler.name, "group": labeler.group})
            if name == "validation" and len(panel) > 1:
                second = rng.choice([other for other in panel if other is not labeler])
                rankings[-1]["second_ranks"] = _rank(second, row, rng)
    return rankings


def _rank(labeler: Labeler, row: Row, rng: random.Random) -> list[int]:
    ranks = labeler.rank(row, row["answers"], rng)
    if len(ranks) != len(row["answers"]):
        raise UserError(f"labeler {labeler.name}: gave {len(ranks)} ranks for {len(row['answers'])} answers")
    return [int(rank) for rank in ranks]


def summary(rankings: Sequence[Row]) -> dict[str, float]:
    """Numbers of rankings, answers and untied pairs; shares of tied pairs and of answers that ended by themselves."""
    n_pairs = sum(len(pairs(row["ranks"])) for row in rankings)
    n_all = sum(len(row["ranks"]) * (len(row["ranks"]) - 1) // 2 for row in rankings)
    n_answers = sum(len(row["answers"]) for row in rankings)
    return {
        "rankings": len(rankings),
        "answers": n_answers,
        "pairs": n_pairs,
        "tie_share": 1 - n_pairs / max(1, n_all),
        "finished_share": sum(sum(row["finished"]) for row in rankings) / max(1, n_answers),
    }


def ceilings(rankings: Sequence[Row], gold: JudgeConfig) -> dict[str, float]:
    """Per group: agreement of two labelers; accuracy of the gold judge on the labelers' pairs (its ties count half)."""
    from gptlife.reward.judges.judge import load_judge
    from gptlife.reward.judges.verdicts import scores_of
    from gptlife.reward.statistics.accuracy import accuracy

    judge = load_judge(gold, "comparisons.gold")
    metrics: dict[str, float] = {}
    for group in sorted({row["group"] for row in rankings}):
        rows = [row for row in rankings if row["group"] == group]
        agree: list[float] = []
        margins: list[float] = []
        for row in rows:
            scores = scores_of(judge([row] * len(row["answers"]), row["answers"]))
            for better, worse in pairs(row["ranks"]):
                margins.append(scores[better] - scores[worse])
            if "second_ranks" in row:
                second = set(pairs(row["second_ranks"]))
                agree += [pair in second for pair in pairs(row["ranks"]) if pair in second or pair[::-1] in second]
        metrics[f"ceiling_{group}"] = accuracy(margins)
        if agree:
            metrics[f"agreement_{group}"] = sum(agree) / len(agree)
    return metrics


STAGE = Stage(
    "comparisons",
    ComparisonsConfig,
    run,
    inputs=("policy",),
    title="comparisons",
    family="rankings",
    about="Prompts with K sampled answers each and a labeler's ranking of them; equal ranks are ties.",
)

if __name__ == "__main__":
    STAGE.main()
