"""Metrics of an online step, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gptlife.stages.rl.metrics import standard_error, text_metrics, update_metrics


def test_standard_error_counts_prompts() -> None:
    scores = torch.tensor([1.0, 3.0, 5.0, 7.0, 0.0, 2.0])
    # Prompt means 2, 6, 1: deviations -1, 3, -2 from 3; variance 14 / 2, over 3 prompts.
    assert standard_error(scores, 2) == pytest.approx(math.sqrt(7.0 / 3.0))
    assert standard_error(scores, 1) == pytest.approx(math.sqrt((4 + 0 + 4 + 16 + 9 + 1) / 5 / 6))
    assert standard_error(scores, 6) is None


def test_means_over_the_entries_of_all_minibatches() -> None:
    """Two minibatches of 3 and 1 entries: sums are added before they are divided."""
    first = {
        "denominator": 3.0, "policy/loss": 6.0, "policy/n": 3.0, "policy/ratio_sum": 3.0, "policy/ratio_sq_sum": 3.0,
        "policy/clipfrac_sum": 0.0, "policy/approx_kl_sum": 0.0, "policy_grad_norm": 1.0,
        "critic/loss": 9.0, "critic/n": 3.0, "critic/error_sum": 3.0, "critic_grad_norm": 5.0,
    }  # fmt: skip
    second = {
        "denominator": 1.0, "policy/loss": 2.0, "policy/n": 1.0, "policy/ratio_sum": 2.0, "policy/ratio_sq_sum": 4.0,
        "policy/clipfrac_sum": 1.0, "policy/approx_kl_sum": 0.5, "policy_grad_norm": 3.0,
        "critic/loss": 3.0, "critic/n": 1.0, "critic/error_sum": 5.0, "critic_grad_norm": 7.0,
    }  # fmt: skip
    assert update_metrics([first, second]) == {
        "policy_loss": 2.0, "approx_kl": 0.125, "clipfrac": 0.25, "ratio_mean": 1.25, "ratio_var": 7 / 4 - 1.25**2,
        "policy_grad_norm": 2.0, "first_ratio": 1.0, "first_approx_kl": 0.0, "first_clipfrac": 0.0,
        "critic_loss": 3.0, "critic_error": 2.0, "critic_grad_norm": 6.0,
    }  # fmt: skip
    # Twin: a mean of the minibatches' means would be (1 + 2) / 2.
    assert update_metrics([first, second])["ratio_mean"] != 1.5


def test_a_network_that_rests_in_some_steps_has_no_metrics() -> None:
    only_value = {"denominator": 2.0, "value/loss": 1.0, "value/n": 2.0, "value/error_sum": 4.0, "value_grad_norm": 1.0}
    assert update_metrics([only_value]) == {"value_loss": 0.5, "value_error": 2.0, "value_grad_norm": 1.0}
    assert update_metrics([{**only_value, "ptx_loss": 3.0}])["ptx_loss"] == 3.0


def test_distinct_words() -> None:
    assert text_metrics(["a b a", "a b"]) == {"distinct_1": 2 / 5, "distinct_2": 2 / 3}
    assert text_metrics([""]) == {"distinct_1": 0.0, "distinct_2": 0.0}
