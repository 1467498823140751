"""The page docs/results/rivals.md and its figure, from what benchmarks/rivals.py kept.

A cell is over all seeds on the same prompts (lives.py). `Curve` follows a method: points of rising KL with each
prompt's gold score, between which a score at a given KL is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from lives import over_prompts, spread, table
from matplotlib import pyplot as plt

from gptlife.reward.statistics.winrate import Floats, bootstrap_mean

NAMES = {
    "sft": "SFT",
    "ppo": "PPO-ptx",
    "plain": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "kto": "KTO",
    "best_of_n": "best of n",
}
METHODS = tuple(name for name in NAMES if name != "sft")
COLOURS = dict(zip(METHODS, ("#1a7f4b", "#1b6ca8", "#c77d0a", "#8c3b9a", "#b3261e", "#5b6270", "#111318"), strict=True))
LEVELS = (0.25, 0.5, 1.0, 1.5)
"""KL in nats at which methods are compared."""
FARTHEST, LOWEST = 3.0, 0.44
"""Of the figure: farther and lower lies only KTO's β 0.03, and SFT's gold score is not below."""
Seeds = dict[int, dict[str, Any]]
Point = dict[str, Any]


def means(measured: dict[str, list[float]]) -> dict[str, Any]:
    """Gold with its interval over prompts; means of the rest."""
    gold = bootstrap_mean(measured["gold"])
    others = {name: round(float(np.mean(measured[name])), 4) for name in ("kl", "proxy", "tokens")}
    return {"gold": {name: round(getattr(gold, name), 4) for name in ("mean", "low", "high")}, **others}


def page(found: Seeds, tuned: dict[str, Any], folder: str, remarks: str) -> str:
    """The whole page; `folder` has the figure, `remarks` are people's."""
    n_prompts = len(next(iter(found.values()))["curves"]["sft"][0]["gold"])
    parts = [
        "# PPO-ptx and its rivals",
        f"Made by `python benchmarks/rivals.py tune` and `run --seeds {' '.join(map(str, found))}` from the recipe "
        "`rivals` and the grid `benchmarks/rivals.yaml`. All methods start from the same SFT model and learn from the "
        "same rankings, the online ones and best of n by way of the same reward model. Gold is the Village's judge, on "
        f"{n_prompts} test prompts, one answer each; KL is to the SFT policy, in nats per answer. A cell is the mean "
        "over the seeds; brackets are 95 % bootstrap intervals over prompts, parentheses the lowest and highest seed.",
        remarks,
        "## Gold score against KL",
        f"![Gold score against the KL to the SFT policy]({folder}/gold-against-kl.svg)",
        "Online methods: the policy every 6 of 36 steps. DPO and KTO: runs of other β. Best of n: n = 2, 4, 8, 16, "
        "whose KL is log n − (n − 1)/n. A star is the setting that tuning chose. " + outside(found),
        "## At the setting that tuning chose",
        chosen_table(found),
        "## Against PPO-ptx, prompt by prompt",
        "Gold score minus PPO-ptx's on the same prompt.",
        differences(found),
        "## At the same KL",
        "Gold score minus best of n's where both curves have that KL, interpolated between the points on either side; "
        "“–” where a seed's curve does not reach it. Curves bend downwards, so a straight line is too low where points "
        "are far apart: before the first point of every method, and all along KTO's.",
        same_kl(found),
        "## Tokens sampled",
        "Thousands of tokens: to have answers ranked (the same for all), in the training that made the policy, and in "
        "all four runs of the tuning; and what a single answer costs at test time.",
        sampled_table(found, tuned),
        "## Tuning",
        "Every setting was tried once, on a seed that is none of the above (own pretraining, SFT, rankings and reward "
        "model), and chosen by its gold score on 500 validation prompts: a choice that someone without a gold judge "
        "could only make by labelling.",
        tuning(tuned),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def outside(found: Seeds) -> str:
    """The points that the figure leaves out, in words."""
    left_out = [
        f"{NAMES[method]} with β {point['name']} at KL {np.mean(point['kl']):.1f}, gold {np.mean(point['gold']):.2f}"
        f" (seed {seed})"
        for seed, result in found.items()
        for method in METHODS
        for point in result["curves"][method]
        if np.mean(point["kl"]) > FARTHEST
    ]
    return f"Outside the figure: {'; '.join(left_out)}." if left_out else ""


def chosen(result: dict[str, Any], method: str) -> Point:
    """The point that tuning chose."""
    point: Point = next(point for point in result["curves"][method] if point["name"] == "chosen" or method == "sft")
    return point


def values(found: Seeds, method: str, name: str) -> Floats:
    """values_SN of the chosen point."""
    return np.array([chosen(result, method)[name] for result in found.values()])


def chosen_table(found: Seeds) -> str:
    """Gold, KL, proxy, length and pretraining loss of every method."""
    head = ["", "gold", *(f"seed {seed}" for seed in found), "KL", "reward model's score", "tokens", "pretraining loss"]
    rows = []
    for method, name in NAMES.items():
        gold_SN = values(found, method, "gold")
        others = [
            "0" if (method, key) == ("sft", "kl") else spread(list(values(found, method, key).mean(1)), digits)
            for key, digits in (("kl", 2), ("proxy", 2), ("tokens", 1))
        ]
        losses = [result["pretraining_loss"].get(method) for result in found.values()]
        loss = "as SFT" if method == "best_of_n" else spread([each for each in losses if each is not None], 3)
        rows.append([name, over_prompts(gold_SN.tolist()).plain(), *_of_each(gold_SN), *others, loss])
    return table(head, rows)


def differences(found: Seeds) -> str:
    """Each method's gold score minus PPO-ptx's: all seeds, and each."""
    ppo_SN = values(found, "ppo", "gold")
    rows = []
    for method, name in NAMES.items():
        if method != "ppo":
            gained_SN = values(found, method, "gold") - ppo_SN
            rows.append([name, over_prompts(gained_SN.tolist()).plain(), *_intervals(gained_SN)])
    return table(["", "all seeds", *(f"seed {seed}" for seed in found)], rows)


def same_kl(found: Seeds) -> str:
    """Each method's gold score minus best of n's at `LEVELS`."""
    rows = []
    for method, name in NAMES.items():
        if method not in ("sft", "best_of_n"):
            rows.append([name, *(_gained(found, method, kl) for kl in LEVELS)])
    return table(["", *(f"KL {kl}" for kl in LEVELS)], rows)


def _gained(found: Seeds, method: str, kl: float) -> str:
    pairs = [(at_kl(curve(of, method), kl), at_kl(curve(of, "best_of_n"), kl)) for of in found.values()]
    gained = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    return over_prompts([each.tolist() for each in gained]).plain() if len(gained) == len(pairs) else "–"


def curve(result: dict[str, Any], method: str) -> list[tuple[float, Floats]]:
    """(mean KL, gold_N) of SFT and of a method's points, by rising KL."""
    points = [*result["curves"]["sft"], *result["curves"][method]]
    return sorted(((float(np.mean(each["kl"])), np.array(each["gold"])) for each in points), key=lambda point: point[0])


def at_kl(points: Sequence[tuple[float, Floats]], kl: float) -> Floats | None:
    """gold_N at a KL, linear between the two points around it; None where the curve doesn't reach it."""
    for (low, below_N), (high, above_N) in pairwise(points):
        if low <= kl <= high and low < high:
            share = (kl - low) / (high - low)
            return np.asarray((1 - share) * below_N + share * above_N)
    return None


def sampled_table(found: Seeds, tuned: dict[str, Any]) -> str:
    """Thousands of tokens by purpose."""
    rows = []
    for method in METHODS:
        test_time = [chosen(of, method).get("sampled", chosen(of, method)["tokens"]) for of in found.values()]
        rows.append(
            [
                NAMES[method],
                spread([of["labelled"] / 1e3 for of in found.values()], 0),
                spread([of["sampled"][method] / 1e3 for of in found.values()], 0),
                f"{sum(row['sampled'] for row in tuned[method]['rows']) / 1e3:.0f}",
                spread([float(np.mean(each)) for each in test_time], 1),
            ]
        )
    return table(["", "ranked", "training", "tuning, four runs", "tokens per answer at test time"], rows)


def tuning(tuned: dict[str, Any]) -> str:
    """Every setting with what it gave; the best one bold."""
    rows = []
    for method, of in tuned.items():
        for row in of["rows"]:
            setting = ", ".join(f"{name} {value:g}" for name, value in row["setting"].items())
            gold = f"{row['gold']['mean']:.3f} [{row['gold']['low']:.3f}, {row['gold']['high']:.3f}]"
            cells = [NAMES[method], setting, gold, f"{row['kl']:.2f}", f"{row['proxy']:.2f}"]
            best = row["setting"] == of["best"]
            rows.append([f"**{cell}**" if best else cell for cell in cells])
    return table(["", "setting", "gold on validation prompts", "KL", "reward model's score"], rows)


def _of_each(values_SN: Floats) -> list[str]:
    return [f"{value:.3f}" for value in values_SN.mean(1)]


def _intervals(values_SN: Floats) -> list[str]:
    estimates = [bootstrap_mean(values_N) for values_N in values_SN]
    return [f"{each.mean:.3f} [{each.low:.3f}, {each.high:.3f}]" for each in estimates]


def drawn(result: dict[str, Any], method: str) -> tuple[list[float], list[float]]:
    """Mean KL and gold score of SFT and of a method's points, copies in the order of training, others by KL."""
    points = [*result["curves"]["sft"], *result["curves"][method]]
    if not any(point["name"].startswith("step") for point in points):
        points.sort(key=lambda point: float(np.mean(point["kl"])))
    return [float(np.mean(point["kl"])) for point in points], [float(np.mean(point["gold"])) for point in points]


def figure(found: Seeds, path: Path) -> None:
    """Gold against KL, a panel per seed; stars are the chosen settings."""
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "gptlife"}
    drawing, panels = plt.subplots(
        1, len(found), figsize=(4.0 * len(found), 4.6), sharex=True, sharey=True, squeeze=False
    )
    for panel, (seed, result) in zip(panels[0], found.items(), strict=True):
        for method in METHODS:
            kl, gold = drawn(result, method)
            panel.plot(kl, gold, color=COLOURS[method], marker="o", ms=2.5, lw=1.2, label=NAMES[method])
            star = chosen(result, method)
            panel.plot(np.mean(star["kl"]), np.mean(star["gold"]), color=COLOURS[method], marker="*", ms=10, ls="")
        panel.set(title=f"seed {seed}", xlabel="KL to the SFT policy, nats per answer")
    panels[0][0].set(ylabel="mean gold score", xlim=(-0.05, FARTHEST), ylim=(LOWEST, None))
    handles, labels = panels[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, ncols=len(METHODS), loc="lower center", frameon=False)
    drawing.tight_layout(rect=(0, 0.07, 1, 1))
    drawing.savefig(path, metadata={"Date": None})
    plt.close(drawing)
