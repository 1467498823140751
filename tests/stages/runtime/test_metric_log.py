"""log.jsonl and checkpoints: cut back on resume, complete or passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptlife.stages.runtime.metric_log import MetricLog


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_line_a_step(tmp_path: Path, capsys: Any) -> None:
    with MetricLog(tmp_path, "toy", 2) as metric_log:
        metric_log.log(1, {"loss": 2.5, "none": None, "nan": float("nan"), "inf": float("inf")}, "loss 2.5")
        metric_log.log(2, {"loss": 1.5, "samples": [{"text": "a"}]}, "loss 1.5")
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5, "samples": [{"text": "a"}]}]
    assert "toy 2/2" in capsys.readouterr().err


def test_a_clock_set_back_silences_nothing(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    day, steady = [1e9], [100.0]
    monkeypatch.setattr("time.time", lambda: day[0])
    monkeypatch.setattr("time.monotonic", lambda: steady[0])
    with MetricLog(tmp_path, "toy", 9) as metric_log:
        metric_log.log(1, {"loss": 2.5})
        day[0], steady[0] = 0.0, 120.0
        metric_log.log(2, {"loss": 2.5})
    said = [line.split(" [")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["toy 1/9", "toy 2/9"]


def test_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    with MetricLog(tmp_path, "toy", 9) as metric_log:
        for step in range(1, 6):
            metric_log.log(step, {"try": 1})
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "tr')
    with MetricLog(tmp_path, "toy", 9, start=3) as metric_log:
        metric_log.log(4, {"try": 2})
    assert lines(tmp_path) == [{"step": n, "try": 1} for n in (1, 2, 3)] + [{"step": 4, "try": 2}]


def test_other_processes_are_silent(tmp_path: Path, capsys: Any) -> None:
    with MetricLog(tmp_path, "toy", 1, main=False) as metric_log:
        metric_log.log(1, {"loss": 1.0})
        metric_log.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_what_failed_tells_the_last_step(tmp_path: Path, capsys: Any) -> None:
    def work(error: BaseException) -> None:
        with MetricLog(tmp_path, "toy", 9) as metric_log:
            metric_log.log(1, {"loss": 2.5})
            metric_log.log(2, {"loss": 1.23456, "nan": float("nan"), "samples": [1], "rate": 1e30, "steps": 7})
            raise error

    def at_once() -> None:
        with MetricLog(tmp_path, "toy", 9):
            raise ValueError("before the first step")

    told = (
        f"toy: step 2 was the last one done: loss 1.235, rate 1e+30, steps 7; all metrics: {tmp_path / 'log.jsonl'}\n"
    )
    with pytest.raises(ValueError, match="no number"):
        work(ValueError("the next one is no number"))
    assert told in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        work(KeyboardInterrupt())
    assert "was the last one" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="first step"):
        at_once()
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricLog(tmp_path, "toy", 2, track=["tensorboard"]) as metric_log:
        metric_log.log(1, {"loss": 2.5, "samples": []})
        metric_log.log(2, {"loss": 1.5})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
