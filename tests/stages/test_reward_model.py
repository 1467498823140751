"""Stage `reward_model`: the K-way loss by brute force, one score everywhere, normalisation, metrics."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.config import UserError
from gptlife.stages import reward_model
from gptlife.stages.models import load_scorer

FIELDS = {"learning_rate": 1e-3, "batch_size": 100, "epsilon": 1e-5, "validate_every": 1}


def rankings_of(tiny: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tiny.comparisons / f"{name}.jsonl").read_text("utf-8").splitlines()]


def ids_of(tokenizer: Any, messages: list[dict[str, str]], answer: str, ended: bool = True) -> list[int]:
    """Prompt, answer and end of text by hand: user 3, assistant 4, end 0."""
    assert [message["role"] for message in messages] == ["user"]
    found: list[int] = [3, *tokenizer(messages[0]["content"])["input_ids"], 4, *tokenizer(answer)["input_ids"]]
    return [*found, 0] if ended else found


@torch.no_grad()
def scores(path_or_model: Any, rows: list[list[int]]) -> list[float]:
    """Scores by plain transformers, each row alone."""
    model = path_or_model
    if isinstance(model, Path):
        model = AutoModelForSequenceClassification.from_pretrained(str(model)).eval()
    return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


def scores_of_ranking(model: Any, tokenizer: Any, row: dict[str, Any]) -> list[float]:
    answers = zip(row["answers"], row["finished"], strict=True)
    return scores(model, [ids_of(tokenizer, row["messages"], answer, ended) for answer, ended in answers])


def margins(own: list[float], ranks: list[int]) -> list[float]:
    return [
        (own[i] - own[j]) * (1 if ranks[i] < ranks[j] else -1)
        for i, j in combinations(range(len(ranks)), 2)
        if ranks[i] != ranks[j]
    ]


@pytest.fixture(scope="module")
def trained(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("reward") / "one"
    metrics = run(reward_model.STAGE, FIELDS, output, base=tiny.sft, comparisons=tiny.comparisons)
    return output, metrics


def test_loss_is_the_mean_over_pairs_of_each_prompt(
    tiny: Any, trained: tuple[Path, dict[str, Any]], log_of: Any
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.sft))
    model = load_scorer(tiny.sft, fresh_head=True).eval()
    reward_model._initialise_head(model, 0)
    assert float(model.score.weight.detach().abs().max()) > 0
    losses, flat = [], []
    for row in rankings_of(tiny, "train"):
        own = margins(scores_of_ranking(model, tokenizer, row), row["ranks"])
        if own:
            losses.append(sum(math.log1p(math.exp(-margin)) for margin in own) / len(own))
            flat += own
    (first,) = log_of(trained[0])
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert first["accuracy"] == pytest.approx(sum(margin > 0 for margin in flat) / len(flat), abs=1e-6)
    # Twin: all pairs in one mean, as if each were an example of its own.
    pooled = sum(math.log1p(math.exp(-margin)) for margin in flat) / len(flat)
    assert first["loss"] != pytest.approx(pooled, abs=1e-5)


def test_k_answers_cost_k_forward_rows(tiny: Any) -> None:
    row = {"tokens": [[3, 4, 5, 6], [3, 4, 7], [3, 4, 8]], "ranks": [2, 1, 2]}
    examples = reward_model.Rankings([row, {"tokens": [[3], [4]], "ranks": [1, 2]}])
    batch = examples.collate([0, 1])
    assert batch["tokens"].shape == (5, 4)
    assert batch["tokens"].tolist()[1] == [3, 4, 7, 0]
    assert batch["select"].int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch["ranks"].tolist() == [2, 1, 2, 1, 2]
    assert batch["group"].tolist() == [0, 0, 0, 1, 1]
    assert examples.lengths == [12, 2]
    seen: list[int] = []

    def count(tokens_BT: torch.Tensor, select_BT: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens_BT))
        return torch.arange(5.0, requires_grad=True)

    loss, sums = reward_model._loss(count, batch)
    assert seen == [5]
    # Scores 0 to 4. Prompt one: answer 1 over 0 and over 2 (margins 1, -1). Prompt two: 3 over 4 (margin -1).
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2 + math.log1p(math.exp(1))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert (sums["correct"].item(), sums["pairs"].item()) == (1.0, 3)


@pytest.mark.parametrize("tokens", [50, 200])
def test_micro_batches_change_nothing(
    tokens: int, tiny: Any, run: Any, trained: tuple[Path, dict[str, Any]], tmp_path: Path, log_of: Any
) -> None:
    run(reward_model.STAGE, {**FIELDS, "micro_batch_tokens": tokens}, tmp_path / "micro", base=tiny.sft,
        comparisons=tiny.comparisons)  # fmt: skip
    (first,), (other,) = log_of(trained[0]), log_of(tmp_path / "micro")
    assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert other["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


def test_training_scores_are_normalised(tiny: Any, trained: tuple[Path, dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(trained[0]))
    flat = [
        score
        for row in rankings_of(tiny, "train")
        if len(set(row["ranks"])) > 1
        for score in scores_of_ranking(trained[0], tokenizer, row)
    ]
    values = torch.tensor(flat)
    assert values.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert values.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


def demonstrations_of(tiny: Any, tokenizer: Any) -> list[list[int]]:
    rows = [json.loads(line) for line in tiny.conversations.read_text("utf-8").splitlines()]
    return [ids_of(tokenizer, [{"role": "user", "content": row["prompt"]}], row["completion"]) for row in rows]


def test_demonstrations_score_zero_on_average(tiny: Any, trained: tuple[Path, dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.reward_model))
    shown = demonstrations_of(tiny, tokenizer)
    assert sum(scores(tiny.reward_model, shown)) / len(shown) == pytest.approx(0.0, abs=1e-5)
    # Twin: without `demonstrations` it is the training answers that do.
    assert abs(sum(scores(trained[0], shown)) / len(shown)) > 0.01


def test_without_scaling_only_the_mean_moves(tiny: Any, run: Any, tmp_path: Path) -> None:
    options = {**FIELDS, "normalise": False, "demonstrations": str(tiny.conversations)}
    metrics = run(reward_model.STAGE, options, tmp_path / "one", base=tiny.sft, comparisons=tiny.comparisons)
    assert metrics["gain"] == 1.0
    shown = demonstrations_of(tiny, AutoTokenizer.from_pretrained(str(tiny.sft)))
    assert sum(scores(tmp_path / "one", shown)) / len(shown) == pytest.approx(0.0, abs=1e-5)


def test_held_out_metrics(tiny: Any, trained: tuple[Path, dict[str, Any]]) -> None:
    tokenizer, metrics = AutoTokenizer.from_pretrained(str(trained[0])), trained[1]
    flat, longer = [], []
    for row in rankings_of(tiny, "validation"):
        flat += margins(scores_of_ranking(trained[0], tokenizer, row), row["ranks"])
        longer += margins([float(len(answer)) for answer in row["answers"]], row["ranks"])
    assert metrics["validation_pairs"] == len(flat)
    assert metrics["validation_accuracy"] == pytest.approx(sum(margin > 0 for margin in flat) / len(flat))
    assert metrics["validation_accuracy_function"] == metrics["validation_accuracy"]
    baseline = sum((margin > 0) + 0.5 * (margin == 0) for margin in longer) / len(longer)
    assert metrics["longer_baseline"] == pytest.approx(baseline)
    json.dumps(metrics, allow_nan=False)


def test_pairs_are_a_ranking_of_two(tiny: Any, run: Any, tmp_path: Path, log_of: Any) -> None:
    rows = [{"prompt": f"Say {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(20)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {**FIELDS, "data": str(path), "epochs": 8, "batch_size": 6, "learning_rate": 1e-2}
    metrics = run(reward_model.STAGE, options, tmp_path / "one", base=tiny.sft)
    assert (metrics["rankings"], metrics["validation_rankings"]) == (18, 2)
    assert log_of(tmp_path / "one")[-1]["loss"] < 0.2
    assert metrics["validation_accuracy"] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "one"))
    asked = [{"role": "user", "content": "Say 19"}]
    better, worse = scores(tmp_path / "one", [ids_of(tokenizer, asked, text) for text in ("yes 19", "no 19")])
    assert better > worse + 0.5


def test_adapters_are_merged(tiny: Any, run: Any, tmp_path: Path, weights: Any) -> None:
    options = {**FIELDS, "lora": {"rank": 4}, "demonstrations": str(tiny.conversations), "batch_size": 4}
    run(reward_model.STAGE, options, tmp_path / "lora", base=tiny.sft, comparisons=tiny.comparisons)
    found, plain = weights(tmp_path / "lora"), weights(tiny.reward_model)
    assert found.keys() == plain.keys()
    assert torch.equal(found["transformer.wte.weight"], weights(tiny.sft)["transformer.wte.weight"])
    shown = demonstrations_of(tiny, AutoTokenizer.from_pretrained(str(tmp_path / "lora")))
    assert sum(scores(tmp_path / "lora", shown)) / len(shown) == pytest.approx(0.0, abs=1e-4)


def test_long_answers_leave_their_ranking(tiny: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.sft))
    messages = [{"role": "user", "content": "x"}]
    row = {"messages": messages, "answers": ["a", "bbbbbbbbbbbbbbbb", "c"], "ranks": [1, 2, 3]}
    (kept,) = reward_model._encode([row], tokenizer, 8, "data")
    assert (kept["answers"], kept["ranks"]) == (["a", "c"], [1, 3])
    assert kept["tokens"] == [ids_of(tokenizer, messages, "a"), ids_of(tokenizer, messages, "c")]
    with pytest.raises(UserError, match=r"^reward_model\.data: no ranking has two untied answers of at most 8 tokens"):
        reward_model._encode([{**row, "ranks": [1, 2, 1]}], tokenizer, 8, "data")


def test_refusals(tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^reward_model\.data: no rankings; give `data`, or the input `comparisons`"):
        run(reward_model.STAGE, FIELDS, tmp_path / "one", base=tiny.sft)
    with pytest.raises(UserError, match=r"train\.jsonl: no rankings can be read .*; run the stage `comparisons` again"):
        run(reward_model.STAGE, FIELDS, tmp_path / "one", base=tiny.sft, comparisons=tiny.pretrain)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pair_loss_is_that_of_trl(tiny: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from gptlife.reward.reading import SelectedScores

    tokenizer = AutoTokenizer.from_pretrained(str(tiny.reward_model))
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny.reward_model), num_labels=1).eval()
    asked = [[{"role": "user", "content": f"What does {name} have?"}] for name in ("Anna", "Bert", "Cleo")]
    pairs = [("A red hat.", "Nothing"), ("A cat.", "A"), ("Blue", "A green boat and a book.")]
    said = [[[{"role": "assistant", "content": text}] for text in pair] for pair in pairs]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, (c, r) in zip(asked, said, strict=True)]
    settings = RewardConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=3,
        disable_tqdm=True, gradient_checkpointing=False, max_length=64,
    )  # fmt: skip
    trainer = RewardTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    with torch.no_grad():
        theirs = float(trainer.compute_loss(model, next(iter(trainer.get_train_dataloader()))))
        ours = [
            {"tokens": [ids_of(tokenizer, p, text) for text in pair], "ranks": [1, 2]}
            for p, pair in zip(asked, pairs, strict=True)
        ]
        loss, _ = reward_model._loss(SelectedScores(model), reward_model.Rankings(ours).collate([0, 1, 2]))
        swapped = [{**row, "ranks": [2, 1]} for row in ours]
        other, _ = reward_model._loss(SelectedScores(model), reward_model.Rankings(swapped).collate([0, 1, 2]))
    assert float(loss) / 3 == pytest.approx(theirs, abs=1e-5)
    assert float(other) / 3 != pytest.approx(theirs, abs=1e-5)  # twin: chosen and rejected swapped
