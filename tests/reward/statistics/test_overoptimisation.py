"""Oracles: curves whose alpha and beta are known, peaks by hand and by a grid, normal equations, simulated noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlife.reward.statistics.overoptimisation import FORMS, fit, fitted_reward, peak_of, predict_peak

D = np.linspace(0.3, 6, 40)


def curve(form, alpha, beta, d=D):
    return d * (alpha - beta * (d if form == "best_of_n" else np.log(d)))


@pytest.mark.parametrize("form", FORMS)
@given(alpha=st.floats(-3, 3), beta=st.floats(-2, 2))
@settings(deadline=None, max_examples=30)
def test_recovers_the_curve(form, alpha, beta):
    found = fit(D, curve(form, alpha, beta), form)
    assert (found.alpha, found.beta) == (pytest.approx(alpha, abs=1e-9), pytest.approx(beta, abs=1e-9))
    assert (found.form, found.n, found.alpha_error) == (form, 40, None)
    assert fitted_reward(form, alpha, beta, 2.0) == pytest.approx(float(curve(form, alpha, beta, np.array(2.0))))
    assert fitted_reward(form, alpha, beta, 0.0) == 0.0


@pytest.mark.parametrize(("form", "other"), [FORMS, FORMS[::-1]])
def test_the_right_form_fits_better(form, other):
    reward = curve(form, 1.0, 0.4)
    assert fit(D, reward, form).r2 == pytest.approx(1, abs=1e-12)
    wrong = fit(D, reward, other)
    assert wrong.r2 < 0.99  # twin
    assert (wrong.alpha, wrong.beta) != (pytest.approx(1.0, abs=0.05), pytest.approx(0.4, abs=0.05))


@pytest.mark.parametrize("form", FORMS)
def test_with_noise(form):
    rng = np.random.default_rng(0)
    clean = curve(form, 1.0, 0.4)
    found = [fit(D, clean + rng.normal(scale=0.1, size=40), form) for _ in range(300)]
    columns = np.stack([D, curve(form, 0, 1)], 1)
    # Least squares is unbiased, with covariance sigma² (X'X)^-1.
    wanted = 0.1 * np.sqrt(np.diag(np.linalg.inv(columns.T @ columns)))
    for name, truth, error in (("alpha", 1.0, wanted[0]), ("beta", 0.4, wanted[1])):
        values = np.array([getattr(one, name) for one in found])
        assert values.mean() == pytest.approx(truth, abs=4 * error / math.sqrt(300))
        assert values.std() == pytest.approx(error, rel=0.15)
    assert 0.8 < np.mean([one.r2 for one in found]) < 0.999


def test_by_hand():
    # R = alpha d - beta d² through (1, 1), (2, 1), (3, 0): normal equations
    # 14 alpha - 36 beta = 3, 36 alpha - 98 beta = 5; determinant 14·98 - 36² = 76.
    found = fit([1, 2, 3], [1, 1, 0], "best_of_n")
    alpha, beta = (3 * 98 - 36 * 5) / 76, (3 * 36 - 14 * 5) / 76
    assert (found.alpha, found.beta) == (pytest.approx(alpha), pytest.approx(beta))  # 1.5 and 0.5: exact
    assert (found.alpha, found.beta, found.r2) == (pytest.approx(1.5), pytest.approx(0.5), pytest.approx(1))
    assert (found.peak_d, found.peak_reward) == (pytest.approx(1.5), pytest.approx(1.125))


def test_r2_by_hand():
    # At d = 1, 1, 2 the fit meets the mean of the two rewards at d = 1 and the one at d = 2: residuals -1, 1, 0; the
    # rewards 0, 2, 4 have squared deviations 4, 0, 4.
    assert fit([1, 1, 2], [0, 2, 4], "best_of_n").r2 == pytest.approx(1 - 2 / 8)
    # Weight 3 on the second: at d = 1 the mean is 1.5, residuals² 2.25 + 3·0.25; mean of all 2, deviations² 4 + 0 + 4.
    weighted = fit([1, 1, 2], [0, 2, 4], "best_of_n", weights_M=[1, 3, 1])
    assert weighted.r2 == pytest.approx(1 - 3 / 8)
    assert weighted.alpha - weighted.beta == pytest.approx(1.5)
    # A form through 0 can be worse than the mean.
    assert fit([1, 2, 3], [5, 4.5, 5.1], "best_of_n").r2 < 0
    assert fit([1, 2, 3], [0, 0, 0], "rl").r2 is None


def test_weights_are_repetitions():
    d, reward = np.array([0.5, 1, 2, 3]), np.array([0.3, 0.6, 0.4, 0.2])
    weighted = fit(d, reward, "rl", weights_M=[1, 2, 1, 3])
    repeated = fit(np.repeat(d, [1, 2, 1, 3]), np.repeat(reward, [1, 2, 1, 3]), "rl")
    assert weighted[1:3] == pytest.approx(repeated[1:3], rel=1e-9)
    assert weighted[5:8] == pytest.approx(repeated[5:8], rel=1e-9)
    assert fit(d, reward, "rl").alpha != pytest.approx(repeated.alpha, rel=1e-3)  # twin


def test_peaks_by_hand():
    assert peak_of("best_of_n", 2.0, 0.5) == 2.0
    assert peak_of("rl", 0.5, 0.5) == 1.0
    assert peak_of("rl", 1.0, 0.5) == pytest.approx(math.e)
    assert peak_of("rl", -1.0, 1.0) == pytest.approx(math.exp(-2))  # beta < 0 log d below d = 1
    for form in FORMS:
        assert peak_of(form, 1.0, 0.0) is None
        assert peak_of(form, 1.0, -0.1) is None
    assert peak_of("best_of_n", -1.0, 0.5) is None
    assert peak_of("rl", 1.0, 1e-4) is None  # exp(9999)


@pytest.mark.parametrize("form", FORMS)
def test_peak_is_the_highest_point(form):
    grid = np.linspace(0.01, 20, 200_000)
    found = fit(D, curve(form, 1.0, 0.4), form)
    top = curve(form, 1.0, 0.4, grid)
    assert found.peak_d == pytest.approx(float(grid[top.argmax()]), abs=1e-3)
    assert found.peak_reward == pytest.approx(float(top.max()), abs=1e-6)


def test_standard_errors_come_from_the_replicates():
    rng = np.random.default_rng(0)
    alphas, betas = rng.normal(1, 0.2, 50), rng.normal(0.3, 0.05, 50)
    replicates = [curve("rl", *pair) for pair in zip(alphas, betas, strict=True)]
    found = fit(D, curve("rl", 1, 0.3), "rl", replicates_SM=replicates)
    assert found.alpha_error == pytest.approx(alphas.std(ddof=1))
    assert found.beta_error == pytest.approx(betas.std(ddof=1))
    wrong = fit(D, curve("rl", 1, 0.3), "best_of_n", replicates_SM=replicates)
    assert wrong.alpha_error != pytest.approx(alphas.std(ddof=1))


@pytest.mark.parametrize("form", FORMS)
def test_predicts_the_peak_of_a_clean_run(form):
    d = np.linspace(0.1, 4, 60)
    alpha, beta = (1.2, 0.25) if form == "best_of_n" else (1.0, 1.0)  # peaks at 2.4 and 1
    found = predict_peak(d, curve(form, alpha, beta, d), form)
    peak = peak_of(form, alpha, beta)
    assert (found.alpha, found.beta) == (pytest.approx(alpha), pytest.approx(beta))
    assert found.predicted_d == pytest.approx(peak)
    assert found.found_d == pytest.approx(peak, abs=0.1)
    assert (found.n_fit, found.n, found.at_end) == (30, 60, False)
    # Twin: the other form says something else.
    other = FORMS[1 - FORMS.index(form)]
    assert predict_peak(d, curve(form, alpha, beta, d), other).predicted_d != pytest.approx(peak, rel=0.1)


def test_the_first_part_is_the_runs_and_not_the_nearest():
    # d falls in the second half; only the first three points are exact, and they alone are fitted.
    d = np.array([1, 2, 3, 2.5, 1.5, 0.5])
    reward = curve("best_of_n", 1.5, 0.5, d) + np.array([0, 0, 0, 3, -3, 3])
    found = predict_peak(d, reward, "best_of_n", window=1)
    assert (found.alpha, found.beta) == (pytest.approx(1.5), pytest.approx(0.5))
    assert (found.predicted_d, found.predicted_reward) == (pytest.approx(1.5), pytest.approx(1.125))
    assert (found.found_d, found.at_end) == (2.5, False)
    assert found.found_reward == pytest.approx(reward[3])
    assert predict_peak(d, reward, "best_of_n", fraction=0.75).n_fit == 5
    assert predict_peak(d, reward, "best_of_n", fraction=0.75).alpha != pytest.approx(1.5)


def test_smoothing_passes_over_an_outlier():
    d = np.linspace(0.1, 4, 40)
    reward = curve("best_of_n", 1.2, 0.3, d)  # highest at 2
    reward[36] += 1.0
    # The window of 8 that holds the outlier is 1/8 higher, and at d > 3 that is less than the fall of 0.3 (d - 2)².
    assert predict_peak(d, reward, "best_of_n").found_d == pytest.approx(2, abs=0.1)
    assert predict_peak(d, reward, "best_of_n", window=1).found_d == pytest.approx(d[36])  # twin


def test_a_run_that_still_rises():
    d = np.linspace(0.1, 4, 40)
    found = predict_peak(d, curve("rl", 1.0, -0.2, d), "rl")
    assert (found.predicted_d, found.predicted_reward, found.at_end) == (None, None, True)


@pytest.mark.parametrize(
    ("d", "reward", "found"),
    [
        ([1, 2], [1, 2], "at least 3 points"),
        ([1, 1, 1], [1, 2, 3], "not all at one d"),
        ([0, 1, 2], [0, 1, 2], "d > 0"),
        ([-1, 1, 2], [0, 1, 2], "d > 0"),
        ([1, 2, 3], [1, 2], "one finite reward per finite d"),
        ([1, 2, 3], [1, 2, math.nan], "one finite reward per finite d"),
        ([1, 2, math.inf], [1, 2, 3], "one finite reward per finite d"),
    ],
)
def test_refusals(d, reward, found):
    with pytest.raises(ValueError, match=found):
        fit(d, reward, "rl")
    with pytest.raises(ValueError, match=found):
        predict_peak(d, reward, "rl")


def test_refuses_bad_options():
    for weights in ([1, 1], [1, 0, 1], [1, -1, 1], [1, math.nan, 1]):
        with pytest.raises(ValueError, match="one finite weight > 0 per point"):
            fit([1, 2, 3], [1, 2, 3], "rl", weights_M=weights)
    for replicates in ([[1, 2]], [[1, 2, 3]], [1, 2, 3]):
        with pytest.raises(ValueError, match="at least two curves of 3 points"):
            fit([1, 2, 3], [1, 2, 3], "rl", replicates_SM=replicates)
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match="fraction must be"):
            predict_peak(D, D, "rl", fraction=fraction)
    for window in (0, 41):
        with pytest.raises(ValueError, match=r"window must be in 1 \.\. 40"):
            predict_peak(D, D, "rl", window=window)
    with pytest.raises(ValueError, match="at least 3 points"):
        predict_peak([1, 2, 3], [1, 2, 3], "rl")  # its first half has two
