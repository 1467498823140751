"""The report's figures of PPO and RLOO: one run in twelve panels, and all runs side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptlife.pipelines.report.figures import COLOURS, Draw, Log, curves, figure, line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOGETHER = 6
"""Runs in one panel, at most."""


def ppo(log: Log) -> str:
    """Twelve panels over PPO steps; the gold judge's score stands beneath the reward model's."""

    def panel(title: str, *keys: str, guide: float | None = None, why: str = "not logged", least: float = -1e9) -> Draw:
        names = [(key, _NAMES.get(key, key)) for key in keys]
        return curves(title, [line(log, key, name) for key, name in names], guide=guide, why=why, least=least)

    panels = [
        panel("score, as trained on", "score", "rlhf_reward"),
        panel("KL to the reference, nats an answer", "kl", "kl_k3", guide=0.0),
        panel("answer length, tokens", "length"),
        panel("gold judge's score", "gold", why="no judge watched\n(ppo.judge)"),
        panel("entropy, nats a token", "entropy"),
        panel("share of answers that end", "eos_rate", guide=1.0),
        panel("approximate KL of an update", "approx_kl", guide=0.0),
        panel("share of clipped tokens", "clipfrac", guide=0.0),
        panel("probability ratio new / old", "ratio_mean", "first_ratio", guide=1.0),
        panel("value: explained variance", "var_explained", guide=0.0, least=-1.0),
        panel("pretraining loss, nats a token", "ptx_loss", why="no pretraining mix\n(ppo.pretraining)"),
        panel("distinct words and word pairs", "distinct_1", "distinct_2"),
    ]
    return figure("ppo", "PPO over its steps, in twelve panels", panels)


_NAMES = {
    "score": "score",
    "rlhf_reward": "score less KL cost",
    "kl": "k1",
    "kl_k3": "k3",
    "ratio_mean": "mean",
    "first_ratio": "first minibatch",
    "distinct_1": "words",
    "distinct_2": "pairs",
}


def runs(found: Sequence[tuple[str, Log]]) -> str:
    """Score, gold score and KL of every run over its steps; runs that stand together share a row."""
    size = math.ceil(len(found) / math.ceil(len(found) / _TOGETHER))
    draws: list[Draw] = []
    for start in range(0, len(found), size):
        together = found[start : start + size]
        draws.append(_names([name for name, _ in together]))
        for key, title, why in (
            ("score", "score, as trained on", "not logged"),
            ("gold", "gold judge's score", "no judge watched"),
            ("kl", "KL, nats an answer", "not logged"),
        ):
            lines = [line(log, key, name) for name, log in together]
            draws.append(curves(title, lines, why=why, legend=False))
    return figure("runs", "Score, gold score and KL of every online run", draws, columns=4, left=0.5)


def _names(names: Sequence[str]) -> Draw:
    """A legend in a place of its own."""

    def draw(axes: Axes) -> None:
        for name, colour in zip(names, COLOURS, strict=False):
            axes.plot([], [], color=colour, label=name)
        axes.set_axis_off()
        axes.legend(loc="upper left", bbox_to_anchor=(-0.25, 1.1), handlelength=1.2)

    return draw
