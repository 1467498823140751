"""The life in one sentence: the strongest thing that its numbers say so far."""

from __future__ import annotations

from gptlife.pipelines.outputs import Table
from gptlife.pipelines.report.candidates import Candidate
from gptlife.pipelines.report.evaluations import Evaluation
from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.numbers import count, num, pct, span


def summary(life: Life) -> str:
    """What an evaluation says, or else the last stage that has a number."""
    if life.evaluations and (sentence := _of_evaluation(life.evaluations[0])):
        return sentence
    online = life.lead("online")
    if online and online.log and "score" in online.log[0]:
        first, last = online.log[0], online.log[-1]
        moved = f"moved the score from {num(first['score'])} to {num(last.get('score'))}"
        return f"{online.title} {moved} in {last['step']} steps."
    reward, chat, base = (life.lead(family) for family in ("reward", "chat", "base"))
    if reward and "validation_accuracy" in reward.metrics:
        right = pct(reward.metrics["validation_accuracy"])
        return f"The reward model is right on {right} of held-out pairs; no policy yet."
    if chat and "validation_loss" in chat.metrics:
        before, after = (num(chat.metrics.get(key)) for key in ("validation_loss_before", "validation_loss"))
        return f"{chat.title} brought the validation loss from {before} to {after} nats per token."
    if base and "validation_loss" in base.metrics:
        loss = num(base.metrics["validation_loss"])
        return f"Pretrained to a validation loss of {loss} nats per token; not aligned yet."
    return "No model of this life is finished yet."


def _of_evaluation(evaluation: Evaluation) -> str:
    row = _strongest(evaluation.metrics.get("win_rates") or [], evaluation)
    if row is None:
        return ""
    judge = f", judged by {evaluation.metrics['judge']}" if evaluation.metrics.get("judge") else ""
    a, b = (evaluation.labels.get(row[side], row[side]) for side in ("a", "b"))
    rate, prompts = f"{pct(row['rate'])} {span(row, 100)}", count(row.get("n"))
    return f"{a} preferred to {b} in {rate} of {prompts} unseen prompts{judge}."


def _strongest(rows: list[Table], evaluation: Evaluation) -> Table | None:
    """The win rate that says most: aligned over fine-tuned, over base, fine-tuned over base; else the last one."""
    who = sorted(evaluation.who.values(), key=lambda each: each.name not in (each.maker.stage, each.maker.family))

    def first(*families: str, prompted: bool = False) -> Candidate | None:
        members = (each for family in families for each in who if each.maker.family == family)
        return next((each for each in members if each.prompted == prompted), None)

    aligned, chat, base = first("online", "preference"), first("chat"), first("base")
    for a, b in ((aligned, chat), (aligned, base), (chat, first("base", prompted=True)), (chat, base)):
        for row in rows:
            if a and b and (row["a"], row["b"]) == (a.name, b.name):
                return row
    return rows[-1] if rows else None
