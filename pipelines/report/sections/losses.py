"""Losses of pretraining and of fine-tuning on demonstrations: a figure of the main run, a table of all runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gptlife.data.values import is_number
from gptlife.pipelines.report import drawing
from gptlife.pipelines.report.drawing import Log, curves, line
from gptlife.pipelines.report.life import Life, stages_of
from gptlife.pipelines.report.section import Section


def build(life: Life) -> dict[str, Any]:
    """Figures of the first base model and the first chat model, and all of both families."""
    base, chat, tokenizer = (life.lead(family) for family in ("base", "chat", "tokenizer"))
    return {
        "base": base,
        "base_figure": pretraining(base.log) if base and base.log else "",
        "base_models": life.of("base"),
        "uniform": math.log((tokenizer.metrics if tokenizer else {}).get("vocabulary") or 1),
        "chat": chat,
        "chat_title": chat.step.stage.title if chat else stages_of("chat")[0].title,
        "chat_figure": fine_tuning(chat.log, chat.metrics) if chat and chat.log else "",
        "chat_models": life.of("chat"),
    }


def pretraining(log: Log) -> str:
    """Losses, bits per byte and gradient norm over the tokens seen."""
    x = "tokens" if any("tokens" in row for row in log) else "step"
    losses = [line(log, "loss", "train", x), line(log, "validation_loss", "validation", x)]
    panels = [
        curves("loss, nats per token", losses, x=x),
        curves("bits per byte, validation", [line(log, "bits_per_byte", x=x)], x=x),
        curves("gradient norm", [line(log, "grad_norm", x=x)], x=x),
    ]
    return drawing.figure("pretraining", "Pretraining loss, bits per byte and gradient norm", panels)


def fine_tuning(log: Log, metrics: Mapping[str, Any]) -> str:
    """Losses, accuracy and gradient norm over steps; a dashed line where the kept weights are from."""
    validation = line(log, "validation_loss", "validation")
    if is_number(metrics.get("validation_loss_before")):
        validation[1].insert(0, 0.0)
        validation[2].insert(0, float(metrics["validation_loss_before"]))
    accuracy = [line(log, "accuracy", "train"), line(log, "validation_accuracy", "validation")]
    best = metrics.get("best_step")
    panels = [
        curves("loss, nats per assistant token", [line(log, "loss", "train"), validation], mark=best),
        curves("next-token accuracy", accuracy, mark=best),
        curves("gradient norm", [line(log, "grad_norm")]),
    ]
    return drawing.figure("fine_tuning", "Fine-tuning loss, accuracy and gradient norm", panels)


SECTION = Section("losses", "Losses", build, "losses")
