"""Over-optimisation in docs/results/instructgpt-village.md: curves over d = sqrt(KL), their fits and their peaks.

The curves are the report's (`pipelines/report/sections/overoptimisation.py`); here they are taken over seeds.
"""

from __future__ import annotations

import numpy as np
from lives import Life, Lives, spread, table

from gptlife.pipelines.report.sections.overoptimisation import Curve, curves
from gptlife.reward.statistics.overoptimisation import Form, fit

CHOSEN_BY = ("reward_300", "reward_1200", "reward_4800", "ensemble_1200")
RUNS = {
    "over_300": "PPO, 300 rankings",
    "over_1200": "PPO, 1,200 rankings",
    "over_4800": "PPO, 4,800 rankings",
    "over_1200_kl": "PPO, 1,200 rankings, β 0.1",
    "over_1200_ensemble": "PPO, 1,200 rankings, ensemble of 3",
}


def best_of_n(life: Life, reward: str) -> Curve:
    """The curve of best of n as chosen by a reward model."""
    return next(curve for curve in curves([life["best_of_n"]], []) if curve.reward == reward)


def run(life: Life, name: str) -> Curve:
    """The curve of an online run by step."""
    return curves([], [life[name]])[0]


def tables(found: Lives) -> str:
    """Fits, and where the peak was predicted and found."""
    rows = [
        [f"best of n, {reward.replace('_', ' ')}", *_row([best_of_n(life, reward) for life in found.values()])]
        for reward in CHOSEN_BY
    ]
    rows += [[title, *_row([run(life, name) for life in found.values()])] for name, title in RUNS.items()]
    head = ["", "α", "β", "R²", "R² of the other form", "peak √KL predicted from the first half", "found"]
    head += ["gold gained there", "gold gained at the end"]
    unsure = max(row["gold_se"] for life in found.values() for name in RUNS for row in life[name].log[:1])
    return (
        "Gold score over the initial policy's against d = √KL (nats^½). Best of n is fitted by d(α − βd), PPO by "
        "d(α − β log d); means over seeds. PPO's gains are over its first step's answers, whose mean has a standard "
        f"error of {unsure:.3f}.\n\n" + table(head, rows)
    )


def _row(found: list[Curve]) -> list[str]:
    predicted = [one.predicted["predicted_d"] for one in found]
    shown = [d for d in predicted if d is not None and d < 100]
    missing = "" if len(shown) == len(found) else f", {len(found) - len(shown)} without one"
    return [
        spread([one.fit["alpha"] for one in found], 2),
        spread([one.fit["beta"] for one in found], 2),
        spread([one.fit["r2"] for one in found], 2),
        spread([_other_r2(one) for one in found], 2),
        (spread(shown, 2) if shown else "none") + missing,
        spread([one.predicted["found_d"] for one in found], 2),
        spread([one.predicted["found_reward"] for one in found], 3),
        spread([_at_end(one) for one in found], 3),
    ]


def _other_r2(curve: Curve) -> float:
    """R² of the form that is not the curve's."""
    other: Form = "rl" if curve.form == "best_of_n" else "best_of_n"
    d, gold = zip(*(point for point in curve.gold if point[0] > 0), strict=True)
    return fit(d, gold, other).r2 or 0.0


def _at_end(curve: Curve) -> float:
    """Mean gain over the last tenth of the points."""
    return float(np.mean([gain for _, gain in curve.gold[-max(1, len(curve.gold) // 10) :]]))
