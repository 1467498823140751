"""The main online run: its first update, its health, over-optimisation, samples."""

from __future__ import annotations

import json
import re

import pytest

from gptlife.pipelines.report.sections import online
from gptlife.pipelines.report.sections.online import over_optimised


def test_exact_and_inexact_first_updates(half, reader, online_log):
    log = online_log(lambda i: 0.1 * i, None)
    half.begun("ppo", "".join(json.dumps(row) + "\n" for row in log))
    text = reader(half.page()).text
    assert "ppo unfinished, at step 20 of 500" in text
    assert "PPO moved the score from 0.090 to 2.010 in 20 steps." in text
    exact = "Exactly 1, 0, 0 and 0, as it must be"
    assert exact in text
    log[0]["first_ratio"] = 1.0002
    partial = half.steps["ppo"].path.with_name("ppo-0123456789ab.partial")
    (partial / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    text = reader(half.page()).text
    assert exact not in text
    assert "ratio 1.0002" in text
    assert "are of different distributions" in text


def test_health_marks_what_is_alarming(half, reader, online_log):
    half.done("ppo", {}, online_log(lambda i: 0.1 * i, None))
    page = half.page()
    assert "value: explained variance −7.0000 −7.0000 rises above 0.5 (alarming)" in reader(page).text
    assert page.count('<tr class="bad">') == 1
    assert "KL to the reference, nats per answer 0.0000 1.9000" in reader(page).text


def test_samples_over_time_are_spread_over_the_run(half, online_log):
    log = online_log(lambda i: 0.1 * i, None)
    for row in log:
        row["samples"] = [{"prompt": "Who?", "answer": f"answer of {row['step']}", "score": 0.5}]
    half.done("ppo", {}, log)
    shown = re.findall(r"answer of (\d+)", half.page())
    assert (shown[0], shown[-1], len(shown)) == ("1", "20", 6)


def test_over_optimisation_is_said(online_log):
    # Gold rises to step 12 and falls by as much again; the score rises all the way.
    said = over_optimised(online_log(lambda i: 0.1 * i, lambda i: 0.1 * (12 - abs(i - 12))))
    assert said is not None
    # Fifths of four steps: the best is 9 to 12 (mean gold 1.05, score 1.05), the last 17 to 20 (gold 0.55, score 1.85).
    assert "from steps 9 to 12 to the last fifth of the run the score rose from 1.050 to 1.850" in said
    assert "fell from 1.050 to 0.550" in said


@pytest.mark.parametrize(
    ("score", "gold", "steps"),
    [
        (lambda i: 0.1 * i, lambda i: 0.1 * i, 20),  # both rise
        (lambda i: 1.0, lambda i: -0.1 * i, 20),  # the score doesn't rise
        (lambda i: 0.1 * i, lambda i: -1e-4 * i, 20),  # gold falls within its noise
        (lambda i: 0.1 * i, lambda i: -0.1 * i, 9),  # too short to tell
        (lambda i: 0.1 * i, None, 20),  # no judge
    ],
)
def test_over_optimisation_is_not_said_without_cause(score, gold, steps, online_log):
    assert over_optimised(online_log(score, gold, steps)) is None


def places(svg: str, text: str) -> list[tuple[float, float]]:
    """x, y of every text of a figure that begins so."""
    found = re.findall(rf'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>{re.escape(text)}', svg)
    found += re.findall(rf"<text[^>]*translate\(([\d.]+) ([\d.]+)\)[^>]*>{re.escape(text)}", svg)
    return [(float(x), float(y)) for x, y in found]


def test_gold_is_drawn_right_beneath_the_score(online_log):
    svg = online.run("ppo", online_log(lambda i: 0.1 * i, lambda i: 0.2))
    [(score_x, score_y)], [(gold_x, gold_y)] = places(svg, "score, as trained on"), places(svg, "gold judge's score")
    assert gold_x == score_x
    assert gold_y > score_y
    assert [y for x, y in places(svg, "step") if score_y < y < gold_y]  # next row: one axis label between them
    assert "no judge watched" not in svg
    assert "no judge watched" in online.run("ppo", online_log(lambda i: 0.1 * i, None))


def test_a_low_value_does_not_flatten_the_panel(online_log):
    svg = online.run("ppo", online_log(lambda i: 0.1 * i, None))  # explained variance -7
    assert "value: explained variance, at least −1" in svg
    assert places(svg, "-1")
    assert not places(svg, "-6") + places(svg, "-7")  # the axis doesn't go there
    fine = [row | {"var_explained": 0.5} for row in online_log(lambda i: 0.1 * i, None)]
    assert "at least" not in online.run("ppo", fine)
