"""Quickstart over several seeds, as one table: docs/results/quickstart.md.

    python benchmarks/quickstart.py --store store --seeds 0 1 2 --jobs 2

Runs each seed that is neither kept (docs/results/quickstart/) nor in the store, then reads the metrics of every stage.
A seed changes all that is trained or drawn: tokenizer, pretraining, SFT, answers, rankings, reward model and PPO.
The world and the test prompts are the same for all seeds.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from lives import Lives, lives, notes, table

MODELS = ("base", "base_prompted", "sft", "ppo")
PAIRS = (
    ("sft", "base"),
    ("sft", "base_prompted"),
    ("ppo", "base"),
    ("ppo", "base_prompted"),
    ("ppo", "sft"),
)
NAMES = {"base": "base", "base_prompted": "base, few-shot", "sft": "SFT", "ppo": "PPO-ptx"}


def main() -> None:
    """Run, read, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="steps at once; a thread count for each")
    parser.add_argument("--output", type=Path, default=Path("docs/results/quickstart.md"))
    arguments = parser.parse_args()
    kept = arguments.output.with_suffix("")
    kept.mkdir(parents=True, exist_ok=True)
    found = lives("quickstart", arguments.store, arguments.seeds, arguments.jobs, kept)
    arguments.output.write_text(page(found, notes(arguments.output)), encoding="utf-8")
    print(arguments.output)


def page(found: Lives, remarks: str) -> str:
    """The whole page; `remarks` are people's."""
    seeds = list(found)
    parts = [
        "# Quickstart, several seeds",
        f"Made by `python benchmarks/quickstart.py --seeds {' '.join(map(str, seeds))}` on "
        f"{platform.system()} with {os.cpu_count()} cores. Intervals are 95 % bootstrap intervals over prompts.",
        remarks,
        "## Preference under the gold judge",
        table(["", *(f"seed {seed}" for seed in seeds)], [preference(found, a, b) for a, b in PAIRS]),
        "The same, length-controlled:",
        table(["", *(f"seed {seed}" for seed in seeds)], [preference(found, a, b, True) for a, b in PAIRS]),
        "## Mean gold score",
        table(["", *(f"seed {seed}" for seed in seeds)], [gold(found, name) for name in MODELS]),
        "## Verdicts, PPO-ptx after SFT",
        table(["", *(f"seed {seed}" for seed in seeds)], verdicts(found)),
        "## Reward model",
        table(["", *(f"seed {seed}" for seed in seeds)], reward_model(found)),
        "## PPO",
        table(["", *(f"seed {seed}" for seed in seeds)], ppo(found)),
        "## Best of n, with SFT's answers and the same reward model",
        table(["", *(f"seed {seed}" for seed in seeds)], best_of_n(found)),
        "## Alignment tax",
        table(["", *(f"seed {seed}" for seed in seeds)], tax(found)),
        "## Seconds",
        table(["", *(f"seed {seed}" for seed in seeds)], seconds(found)),
        "## Checkpoints",
        "How many at the default of one a minute, their seconds and share of the stage's, and the size of one.",
        table(["", *(f"seed {seed}" for seed in seeds)], checkpoints(found)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def percent(value: float) -> str:
    """73.1 %"""
    return f"{100 * value:.1f} %"


def preference(found: Lives, a: str, b: str, controlled: bool = False) -> list[str]:
    """One row: how often A is preferred to B."""
    cells = [f"{NAMES[a]} over {NAMES[b]}"]
    for life in found.values():
        rates = life["evaluation"].metrics["win_rates"]
        row = next(row for row in rates if (row["a"], row["b"]) == (a, b))
        shown = row["length_controlled"] if controlled else row
        cells.append(f"{percent(shown['rate'])} [{100 * shown['low']:.1f}, {100 * shown['high']:.1f}]")
    return cells


def gold(found: Lives, name: str) -> list[str]:
    """One row: mean gold score with its interval."""
    scores = [life["evaluation"].metrics["models"][name]["score"] for life in found.values()]
    return [NAMES[name], *(f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in scores)]


def verdicts(found: Lives) -> list[list[str]]:
    """One row per verdict: SFT → PPO-ptx."""
    rows = []
    for verdict in ("follows", "true", "rude", "concise"):
        cells = [verdict]
        for life in found.values():
            models = life["evaluation"].metrics["models"]
            cells.append(" → ".join(f"{models[name]['verdicts'][verdict]['mean']:.3f}" for name in ("sft", "ppo")))
        rows.append(cells)
    return rows


def reward_model(found: Lives) -> list[list[str]]:
    """Held-out accuracy beside what labelers and perfect knowledge reach."""
    wanted = (
        ("accuracy, training labelers", "reward_model", "validation_accuracy_training"),
        ("gold judge's accuracy on their rankings (ceiling)", "comparisons", "ceiling_training"),
        ("agreement of two of them", "comparisons", "agreement_training"),
        ("accuracy, held-out labelers", "reward_model", "validation_accuracy_heldout"),
        ("gold judge's accuracy on their rankings (ceiling)", "comparisons", "ceiling_heldout"),
        ("agreement of two of them", "comparisons", "agreement_heldout"),
        ("always the longer answer", "reward_model", "longer_baseline"),
    )
    return [[label, *(percent(life[stage].metrics[name]) for life in found.values())] for label, stage, name in wanted]


def ppo(found: Lives) -> list[list[str]]:
    """The first step's exact values, and where the run went."""
    rows = []
    for label, name in (("KL", "kl"), ("ratio", "first_ratio"), ("clip fraction", "first_clipfrac")):
        rows.append([f"{label} at the start", *(repr(life["ppo"].log[0][name]) for life in found.values())])
    for label, name in (
        ("reward model's score", "score"),
        ("gold score of the sampled answers", "gold"),
        ("KL to SFT, nats an answer", "kl"),
        ("entropy, nats a token", "entropy"),
        ("answer length, tokens", "length"),
        ("pretraining loss, nats a token", "ptx_loss"),
    ):
        cells = [f"{label}, first → last five steps"]
        for life in found.values():
            log = life["ppo"].log
            ends = (log[:5], log[-5:])
            cells.append(" → ".join(f"{sum(row[name] for row in end) / len(end):.3f}" for end in ends))
        rows.append(cells)
    return rows


def best_of_n(found: Lives) -> list[list[str]]:
    """One row per n: KL, and the mean gold score of the answer that the reward model chooses."""
    curves = [life["best_of_n"].metrics["curves"]["reward"] for life in found.values()]
    rows = []
    for points in zip(*curves, strict=True):
        golds = [
            f"{point['gold']['mean']:.3f} [{point['gold']['low']:.3f}, {point['gold']['high']:.3f}]" for point in points
        ]
        rows.append([f"n = {points[0]['n']}, KL {points[0]['kl']:.2f}", *golds])
    return rows


def checkpoints(found: Lives) -> list[list[str]]:
    """One row per stage that trains."""
    rows = []
    for name, record in next(iter(found.values())).items():
        if "checkpoint_mb" in record.manifest["cost"]:
            cells = [name]
            for life in found.values():
                cost, whole = life[name].manifest["cost"], life[name].manifest["seconds"]
                took = cost["checkpoint_seconds"]
                cells.append(
                    f"{cost['checkpoints']}: {took:.2f} s, {percent(took / whole)}, {cost['checkpoint_mb']} MB"
                )
            rows.append(cells)
    return rows


def tax(found: Lives) -> list[list[str]]:
    """Validation loss and few-shot accuracy: base → SFT → PPO-ptx."""
    names = ("base", "sft", "ppo")
    rows = [["validation loss, base → SFT → PPO-ptx"]]
    for life in found.values():
        taxed = life["evaluation"].metrics["tax"]
        rows[0].append(" → ".join(f"{taxed[name]['validation_loss']:.3f}" for name in names))
    first = next(iter(found.values()))["evaluation"].metrics["tax"]["base"]["few_shot"]
    for task in first:
        cells = [f"few-shot: {task}"]
        for life in found.values():
            taxed = life["evaluation"].metrics["tax"]
            cells.append(" → ".join(f"{taxed[name]['few_shot'][task]:.2f}" for name in names))
        rows.append(cells)
    return rows


def seconds(found: Lives) -> list[list[str]]:
    """Wall seconds inside each stage (starting Python and importing torch not counted)."""
    stages = list(next(iter(found.values())))
    rows = [[stage, *(f"{life[stage].manifest['seconds']:.0f}" for life in found.values())] for stage in stages]
    totals = [sum(life[stage].manifest["seconds"] for stage in stages) for life in found.values()]
    return [*rows, ["all", *(f"{total:.0f}" for total in totals)]]


if __name__ == "__main__":
    main()
