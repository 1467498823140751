"""Stage `reward_model`: the K-way loss by brute force, one score everywhere, normalisation, metrics."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded
from gptlife.reward.ensemble import EnsembleConfig
from gptlife.stages import reward_model
from gptlife.stages.modeling import loading
from gptlife.stages.modeling.forward import SelectedScores
from gptlife.stages.modeling.loading import load_reward, load_scorer
from gptlife.stages.modeling.scorer import EnsembleScores, score
from gptlife.stages.preferences import rankings
from gptlife.stages.runtime.execution import COST
from gptlife.stages.runtime.metric_log import MetricLog

FIELDS = {"learning_rate": 1e-3, "batch_size": 100, "adam_eps": 1e-5, "validate_every": 1}


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
    reward_model.initialise_head(model, 0)
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
    one, two = ([[3, 4, 5, 6], [3, 4, 7], [3, 4, 8]], [2, 1, 2]), ([[3], [4]], [1, 2])
    rows = [{"encoded": list(map(Encoded.prompt, answers)), "ranks": ranks} for answers, ranks in (one, two)]
    examples = rankings.Rankings(rows)
    batch = examples.collate([0, 1])
    assert batch.inputs["input_ids"].shape == (5, 4)
    assert batch.inputs["input_ids"].tolist()[1] == [3, 4, 7, 0]
    assert batch.select.int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch.targets["ranks"].tolist() == [2, 1, 2, 1, 2]
    assert batch.targets["group"].tolist() == [0, 0, 0, 1, 1]
    assert examples.lengths == [12, 2]
    seen: list[int] = []

    def count(inputs: dict[str, torch.Tensor], select_BT: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs["input_ids"]))
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
    (kept,) = rankings.encode([row], tokenizer, 8, "reward_model.data")
    assert (kept["answers"], kept["ranks"]) == (["a", "c"], [1, 3])
    assert [answer.tokens for answer in kept["encoded"]] == [
        ids_of(tokenizer, messages, "a"),
        ids_of(tokenizer, messages, "c"),
    ]
    with pytest.raises(UserError, match=r"^reward_model\.data: no ranking has two untied answers of at most 8 tokens"):
        rankings.encode([{**row, "ranks": [1, 2, 1]}], tokenizer, 8, "reward_model.data")


def test_refusals(tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^reward_model\.data: no rankings; give `data`, or the input `comparisons`"):
        run(reward_model.STAGE, FIELDS, tmp_path / "one", base=tiny.sft)
    with pytest.raises(UserError, match=r"^reward_model\.rankings: 99 wanted, but there are \d\d; lower it$"):
        run(reward_model.STAGE, {"rankings": 99}, tmp_path / "one", base=tiny.sft, comparisons=tiny.comparisons)
    itself = {"gold": {"reward_model": True}}
    with pytest.raises(UserError, match=r"^reward_model\.gold: reward_model has no score before it is trained"):
        run(reward_model.STAGE, itself, tmp_path / "one", base=tiny.sft, comparisons=tiny.comparisons)
    with pytest.raises(UserError, match=r"train\.jsonl: can't be read .*; run the stage `comparisons` again"):
        run(reward_model.STAGE, FIELDS, tmp_path / "one", base=tiny.sft, comparisons=tiny.pretrain)


def test_the_first_rankings_only(tiny: Any, run: Any, tmp_path: Path, digests: Any) -> None:
    data = [json.dumps(row) for row in rankings_of(tiny, "train")]
    (tmp_path / "ranked").mkdir()
    (tmp_path / "ranked" / "train.jsonl").write_text("\n".join(data[:7]), encoding="utf-8")
    shutil.copy(tiny.comparisons / "validation.jsonl", tmp_path / "ranked")
    options = {**FIELDS, "batch_size": 4}
    run(reward_model.STAGE, options, tmp_path / "cut", base=tiny.sft, comparisons=tmp_path / "ranked")
    metrics = run(reward_model.STAGE, {**options, "rankings": 7}, tmp_path / "first", base=tiny.sft,
                  comparisons=tiny.comparisons)  # fmt: skip
    assert metrics["rankings"] == 7
    assert digests(tmp_path / "first") == digests(tmp_path / "cut")
    run(reward_model.STAGE, {**options, "rankings": 8}, tmp_path / "more", base=tiny.sft, comparisons=tiny.comparisons)
    assert digests(tmp_path / "more") != digests(tmp_path / "cut")


def test_rounds_of_comparisons_are_taken_together(tiny: Any, run: Any, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for name, count in (("train", 5), ("validation", 2)):
        data = [json.dumps({**row, "answers": [f"{text} \u2028" for text in row["answers"]]})
                for row in rankings_of(tiny, name)[:count]]  # fmt: skip
        (second / f"{name}.jsonl").write_text("\n".join(data) + "\n", encoding="utf-8")
    inputs = {"base": tiny.sft, "comparisons": tiny.comparisons}
    one = run(reward_model.STAGE, FIELDS, tmp_path / "one", **inputs)
    both = run(reward_model.STAGE, FIELDS, tmp_path / "both", **inputs, second=second)
    assert both["rankings"] == one["rankings"] + 5
    assert both["validation_rankings"] == one["validation_rankings"] + 2


ENSEMBLE = {**FIELDS, "members": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def ensemble(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("reward") / "three"
    return output, run(reward_model.STAGE, ENSEMBLE, output, base=tiny.sft, comparisons=tiny.comparisons)


def members_of(output: Path) -> list[Path]:
    return [output, output / "members" / "1", output / "members" / "2"]


def test_the_first_member_is_the_single_model(
    tiny: Any, run: Any, tmp_path: Path, ensemble: tuple[Path, dict[str, Any]], digests: Any, log_of: Any
) -> None:
    options = {**ENSEMBLE, "members": 1}
    metrics = run(reward_model.STAGE, options, tmp_path / "one", base=tiny.sft, comparisons=tiny.comparisons)
    assert not (tmp_path / "one" / "members").exists()
    both = digests(tmp_path / "one"), digests(ensemble[0])
    assert both[0]["model.safetensors"] == both[1]["model.safetensors"]
    assert log_of(tmp_path / "one") == log_of(ensemble[0])
    assert (metrics["gain"], metrics["bias"]) == (ensemble[1]["gain"], ensemble[1]["bias"])
    assert (metrics["members"], ensemble[1]["members"]) == (1, 3)
    assert ensemble[1]["tokens"] > 2.5 * metrics["tokens"]  # what it cost is of all members
    # A second run's first member is not the first one's second.
    assert len({digests(path)["model.safetensors"] for path in members_of(ensemble[0])}) == 3
    shifted = {**options, "seed": 1}
    run(reward_model.STAGE, shifted, tmp_path / "shifted", base=tiny.sft, comparisons=tiny.comparisons)
    assert digests(tmp_path / "shifted")["model.safetensors"] not in digests(ensemble[0]).values()


def test_members_differ_in_head_and_order(tiny: Any, ensemble: tuple[Path, dict[str, Any]], log_of: Any) -> None:
    logs = [log_of(path) for path in members_of(ensemble[0])]
    assert [len(log) for log in logs] == [len(logs[0])] * 3
    assert len({log[0]["loss"] for log in logs}) == 3
    assert len({log[0]["tokens"] for log in logs}) > 1  # another first batch, before anything was learnt


def test_each_member_is_normalised_and_a_plain_model(tiny: Any, ensemble: tuple[Path, dict[str, Any]]) -> None:
    for path in members_of(ensemble[0]):
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        rows = [row for row in rankings_of(tiny, "train") if len(set(row["ranks"])) > 1]
        values = torch.tensor([value for row in rows for value in scores_of_ranking(path, tokenizer, row)])
        assert values.mean().item() == pytest.approx(0.0, abs=1e-4)
        assert values.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


def test_members_are_read_as_one(
    tiny: Any, ensemble: tuple[Path, dict[str, Any]], trained: tuple[Path, dict[str, Any]]
) -> None:
    rows = demonstrations_of(tiny, AutoTokenizer.from_pretrained(str(ensemble[0])))[:5]
    apart = [scores(path, rows) for path in members_of(ensemble[0])]
    encoded = [Encoded.prompt(row) for row in rows]
    reader = load_reward(ensemble[0], EnsembleConfig(rule="worst"))
    assert isinstance(reader, EnsembleScores)
    assert score(reader, encoded).tolist() == pytest.approx([min(own) for own in zip(*apart, strict=True)], abs=1e-5)
    careful = score(load_reward(ensemble[0]), encoded).tolist()
    means = [sum(own) / 3 for own in zip(*apart, strict=True)]
    spreads = [(sum((x - mean) ** 2 for x in own) / 3) ** 0.5
               for own, mean in zip(zip(*apart, strict=True), means, strict=True)]  # fmt: skip
    assert careful == pytest.approx([mean - std for mean, std in zip(means, spreads, strict=True)], abs=1e-5)
    single = load_reward(trained[0], EnsembleConfig(rule="worst"))
    assert isinstance(single, SelectedScores)
    assert score(single, encoded).tolist() == score(SelectedScores(load_scorer(trained[0])), encoded).tolist()


def test_members_share_a_tokenizer(ensemble: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = loading.load_tokenizer, []
    monkeypatch.setattr(loading, "load_tokenizer", lambda path: (loaded.append(path), load(path))[1])
    load_reward(ensemble[0])
    assert loaded == [ensemble[0]]


def test_what_an_ensemble_tells(tiny: Any, ensemble: tuple[Path, dict[str, Any]]) -> None:
    output, metrics = ensemble
    tokenizer = AutoTokenizer.from_pretrained(str(output))
    plain = [AutoModelForSequenceClassification.from_pretrained(str(path)).eval() for path in members_of(output)]
    flat: list[list[float]] = [[], [], []]
    rules: dict[str, list[float]] = {"mean": [], "mean_std": [], "worst": []}
    spreads = []
    for row in rankings_of(tiny, "validation"):
        own = [scores_of_ranking(model, tokenizer, row) for model in plain]
        for member, found in zip(own, flat, strict=True):
            found += margins(member, row["ranks"])
        mean = [statistics.fmean(answer) for answer in zip(*own, strict=True)]
        std = [statistics.pstdev(answer) for answer in zip(*own, strict=True)]
        if len(set(row["ranks"])) > 1:
            spreads += std
        rules["mean"] += margins(mean, row["ranks"])
        rules["mean_std"] += margins([m - s for m, s in zip(mean, std, strict=True)], row["ranks"])
        rules["worst"] += margins([min(answer) for answer in zip(*own, strict=True)], row["ranks"])

    def right(found: list[float]) -> float:
        return sum(margin > 0 for margin in found) / len(found)

    assert metrics["validation_member_accuracies"] == pytest.approx([right(found) for found in flat])
    assert len(set(metrics["validation_member_accuracies"])) > 1
    for rule, found in rules.items():
        assert metrics[f"validation_{rule}_accuracy"] == pytest.approx(right(found)), rule
    assert metrics["validation_accuracy"] == metrics["validation_mean_accuracy"]
    assert metrics["validation_disagreement"] == pytest.approx(statistics.fmean(spreads), abs=1e-5)
    doubt = [statistics.pstdev(pair) for pair in zip(*flat, strict=True)]
    order = sorted(range(len(doubt)), key=doubt.__getitem__)
    quarter = -(-len(order) // 4)  # parts that can't be equal differ by one, the larger ones first
    assert metrics["validation_by_disagreement"][0] == pytest.approx(right([rules["mean"][i] for i in order[:quarter]]))
    assert len(metrics["validation_by_disagreement"]) == 4
    json.dumps(metrics, allow_nan=False)


def test_a_bootstrapped_member_sees_some_rankings_twice(
    tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    class Watched(rankings.Rankings):
        def __init__(self, rows: Any, shared: bool = False) -> None:
            super().__init__(rows, shared)
            if len(rows) > 4:  # fewer are the probe of whether prompts can be shared
                seen.append([row["messages"][0]["content"] for row in rows])

    monkeypatch.setattr(reward_model, "Rankings", Watched)
    for bootstrap in (True, False):
        options = {**ENSEMBLE, "members": 2, "bootstrap": bootstrap}
        run(reward_model.STAGE, options, tmp_path / str(bootstrap), base=tiny.sft, comparisons=tiny.comparisons)
    first, second, *plain = seen
    assert plain[0] == plain[1]
    assert len(plain[0]) == len(set(plain[0])) == len(first) == len(second)
    assert set(first) < set(plain[0])
    assert set(second) < set(plain[0])
    assert first != second


INTERRUPTED = {
    "in the second member": ("reward_model members/1", 2),
    "before the second member": ("reward_model members/1", 0),
    "in the third member": ("reward_model members/2", 2),
}


@pytest.mark.parametrize("where", INTERRUPTED)
def test_an_interrupted_ensemble_goes_on_exactly(
    where: str, tiny: Any, run: Any, tmp_path: Path, ensemble: tuple[Path, dict[str, Any]], digests: Any, log_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, metrics = ensemble
    name, last = INTERRUPTED[where]
    cut(monkeypatch, name, last, lambda: run(reward_model.STAGE, ENSEMBLE, tmp_path / "parts", base=tiny.sft,
                                             comparisons=tiny.comparisons))  # fmt: skip
    begun: list[str] = []
    begin = MetricLog.__init__

    def noted(self: MetricLog, output: Path, name: str, *rest: Any, **more: Any) -> None:
        begun.append(f"{name} from {more['start']}")
        begin(self, output, name, *rest, **more)

    monkeypatch.setattr(MetricLog, "__init__", noted)
    again = run(reward_model.STAGE, ENSEMBLE, tmp_path / "parts", base=tiny.sft, comparisons=tiny.comparisons)
    names = ["reward_model", "reward_model members/1", "reward_model members/2"]
    left = names[names.index(name) :]
    assert begun == [f"{other} from {max(0, last - 1) if other == name else 0}" for other in left]
    assert digests(tmp_path / "parts") == digests(whole)
    for one, other in zip(members_of(tmp_path / "parts"), members_of(whole), strict=True):
        assert log_of(one) == log_of(other)
    assert {k: v for k, v in again.items() if k not in COST} == {k: v for k, v in metrics.items() if k not in COST}
    assert not list((tmp_path / "parts").glob("members/*/checkpoints"))


def cut(monkeypatch: pytest.MonkeyPatch, name: str, last: int, call: Any) -> None:
    """Interrupt `call` in the member that logs as `name` once step `last` is logged, or (0) as it begins."""
    from gptlife.stages.training.checkpoints import Checkpoints

    begin, log = MetricLog.__init__, MetricLog.log

    def began(self: MetricLog, output: Path, own: str, *rest: Any, **more: Any) -> None:
        if (own, last) == (name, 0):
            raise KeyboardInterrupt
        begin(self, output, own, *rest, **more)

    def logged(self: MetricLog, step: int, *rest: Any) -> None:
        log(self, step, *rest)
        if (self.name, step) == (name, last):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", lambda self: True)
        patch.setattr(MetricLog, "__init__", began)
        patch.setattr(MetricLog, "log", logged)
        with pytest.raises(KeyboardInterrupt):
            call()


def test_a_member_killed_between_saving_and_its_mark(
    tiny: Any, run: Any, tmp_path: Path, ensemble: tuple[Path, dict[str, Any]], digests: Any
) -> None:
    shutil.copytree(ensemble[0], tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "member-1.json").unlink()
    (tmp_path / "parts" / "members" / "1" / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(tmp_path / "parts" / "members" / "2")
    (tmp_path / "parts" / "checkpoints" / "member-2.json").unlink()
    run(reward_model.STAGE, ENSEMBLE, tmp_path / "parts", base=tiny.sft, comparisons=tiny.comparisons)
    assert digests(tmp_path / "parts") == digests(ensemble[0])


def test_adapters_of_a_resumed_ensemble_are_the_same(
    tiny: Any, run: Any, tmp_path: Path, digests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters are drawn by torch's generator, so every member must begin by seeding it."""
    options = {**ENSEMBLE, "members": 2, "lora": {"rank": 4, "dropout": 0.1}}

    def go(name: str) -> Any:
        return run(reward_model.STAGE, options, tmp_path / name, base=tiny.sft, comparisons=tiny.comparisons)

    go("whole")
    cut(monkeypatch, "reward_model members/1", 0, lambda: go("parts"))
    go("parts")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert len(set(digests(tmp_path / "whole").values())) == 2


GOLD = """
def judge(prompts, answers):
    return [float(len(text) % 3) for text in answers]
"""


def test_further_rankings_and_the_truth(tiny: Any, run: Any, tmp_path: Path) -> None:
    """A second labeler who turns every ranking round, another people, and a judge, all by hand."""
    (tmp_path / "gold.py").write_text(GOLD, encoding="utf-8")
    rows = rankings_of(tiny, "validation")
    keys = ("messages", "answers", "ranks", "finished")
    others = [{key: row[key] for key in keys} | {"ranks": [10 - rank for rank in row["ranks"]]} for row in rows]
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others), encoding="utf-8")
    ranked = tmp_path / "ranked"
    ranked.mkdir()
    shutil.copy(tiny.comparisons / "train.jsonl", ranked)
    turned = [{**row, "second_ranks": [-rank for rank in row["ranks"]]} for row in rows[:2]]
    agreed = [{**row, "second_ranks": row["ranks"]} for row in rows[2:4]]
    given = [*turned, *agreed, *rows[4:]]
    (ranked / "validation.jsonl").write_text("\n".join(json.dumps(row) for row in given), encoding="utf-8")
    options = {**FIELDS, "test": str(tmp_path / "others.jsonl"), "gold": {"function": f"{tmp_path / 'gold.py'}:judge"}}
    metrics = run(reward_model.STAGE, options, tmp_path / "one", base=tiny.sft, comparisons=ranked)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "one"))
    own = [scores_of_ranking(tmp_path / "one", tokenizer, row) for row in rows]

    def right(found: list[float]) -> float:
        return sum(margin > 0 for margin in found) / len(found)

    by_row = [margins(mine, row["ranks"]) for mine, row in zip(own, rows, strict=True)]
    assert metrics["validation_disputed_accuracy"] == pytest.approx(right(by_row[0] + by_row[1]))
    assert metrics["validation_agreed_accuracy"] == pytest.approx(right(by_row[2] + by_row[3]))
    assert metrics["validation_disputed_pairs"] == len(by_row[0] + by_row[1])
    flat = sorted((margin for found in by_row for margin in found), key=abs)
    quarter = -(-len(flat) // 4)
    assert metrics["validation_by_confidence"][0] == pytest.approx(right(flat[:quarter]))
    # The other people prefer the opposite, so the model is right on their pairs where it is wrong on ours.
    assert metrics["test_accuracy"] == pytest.approx(1 - metrics["validation_accuracy"])
    assert (metrics["test_pairs"], metrics["test_rankings"]) == (len(flat), metrics["validation_rankings"])
    assert metrics["test_longer_baseline"] == pytest.approx(1 - metrics["longer_baseline"])
    assert metrics["test_calibration"]["n"] == len(flat)
    truths = [[float(len(text) % 3) for text in row["answers"]] for row in rows]
    kept = [(mine, truth) for mine, truth, row in zip(own, truths, rows, strict=True) if len(set(row["ranks"])) > 1]
    ordered = [margin for mine, truth in kept for margin in margins(mine, [int(-value) for value in truth])]
    assert metrics["validation_gold_accuracy"] == pytest.approx(right(ordered))
    rhos = [rho(mine, truth) for mine, truth in kept if len(set(truth)) > 1]
    assert metrics["validation_gold_spearman"] == pytest.approx(statistics.fmean(rhos), abs=1e-6)
    pooled = rho([x for mine, _ in kept for x in mine], [y for _, truth in kept for y in truth])
    assert metrics["validation_gold_spearman_pooled"] == pytest.approx(pooled, abs=1e-6)
    # The judge knows nothing of people: the same truth for both.
    assert metrics["test_gold_spearman"] == pytest.approx(metrics["validation_gold_spearman"])
    assert metrics["test_gold_accuracy"] == pytest.approx(metrics["validation_gold_accuracy"])
    json.dumps(metrics, allow_nan=False)


def rho(left: list[float], right: list[float]) -> float:
    """Spearman by its definition: Pearson's correlation of places, counted one by one."""

    def places(values: list[float]) -> list[float]:
        return [
            sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values
        ]

    return statistics.correlation(places(left), places(right))


def test_second_ranks_stay_beside_their_answers(tiny: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.sft))
    row = {"messages": [{"role": "user", "content": "x"}], "answers": ["a", "bbbbbbbbbbbbbbbb", "c"],
           "ranks": [1, 2, 3], "second_ranks": [3, 2, 1]}  # fmt: skip
    (kept,) = rankings.encode([row], tokenizer, 8, "reward_model.data")
    assert kept["second_ranks"] == [3, 1]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pair_loss_is_that_of_trl(tiny: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

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
            {"encoded": [Encoded.prompt(ids_of(tokenizer, p, text)) for text in pair], "ranks": [1, 2]}
            for p, pair in zip(asked, pairs, strict=True)
        ]
        loss, _ = reward_model._loss(SelectedScores(model), rankings.Rankings(ours).collate([0, 1, 2]))
        swapped = [{**row, "ranks": [2, 1]} for row in ours]
        other, _ = reward_model._loss(SelectedScores(model), rankings.Rankings(swapped).collate([0, 1, 2]))
    assert float(loss) / 3 == pytest.approx(theirs, abs=1e-5)
    assert float(other) / 3 != pytest.approx(theirs, abs=1e-5)  # twin: chosen and rejected swapped
