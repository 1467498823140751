"""One sentence about a life, as far as it has come."""

from __future__ import annotations

from gptlife.pipelines.report.life import Life
from gptlife.pipelines.report.record import read
from gptlife.pipelines.report.summary import summary


def said(half) -> str:
    sentence = summary(Life("toy", [read(step) for step in half.steps.values()]))
    return sentence.replace("\N{NO-BREAK SPACE}", " ")


def test_the_strongest_that_the_numbers_say_so_far(half, evaluation):
    assert said(half) == "Pretrained to a validation loss of 1.234 nats per token; not aligned yet."
    half.done("sft", {"validation_loss_before": 2.0, "validation_loss": 1.5})
    assert said(half) == "SFT brought the validation loss from 2.000 to 1.500 nats per token."
    half.done("reward_model", {"validation_accuracy": 0.75})
    assert said(half) == "The reward model is right on 75.0 % of held-out pairs; no policy yet."
    half.done("ppo", {"algorithm": "PPO-ptx"}, [{"step": 1, "score": 0.5}, {"step": 9, "score": 1.5}])
    assert said(half) == "PPO-ptx moved the score from 0.500 to 1.500 in 9 steps."
    half.done("evaluation", evaluation(win_rates=evaluation()["win_rates"][:2], judge=None))
    assert said(half) == "PPO-ptx preferred to base in 85.3 % [82.0, 88.0] of 500 unseen prompts."
    half.done("evaluation", evaluation())
    assert said(half).startswith("PPO-ptx preferred to SFT in 71.2 % [67.0, 75.1] of 500 unseen prompts, judged by")
