"""Task `multiple_choice` against log-probabilities by plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.stages.evals.tasks import multiple_choice
from gptlife.stages.modeling.forward import SelectedLogits


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 1000])
def test_few_shot(tokens: int, tiny: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.pretrain))
    model = AutoModelForCausalLM.from_pretrained(str(tiny.pretrain)).eval()

    def logprobs(items: list[dict[str, Any]]) -> list[list[float]]:
        return multiple_choice.mean_logprobs(SelectedLogits(model), tokenizer, items, tokens)

    words = [("Anna has a", [" red hat.", " hat", " zebra of many stripes"]), ("Bert", [" has", " qqqq", " a"])]
    items: list[dict[str, Any]] = []
    best, told = [], []
    for query, choices in words:
        means = []
        for choice in choices:
            begin, ids = tokenizer(query)["input_ids"], tokenizer(choice)["input_ids"]
            table = torch.log_softmax(model(input_ids=torch.tensor([begin + ids])).logits[0], -1)
            total = sum(float(table[len(begin) - 1 + place, token]) for place, token in enumerate(ids))
            means.append(total / len(ids))
        best.append(max(range(3), key=means.__getitem__))
        items.append({"query": query, "choices": choices, "gold": best[-1], "task": f"task {len(items)}"})
        told.append(means)
    found = multiple_choice.by_task(items, logprobs(items))
    assert found["few_shot"] == {"task 0": 1.0, "task 1": 1.0}
    right = [-means[item["gold"]] for means, item in zip(told, items, strict=True)]
    assert found["few_shot_loss"] == {f"task {i}": pytest.approx(loss, abs=1e-5) for i, loss in enumerate(right)}
    wrong = [{**item, "gold": (item["gold"] + 1) % 3, "task": "all"} for item in items]
    wrong_and_right = [*wrong, {**items[0], "task": "all"}]
    found = multiple_choice.by_task(wrong_and_right, logprobs(wrong_and_right))
    assert found["few_shot"] == {"all": pytest.approx(1 / 3)}
    missed = [-means[item["gold"]] for means, item in zip(told, wrong, strict=True)]
    assert found["few_shot_loss"] == {"all": pytest.approx((sum(missed) + right[0]) / 3, abs=1e-5)}
    assert sum(missed) > sum(right) + 0.1


def test_the_first_of_equal_choices_is_the_answer() -> None:
    items = [{"gold": gold, "task": None} for gold in (0, 1)]
    assert multiple_choice.by_task(items, [[-1.0, -1.0], [-1.0, -1.0]]) == {
        "few_shot": {"choices": 0.5},
        "few_shot_loss": {"choices": 1.0},
    }
