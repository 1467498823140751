"""The figures of docs/results/instructgpt-village.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from lives import Lives, preference
from matplotlib import pyplot as plt
from village_overoptimisation import CHOSEN_BY, RUNS, best_of_n, run
from village_tables import BASELINE, BETAS, GAMMAS, KINDS, NAMES, SIZES, model, parameters

COLOURS = ("#8a8f98", "#5b6270", "#1b6ca8", "#c77d0a", "#1a7f4b")
plt.rcParams |= {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "gptlife",  # the same figures give the same file
    "legend.frameon": False,
}


def figure_one(found: Lives, path: Path) -> None:
    """Preference against the largest SFT model: x parameters, one line per kind of model."""
    figure, axes = plt.subplots(figsize=(6.2, 3.6))
    sizes = [parameters(found, size) for size in SIZES]
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        cells = [preference(found, "evaluation", model(kind, size), BASELINE) for size in SIZES]
        means = [100 * cell.mean for cell in cells]
        errors = [
            [100 * (cell.mean - cell.low) for cell in cells],
            [100 * (cell.high - cell.mean) for cell in cells],
        ]
        axes.errorbar(sizes, means, yerr=errors, color=colour, marker="o", ms=4, capsize=2, label=NAMES[kind])
    axes.axhline(50, color="#b9bdc4", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="parameters", ylabel="preferred to the largest SFT model, %")
    axes.set_xticks(sizes, [f"{size / 1e6:.2g} M" for size in sizes], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def over_optimisation_figure(found: Lives, path: Path) -> None:
    """Gold (full) and proxy (dashed) over d: best of n on the left, PPO in the middle and, with its guards, right."""
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 4.6), sharey=False)
    for name, colour in zip(CHOSEN_BY, (*COLOURS[2:], "#8c3b9a"), strict=True):
        seeds = [best_of_n(life, name) for life in found.values()]
        d = [point[0] for point in seeds[0].gold]
        _line(panels[0], d, [[gain for _, gain in one.gold] for one in seeds], colour, name.replace("_", " "))
        panels[0].plot(
            d, np.mean([[gain for _, gain in one.proxy] for one in seeds], 0) / 4, color=colour, ls="--", lw=0.9
        )
    groups = (("over_300", "over_1200", "over_4800"), ("over_1200", "over_1200_kl", "over_1200_ensemble"))
    for panel, names in zip(panels[1:], groups, strict=True):
        for name, colour in zip(names, COLOURS[2:], strict=True):
            for number, life in enumerate(found.values()):
                curve = run(life, name)
                panel.plot(*_smooth(curve.gold), color=colour, lw=1.2, label=RUNS[name] if number == 0 else None)
                d_smooth, proxy = _smooth(curve.proxy)
                panel.plot(d_smooth, proxy / 4, color=colour, ls="--", lw=0.7)
    for panel, title in zip(panels, ("best of n", "PPO, β 0", "PPO, 1,200 rankings, guarded"), strict=True):
        panel.axhline(0, color="#b9bdc4", lw=0.8, ls=":")
        panel.set(xlabel="√KL, nats^½", title=title)
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    panels[0].set_ylabel("gold score gained (full), proxy / 4 (dashed)")
    _save(figure, path)


def sweep_figure(found: Lives, path: Path) -> None:
    """Gold score and pretraining loss over beta and gamma; zero is at the left edge."""
    figure, panels = plt.subplots(2, 2, figsize=(7.6, 5.2), sharex="col")
    readers: tuple[tuple[str, Callable[[Any, str], float]], ...] = (
        ("gold score", lambda life, name: life["sweeps"].metrics["models"][name]["score"]["mean"]),
        ("pretraining loss, nats", lambda life, name: life["sweeps"].metrics["tax"][name]["validation_loss"]),
    )
    for column, (values, symbol) in enumerate(((BETAS, "β, without the mix"), (GAMMAS, "γ, at β 0.1"))):
        smallest = min(value for value in values.values() if value > 0)
        x = [value or smallest / 4 for value in values.values()]
        for panel, (name, read) in zip(panels[:, column], readers, strict=True):
            _line(panel, x, [[read(life, name) for name in values] for life in found.values()], COLOURS[2], None)
            sft = np.mean([read(life, "sft") for life in found.values()])
            panel.axhline(sft, color=COLOURS[0], lw=0.9, ls="--", label="SFT")
            panel.set(xscale="log", ylabel=name)
            panel.set_xticks(x, [f"{value:g}" for value in values.values()])
            panel.minorticks_off()
            panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        panels[1, column].set_xlabel(symbol)
    _save(figure, path)


def _line(axes: Any, x: list[float], seeds: list[list[float]], colour: str, label: str | None) -> None:
    """The seeds' mean as a line, each seed as points."""
    axes.plot(x, np.mean(seeds, 0), color=colour, lw=1.4, label=label)
    for values in seeds:
        axes.plot(x, values, color=colour, ls="", marker="o", ms=2.5, alpha=0.6)


def _smooth(points: list[tuple[float, float]], width: int = 5) -> tuple[Any, Any]:
    """d and gains, each averaged over neighbouring steps."""
    kernel = np.ones(width) / width
    d, gains = (np.convolve(part, kernel, mode="valid") for part in zip(*points, strict=True))
    return d, gains


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
