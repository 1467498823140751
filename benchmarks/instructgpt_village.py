"""The InstructGPT paper's tables in a world with known truth: docs/results/instructgpt-village.md.

    python benchmarks/instructgpt_village.py --store store --seeds 0 1 2 --jobs 2

Runs the recipe `instructgpt-village` for every seed whose results are not kept yet; a stopped run resumes. Keeps each
seed's numbers and answers beside the page (`seed-<n>.tar.xz`), and writes the page and its figures from them. So the
seeds can be run on different days: --seeds 0, then --seeds 0 1 2. A seed changes everything that is trained or drawn;
the world, the prompts and the labelers are the same for all seeds.
"""

from __future__ import annotations

import argparse
import hashlib
from importlib import resources
from pathlib import Path

import village_overoptimisation
from lives import Lives, lives, notes
from village_figures import figure_one, over_optimisation_figure, sweep_figure
from village_tables import (
    baselines,
    cost,
    figure_one_table,
    honesty,
    reward_models,
    rudeness,
    sweep_table,
    tax_shares,
    tax_table,
    ten_times,
)

RECIPE = "instructgpt-village"


def main() -> None:
    """Run, read, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/results/instructgpt-village.md"))
    arguments = parser.parse_args()
    figures = arguments.output.parent / arguments.output.stem
    figures.mkdir(parents=True, exist_ok=True)
    found = lives(RECIPE, arguments.store, arguments.seeds, arguments.jobs, kept=figures)
    figure_one(found, figures / "figure-1.svg")
    over_optimisation_figure(found, figures / "over-optimisation.svg")
    sweep_figure(found, figures / "sweeps.svg")
    arguments.output.write_text(page(found, arguments.jobs, figures.name, notes(arguments.output)), encoding="utf-8")
    print(arguments.output)


def page(found: Lives, jobs: int, folder: str, remarks: str) -> str:
    """The whole page; `folder` has the figures, `remarks` are people's."""
    seeds = " ".join(map(str, found))
    text = resources.files("gptlife.pipelines.recipes").joinpath(f"{RECIPE}.yaml").read_text(encoding="utf-8")
    parts = [
        "# InstructGPT's tables, with known truth",
        f"Made by `python benchmarks/instructgpt_village.py --seeds {seeds} --jobs {jobs}` from the recipe "
        f"`{RECIPE}` (sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}). "
        "Every number is under the Village's gold judge unless it says otherwise. A cell is the mean over "
        f"{len(found)} seeds; brackets are 95 % bootstrap intervals over prompts, parentheses the lowest and highest "
        "seed.",
        remarks,
        "## Figure 1: preference against the largest SFT model, by size",
        f"![Win rate against the largest SFT model by parameters]({folder}/figure-1.svg)",
        figure_one_table(found),
        ten_times(found),
        "## Table 14's shape: the alignment tax",
        tax_table(found),
        tax_shares(found),
        "## Truthfulness and hallucination",
        honesty(found),
        "## Rudeness, with and without being asked to be polite",
        rudeness(found),
        "## The reward model",
        reward_models(found),
        "## Over-optimisation",
        f"![Gold and proxy score against the distance from SFT]({folder}/over-optimisation.svg)",
        village_overoptimisation.tables(found),
        "## β and γ",
        f"![Gold score and pretraining loss over beta and gamma]({folder}/sweeps.svg)",
        sweep_table(found),
        "## Baselines and a second round",
        baselines(found),
        "## Time and addresses",
        cost(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    main()
