"""The tables of docs/results/instructgpt-village.md, one function each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from lives import Life, Lives, of_seeds, preference, spread, table

SIZES = ("_small", "", "_large")
KINDS = ("base", "base_prompted", "sft", "plain", "ppo")
NAMES = {"base": "GPT", "base_prompted": "GPT, prompted", "sft": "SFT", "plain": "PPO", "ppo": "PPO-ptx"}
BASELINE = "sft_large"
BETAS = {"plain_b0": 0.0, "plain_b002": 0.02, "plain": 0.1, "plain_b05": 0.5, "plain_b2": 2.0}
GAMMAS = {"plain": 0.0, "ppo_g01": 0.1, "ppo_g03": 0.3, "ppo": 1.0, "ppo_g3": 3.0, "ppo_g28": 27.8}
REWARDS = ("reward_300", "reward_1200", "reward_4800", "reward_model")


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
    """Preference against the largest SFT model: one row per size, one column per kind."""

    def against(baseline: Callable[[str], str]) -> list[list[str]]:
        return [
            [million(found, size), *(_preferred(found, model(kind, size), baseline(size)) for kind in KINDS)]
            for size in SIZES
        ]

    head = ["parameters", *(NAMES[kind] for kind in KINDS)]
    gold = [[million(found, size), *(_mean(found, model(kind, size)) for kind in KINDS)] for size in SIZES]
    return "\n\n".join(
        [
            f"Preferred to the SFT model of {million(found, '_large')}, % of prompts:",
            table(head, against(lambda size: BASELINE)),
            "Preferred to the SFT model of the same size, %:",
            table(head, against(lambda size: f"sft{size}")),
            "Mean gold score:",
            table(head, gold),
        ]
    )


def _preferred(found: Lives, name: str, baseline: str) -> str:
    return "50" if name == baseline else preference(found, "evaluation", name, baseline).percent()


def _mean(found: Lives, name: str, what: str = "score", step: str = "evaluation") -> str:
    """A model's mean gold `score`, or the reward model's (`reward`)."""
    digits = 3 if what == "score" else 2
    return of_seeds(found, lambda life: life[step].metrics["models"][name][what]["mean"], digits)


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


def _few_shot(life: Life, name: str, what: str = "few_shot") -> dict[str, float]:
    """By task: accuracy, or with `few_shot_loss` the right choice's loss, nats a token."""
    return dict(life["evaluation"].metrics["tax"][name][what])


def _mean_of_tasks(life: Life, name: str, what: str) -> float:
    values = _few_shot(life, name, what).values()
    return sum(values) / len(values)


def tax_table(found: Lives) -> str:
    """Validation loss and few-shot tasks of GPT, SFT, PPO, PPO-ptx at every size."""
    kinds = ("base", "sft", "plain", "ppo")
    rows = []
    for size in SIZES:
        names = [f"{kind}{size}" for kind in kinds]
        rows.append([f"loss, nats a token, {million(found, size)}", *(_tax(found, name) for name in names)])
        for task in _few_shot(next(iter(found.values())), names[0]):
            cells = [_task(found, name, task) for name in names]
            rows.append([f"{task}, {million(found, size)}", *cells])
    return "Few-shot tasks: right, % (loss of the right choice, nats a token); means over seeds.\n\n" + table(
        ["", *(NAMES[kind] for kind in kinds)], rows
    )


def _task(found: Lives, name: str, task: str) -> str:
    right, loss = (
        sum(_few_shot(life, name, what)[task] for life in found.values()) / len(found)
        for what in ("few_shot", "few_shot_loss")
    )
    return f"{100 * right:.1f} ({loss:.3f})"


def tax_shares(found: Lives) -> str:
    """How much of PPO's tax PPO-ptx gives back, and what both reach."""
    measures: dict[str, Callable[[Life, str], float]] = {
        "loss on pretraining text": lambda life, name: life["evaluation"].metrics["tax"][name]["validation_loss"],
        "loss of the right choice": lambda life, name: _mean_of_tasks(life, name, "few_shot_loss"),
        "few-shot accuracy": lambda life, name: -_mean_of_tasks(life, name, "few_shot"),
    }
    rows = []
    for size in SIZES:
        for label, measure in measures.items():
            paid, left = (
                [measure(life, f"{kind}{size}") - measure(life, f"sft{size}") for life in found.values()]
                for kind in ("plain", "ppo")
            )
            # Of the mean tax: where one seed's tax is near nothing, its share means nothing.
            share = f"{100 * (1 - sum(left) / sum(paid)):.0f}" if min(paid) > 0 else "no tax at every seed"
            scale, digits = (100, 1) if label.endswith("accuracy") else (1, 3)
            cells = [spread(paid, digits, scale), spread(left, digits, scale), share]
            rows.append([f"{label}, {million(found, size)}", *cells])
    rewards = [
        [million(found, size), *(_mean(found, f"{kind}{size}", "reward") for kind in ("sft", "plain", "ppo"))]
        for size in SIZES
    ]
    return "\n\n".join(
        [
            "The tax is what is lost on SFT's own value: nats, or percentage points of the tasks' mean accuracy.",
            table(["", "PPO's tax", "PPO-ptx's", "given back, % of PPO's"], rows),
            "Mean score of the reward model on the test prompts:",
            table(["parameters", "SFT", "PPO", "PPO-ptx"], rewards),
        ]
    )


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
    """One row per size and kind; one column per reader, in percent."""
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


def sweep_table(found: Lives) -> str:
    """Gold score, reward, loss for every beta and gamma."""
    parts = []
    for name, values in (("β (no pretraining mix)", BETAS), ("γ (β 0.1)", GAMMAS)):
        rows = [
            [
                f"{value:g}",
                preference(found, "sweeps", run, "sft").percent(),
                *_worth(found, run),
                of_seeds(found, lambda life, r=run: life[r].metrics["kl"], 2),
                _tax(found, run, "sweeps"),
            ]
            for run, value in values.items()
        ]
        rows.append(["SFT", "50", *_worth(found, "sft"), "0", _tax(found, "sft", "sweeps")])
        head = [name, "preferred to SFT, %", "gold score", "reward", "KL, nats an answer", "pretraining loss"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def _worth(found: Lives, run: str) -> list[str]:
    return [_mean(found, run, what, "sweeps") for what in ("score", "reward")]


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
        tax = _tax(found, name) if name != "best_of_n" else "that of SFT"
        rows.append([label, _preferred(found, name, "sft"), _mean(found, name), _mean(found, name, "reward"), tax])
    return table(["", "preferred to SFT, %", "gold score", "reward", "pretraining loss"], rows)


def cost(found: Lives) -> str:
    """Seconds by stage over all steps of each seed, and the address of each seed's last step."""
    stages = sorted({step.stage for life in found.values() for step in life.values()})
    rows = []
    for stage in stages:
        cells = []
        for life in found.values():
            own = [step.manifest["seconds"] for step in life.values() if step.stage == stage]
            cells.append(f"{sum(own):,.0f} ({len(own)})")
        rows.append([stage, *cells])
    totals = [sum(step.manifest["seconds"] for step in life.values()) for life in found.values()]
    rows.append(["all", *(f"{total:,.0f}" for total in totals)])
    rows.append(["evaluation's address", *(life["evaluation"].step.address for life in found.values())])
    together = sum(totals) / 3600
    return (
        "Seconds inside the stages (steps), one thread each:\n\n"
        + table(["", *(f"seed {seed}" for seed in found)], rows)
        + f"\n\nTogether {together:.1f} core-hours: {together / 2:.1f} hours on two cores that are never idle."
    )
