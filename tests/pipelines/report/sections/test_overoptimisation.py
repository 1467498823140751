"""Fits of gold over the distance from the start, and which runs are drawn."""

from __future__ import annotations

import math

import pytest

from gptlife.pipelines.report.sections import overoptimisation
from gptlife.pipelines.report.sections.overoptimisation import Curve, by_reward, fitted


def test_without_a_gold_judge_there_is_no_over_optimisation(half, reader, online_log):
    half.done("ppo", {}, online_log(lambda i: 0.1 * i, None))
    page = half.page()
    assert "overoptimisation-figure" not in page
    assert "Not measured: this needs a judge that knows the truth" in reader(page).text


def curve(name: str, reward: str, reach: float, form: str = "rl") -> Curve:
    points = [(0.0, 0.0), (reach / 2, 0.2), (reach, 0.1)]
    return Curve(name, reward, form, points, points, {}, {}, {})


def test_a_run_that_follows_the_form_gives_its_numbers_back():
    # R(d) = d (.7 - .3 log d), with a first point at the start, which says nothing.
    points = [(0.0, 0.0), *((d, d * (0.7 - 0.3 * math.log(d))) for d in (0.5, 1.0, 2.0, 3.0, 5.0, 6.0))]
    fit, predicted = fitted(points)
    assert (fit["alpha"], fit["beta"], fit["r2"]) == pytest.approx((0.7, 0.3, 1.0))
    assert predicted["predicted_d"] == pytest.approx(math.exp(0.7 / 0.3 - 1))
    drawn = Curve("ppo", "rm", "rl", points, points, {}, fit, predicted).fitted()
    assert drawn[0] == (0.0, 0.0)
    assert drawn[-1] == pytest.approx(points[-1])
    assert fitted(points[:3]) == ({}, {})  # two places say nothing


def test_the_runs_that_went_farthest_are_shown():
    curves = [curve("best_of_n", "rm", 1.0, "best_of_n"), *(curve(f"run{i}", "rm", float(i)) for i in range(1, 7))]
    [(reward, shown, hidden)] = by_reward(curves)
    assert (reward, hidden) == ("rm", 2)
    assert [each.name for each in shown] == ["best_of_n", "run3", "run4", "run5", "run6"]


def test_a_smoothed_run_starts_where_it_starts_and_keeps_its_mean():
    points = [(0.0, 0.0), *((float(i), 2.0 * i) for i in range(1, 25))]
    found = overoptimisation.smooth(points)
    assert found[:2] == [(0.0, 0.0), (1.5, 3.0)]
    assert len(found) == 13
    assert overoptimisation.smooth(points[:3]) == points[:3]
