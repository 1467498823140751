"""The tables of docs/results/instructgpt-village.md, one function each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from lives import Life, Lives, Step, of_seeds, preference, spread, table

from gptlife.reward.overoptimisation import Form, fit, predict_peak

SIZES = ("_small", "", "_large")
KINDS = ("base", "base_prompted", "sft", "plain", "ppo")
NAMES = {"base": "GPT", "base_prompted": "GPT, prompted", "sft": "SFT", "plain": "PPO", "ppo": "PPO-ptx"}
BASELINE = "sft_large"
BETAS = {"plain_b0": 0.0, "plain_b002": 0.02, "plain": 0.1, "plain_b05": 0.5, "plain_b2": 2.0}
GAMMAS = {"plain": 0.0, "ppo_g01": 0.1, "ppo_g03": 0.3, "ppo": 1.0, "ppo_g3": 3.0, "ppo_g28": 27.8}
REWARDS = ("reward_300", "reward_1200", "reward_4800", "reward_model")
RUNS = {
    "over_300": "PPO, 300 rankings",
    "over_1200": "PPO, 1,200 rankings",
    "over_4800": "PPO, 4,800 rankings",
    "over_1200_kl": "PPO, 1,200 rankings, β 0.1",
    "over_1200_ensemble": "PPO, 1,200 rankings, ensemble of 3",
}


def model(kind: str, size: str) -> str:
    """The evaluation's name of a kind of model at a size."""
    return f"base{size}_prompted" if kind == "base_prompted" else f"{kind}{size}"


def parameters(found: Lives, size: str) -> int:
    """Parameters of the models of a size."""
    return int(next(iter(found.values()))["evaluation"].metrics["models"][f"sft{size}"]["parameters"])


def million(found: Lives, size: str) -> str:
    """`0.92 M`."""
    return f"{parameters(found, size) / 1e6:.2f} M"


def figure_one_table(found: Lives) -> str:
    """Preference against the largest SFT model: a row a size, a column a kind."""
    rows = [
        [
            million(found, size),
            *(
                "50"
                if model(kind, size) == BASELINE
                else preference(found, "evaluation", model(kind, size), BASELINE).percent()
                for kind in KINDS
            ),
        ]
        for size in SIZES
    ]
    own = [
        [
            million(found, size),
            *(
                "50" if kind == "sft" else preference(found, "evaluation", model(kind, size), f"sft{size}").percent()
                for kind in KINDS
            ),
        ]
        for size in SIZES
    ]
    head = ["parameters", *(NAMES[kind] for kind in KINDS)]
    gold = [[million(found, size), *(_gold(found, model(kind, size)) for kind in KINDS)] for size in SIZES]
    return "\n\n".join(
        [
            f"Preferred to the SFT model of {million(found, '_large')}, % of prompts:",
            table(head, rows),
            "Preferred to the SFT model of the same size, %:",
            table(head, own),
            "Mean gold score:",
            table(head, gold),
        ]
    )


def _gold(found: Lives, name: str) -> str:
    return of_seeds(found, lambda life: life["evaluation"].metrics["models"][name]["score"]["mean"])


def ten_times(found: Lives) -> str:
    """Small aligned models against the largest base model."""
    rows = []
    for size in SIZES[:2]:
        ratio = parameters(found, "_large") / parameters(found, size)
        for rival in ("base_large", "base_large_prompted"):
            cell = preference(found, "evaluation", f"ppo{size}", rival)
            name = NAMES["base" if rival == "base_large" else "base_prompted"]
            rows.append(
                [
                    f"PPO-ptx {million(found, size)} over {name} {million(found, '_large')}",
                    f"{ratio:.1f}",
                    cell.percent(),
                ]
            )
    return "An aligned model against a larger one that is not:\n\n" + table(["", "times larger", "preferred, %"], rows)


def _tax(found: Lives, name: str, step: str = "evaluation") -> str:
    return of_seeds(found, lambda life: life[step].metrics["tax"][name]["validation_loss"])


def _few_shot(step: Step, name: str) -> dict[str, float]:
    return dict(step.metrics["tax"][name]["few_shot"])


def tax_table(found: Lives) -> str:
    """Validation loss and few-shot accuracy of GPT, SFT, PPO, PPO-ptx at every size."""
    kinds = ("base", "sft", "plain", "ppo")
    tasks = list(_few_shot(next(iter(found.values()))["evaluation"], "base"))
    rows = []
    for size in SIZES:
        rows.append([f"loss, nats a token, {million(found, size)}", *(_tax(found, f"{kind}{size}") for kind in kinds)])
        for task in tasks:
            read = [_reader(f"{kind}{size}", task) for kind in kinds]
            rows.append([f"{task}, %, {million(found, size)}", *(of_seeds(found, one, 1, 100) for one in read)])
    return table(["", *(NAMES[kind] for kind in kinds)], rows)


def _reader(name: str, task: str) -> Callable[[Any], float]:
    return lambda life: _few_shot(life["evaluation"], name)[task]


def tax_shares(found: Lives) -> str:
    """How much of PPO's tax PPO-ptx gives back, and what both reach."""
    rows = []
    for size in SIZES:
        shares = []
        for life in found.values():
            loss = {
                kind: life["evaluation"].metrics["tax"][f"{kind}{size}"]["validation_loss"]
                for kind in ("sft", "plain", "ppo")
            }
            shares.append((loss["plain"] - loss["ppo"]) / (loss["plain"] - loss["sft"]))
        rewards = [of_seeds(found, _reward_reader(f"{kind}{size}"), 2) for kind in ("sft", "plain", "ppo")]
        rows.append([million(found, size), spread(shares, 0, 100), *rewards])
    return (
        "PPO's tax is its loss above SFT's. The share of it that PPO-ptx gives back, and the reward model's mean "
        "score on the test prompts:\n\n"
        + table(["parameters", "tax given back, %", "reward, SFT", "reward, PPO", "reward, PPO-ptx"], rows)
    )


def _reward_reader(name: str) -> Callable[[Any], float]:
    return lambda life: float(life["evaluation"].metrics["models"][name]["reward"]["mean"])


def honesty(found: Lives) -> str:
    """Truthful, truthful and informative, hallucination."""
    first = next(iter(found.values()))["evaluation"].metrics["honesty"]["sft"]
    count = {which: first[which]["n"] for which in ("truthful", "hallucination")}
    readers = [_honest(which) for which in ("truthful", "truthful_informative", "hallucination")]
    return (
        f"Truthfulness on the {count['truthful']} questions of fact, hallucination on the {count['hallucination']} "
        "prompts that bring their text along; %.\n\n"
        + table(["", "truthful", "truthful and informative", "hallucinates"], _by_model(found, readers))
    )


def rudeness(found: Lives) -> str:
    """Share of rude answers to the same tasks, asked plainly and asked politely."""
    readers = [_rude(which) for which in ("neutral", "polite")]
    return table(["rude answers, %", "not asked", "asked to be polite"], _by_model(found, readers))


def _by_model(found: Lives, readers: Sequence[Callable[[Life, str], float]]) -> list[list[str]]:
    """A row a size and kind; a column a reader, in percent."""
    rows = []
    for size in SIZES:
        for kind in KINDS:
            cells = [of_seeds(found, partial(read, name=model(kind, size)), 1, 100) for read in readers]
            rows.append([f"{NAMES[kind]}, {million(found, size)}", *cells])
    return rows


def _honest(which: str) -> Callable[[Life, str], float]:
    return lambda life, name: float(life["evaluation"].metrics["honesty"][name][which]["mean"])


def _rude(which: str) -> Callable[[Life, str], float]:
    return lambda life, name: float(life["evaluation"].metrics["further"][which][name]["verdicts"]["rude"]["mean"])


def reward_models(found: Lives) -> str:
    """Accuracy beside the labelers' agreement and the ceiling; the learning curve."""
    rows = []
    for group, name in (("training", "training labelers"), ("heldout", "held-out labelers")):
        rows.append(
            [
                name,
                of_seeds(found, lambda life, g=group: life["comparisons"].metrics[f"agreement_{g}"], 1, 100),
                of_seeds(found, lambda life, g=group: life["comparisons"].metrics[f"ceiling_{g}"], 1, 100),
                *(
                    of_seeds(found, lambda life, g=group, r=reward: life[r].metrics[f"validation_accuracy_{g}"], 1, 100)
                    for reward in REWARDS
                ),
            ]
        )
    counts = [f"{next(iter(found.values()))[reward].metrics['rankings']:,} rankings" for reward in REWARDS]
    head = ["accuracy, %", "two labelers agree", "gold judge (ceiling)", *counts]
    longer = of_seeds(found, lambda life: life["reward_model"].metrics["longer_baseline"], 1, 100)
    ece = of_seeds(found, lambda life: life["reward_model"].metrics["calibration"]["ece"], 3)
    return (
        table(head, rows) + f"\n\nAlways the longer answer: {longer} %. Expected calibration error of the last: {ece}. "
        "All have the middle size's trunk."
    )


def trace(step: Step) -> tuple[list[float], list[float], list[float]]:
    """(d, gold, proxy) of an online run by step, both scores less their first step's mean; d > 0 only."""
    log = step.log
    first = {key: log[0][key] for key in ("gold", "score")}
    rows = [row for row in log if row["kl"] > 0]
    return (
        [row["kl"] ** 0.5 for row in rows],
        [row["gold"] - first["gold"] for row in rows],
        [row["score"] - first["score"] for row in rows],
    )


def best_of_n(step: Step, name: str) -> tuple[list[float], list[float], list[float]]:
    """(d, gold, proxy) of a best-of-n curve, both less their value at n = 1."""
    curve = step.metrics["curves"][name]
    points = [point for point in curve if point["n"] > 1]
    return (
        [point["d"] for point in points],
        [point["gold"]["mean"] - curve[0]["gold"]["mean"] for point in points],
        [point["proxy"]["mean"] - curve[0]["proxy"]["mean"] for point in points],
    )


def over_optimisation_tables(found: Lives) -> str:
    """Fits, and where the peak was predicted and found."""
    rows = []
    for reward in (*REWARDS[:3], "ensemble_1200"):
        curves = [best_of_n(life["best_of_n"], reward) for life in found.values()]
        rows.append([f"best of n, {reward.replace('_', ' ')}", *_fits(curves, "best_of_n")])
    for run, name in RUNS.items():
        rows.append([name, *_fits([trace(life[run]) for life in found.values()], "rl")])
    head = [
        "",
        "α",
        "β",
        "R²",
        "R² of the other form",
        "peak √KL predicted from the first half",
        "found",
        "gold gained there",
        "gold gained at the end",
    ]
    return (
        "Gold score over the initial policy's against d = √KL (nats^½). Best of n is fitted by d(α − βd), PPO by "
        "d(α − β log d); means over seeds.\n\n" + table(head, rows)
    )


def _fits(curves: list[tuple[list[float], list[float], list[float]]], form: Form) -> list[str]:
    other: Form = "rl" if form == "best_of_n" else "best_of_n"
    fits = [fit(d, gold, form) for d, gold, _ in curves]
    others = [fit(d, gold, other) for d, gold, _ in curves]
    peaks = [predict_peak(d, gold, form) for d, gold, _ in curves]
    predicted = [peak.predicted_d for peak in peaks]
    shown = [value for value in predicted if value is not None and value < 100]
    return [
        spread([one.alpha for one in fits], 2),
        spread([one.beta for one in fits], 2),
        spread([one.r2 or 0.0 for one in fits], 2),
        spread([one.r2 or 0.0 for one in others], 2),
        (spread(shown, 2) if shown else "none")
        + ("" if len(shown) == len(peaks) else f", {len(peaks) - len(shown)} without one"),
        spread([peak.found_d for peak in peaks], 2),
        spread([peak.found_reward for peak in peaks], 3),
        spread([float(np.mean(gold[-max(1, len(gold) // 10) :])) for _, gold, _ in curves], 3),
    ]


def sweep_table(found: Lives) -> str:
    """Gold score, reward, loss for every beta and gamma."""
    parts = []
    for name, values in (("β (no pretraining mix)", BETAS), ("γ (β 0.1)", GAMMAS)):
        rows = []
        for run, value in values.items():
            rows.append(
                [
                    f"{value:g}",
                    preference(found, "sweeps", run, "sft").percent(),
                    of_seeds(found, lambda life, r=run: life["sweeps"].metrics["models"][r]["score"]["mean"]),
                    of_seeds(found, _sweep_reward(run), 2),
                    of_seeds(found, lambda life, r=run: life[r].metrics["kl"], 2),
                    _tax(found, run, "sweeps"),
                ]
            )
        rows.append(
            [
                "SFT",
                "50",
                of_seeds(found, lambda life: life["sweeps"].metrics["models"]["sft"]["score"]["mean"]),
                of_seeds(found, _sweep_reward("sft"), 2),
                "0",
                _tax(found, "sft", "sweeps"),
            ]
        )
        head = [name, "preferred to SFT, %", "gold score", "reward", "KL, nats an answer", "pretraining loss"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def _sweep_reward(run: str) -> Callable[[Any], float]:
    return lambda life: float(life["sweeps"].metrics["models"][run]["reward"]["mean"])


def baselines(found: Lives) -> str:
    """Best of n, RLOO, DPO and a second round beside PPO, all from the middle size's SFT model."""
    rows = []
    for name, label in (
        ("sft", "SFT"),
        ("best_of_n", "best of 16"),
        ("plain", "PPO"),
        ("ppo", "PPO-ptx"),
        ("ppo_2", "PPO-ptx, second round"),
        ("rloo", "RLOO"),
        ("dpo", "DPO"),
    ):
        preferred = "50" if name == "sft" else preference(found, "evaluation", name, "sft").percent()
        tax = _tax(found, name) if name != "best_of_n" else "that of SFT"
        rows.append([label, preferred, _gold(found, name), of_seeds(found, _reward_reader(name), 2), tax])
    return table(["", "preferred to SFT, %", "gold score", "reward", "pretraining loss"], rows)


def cost(found: Lives) -> str:
    """Seconds by stage over all steps of each seed, and the address of each seed's last step."""
    stages = sorted({step.planned.stage.name for life in found.values() for step in life.values()})
    rows = []
    for stage in stages:
        cells = []
        for life in found.values():
            own = [step.manifest["seconds"] for step in life.values() if step.planned.stage.name == stage]
            cells.append(f"{sum(own):,.0f} ({len(own)})")
        rows.append([stage, *cells])
    totals = [sum(step.manifest["seconds"] for step in life.values()) for life in found.values()]
    rows.append(["all", *(f"{total:,.0f}" for total in totals)])
    rows.append(["evaluation's address", *(life["evaluation"].planned.address for life in found.values())])
    together = sum(totals) / 3600
    return (
        "Seconds inside the stages (steps), one thread each:\n\n"
        + table(["", *(f"seed {seed}" for seed in found)], rows)
        + f"\n\nTogether {together:.1f} core-hours: {together / 2:.1f} hours on two cores that are never idle."
    )
