"""Time and tokens, and where a step was made."""

from __future__ import annotations


def test_time_tokens_and_machines(half, reader):
    text = reader(half.page()).text
    assert "pretrain 90.0 s 3,000,000 6,345 36.2 % 858 – 2.0 s – box" in text
    assert "total 91.5 s 3,000,000" in text
    assert "Machines: box; box (Plan-9)." in text
    assert "differ bitwise" not in text


def test_a_device_that_gives_other_bits_is_told(half, reader, evaluation):
    half.done("evaluation", evaluation(), device="cpu", threads=2, same_bits=True)
    half.done("ppo", {}, device="cuda (A Big One)", threads=8, same_bits=False)
    text = reader(half.page()).text
    assert "Repeating the run may differ bitwise on the device of ppo: a GPU adds in no fixed order" in text
    assert "device cuda (A Big One), 8 threads" in text
    assert "device cpu, 2 threads" in text


def test_a_step_that_was_begun_elsewhere_is_told(half, reader, evaluation):
    half.done("evaluation", evaluation())
    assert "Started on one machine" not in reader(half.page()).text
    half.done("ppo", {}, machines=[{"threads": 2}, {"threads": 1}])
    assert "micro-batch size) and finished on another: ppo. The data" in reader(half.page()).text
