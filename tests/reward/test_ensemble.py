"""The rules that make one score of several, by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded
from gptlife.reward.ensemble import EnsembleConfig, combine
from gptlife.stages.modeling.forward import SelectedScores
from gptlife.stages.modeling.scorer import EnsembleScores, score

# Three members (rows), two answers: the first 1, 2, 6, the second agreed upon.
SCORES_MN = torch.tensor([[1.0, 2.5], [2.0, 2.5], [6.0, 2.5]])
# Mean 3; deviations -2, -1, 3: biased variance (4 + 1 + 9) / 3 = 14/3, unbiased 14/2 = 7.
STD = (14 / 3) ** 0.5


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EnsembleConfig(rule="mean"), [3.0, 2.5]),
        (EnsembleConfig(rule="worst"), [1.0, 2.5]),
        (EnsembleConfig(), [3.0 - STD, 2.5]),
        (EnsembleConfig(coef=0.5), [3.0 - 0.5 * STD, 2.5]),
        (EnsembleConfig(coef=0.0), [3.0, 2.5]),
    ],
)
def test_combined_by_hand(config: EnsembleConfig, expected: list[float]) -> None:
    assert combine(SCORES_MN, config).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_deviation_is_biased_and_no_variance() -> None:
    found = combine(SCORES_MN, EnsembleConfig())[0].item()
    # Twins: the unbiased deviation, and the paper's variance.
    assert found != pytest.approx(3.0 - 7**0.5, abs=0.1)
    assert found != pytest.approx(3.0 - 14 / 3, abs=0.1)
    # A common scale of the members is one of the result, which with a variance it is not.
    assert combine(10 * SCORES_MN, EnsembleConfig())[0].item() == pytest.approx(10 * found, rel=1e-6)


def test_one_member_is_itself() -> None:
    alone_MN = torch.tensor([[1.5, -2.0, 0.25]])
    for rule in ("mean", "mean_std", "worst"):
        assert combine(alone_MN, EnsembleConfig(rule=rule)).tolist() == [1.5, -2.0, 0.25]


def test_members_are_read_together() -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(
            "gpt2", vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=1, initializer_range=0.5,
            pad_token_id=0,
        )  # fmt: skip
        model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
        members.append(SelectedScores(model))
    rows = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    alone_MN = [[float(member.model(input_ids=torch.tensor([row])).logits) for row in rows] for member in members]
    encoded = [Encoded.prompt(row) for row in rows]
    worst = score(EnsembleScores(members, EnsembleConfig(rule="worst")), encoded).tolist()
    mean = score(EnsembleScores(members, EnsembleConfig(rule="mean")), encoded).tolist()
    assert worst == pytest.approx([min(column) for column in zip(*alone_MN, strict=True)], abs=1e-5)
    assert mean == pytest.approx([sum(column) / 3 for column in zip(*alone_MN, strict=True)], abs=1e-5)
    assert worst != pytest.approx(mean, abs=1e-2)


def test_a_rule_that_does_not_exist() -> None:
    with pytest.raises(UserError, match=r"^ppo\.ensemble\.rule: input should be 'mean', 'mean_std' or 'worst'"):
        decode(EnsembleConfig, {"rule": "median"}, "ppo.ensemble")


def test_the_config_needs_no_torch() -> None:
    code = "import sys, gptlife.reward.ensemble; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
