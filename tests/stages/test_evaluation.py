"""Stage `evaluation`: answers, judges, win rates and capabilities against transformers and counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages import evaluation
from gptlife.stages.evals import candidates, few_shot
from gptlife.stages.modeling.forward import SelectedLogits


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    judge = {"function": f"{tiny.functions}:count_e"}
    return {"prompts": str(tiny.prompts), "judge": judge, "max_new_tokens": 8, "n_samples": 3, **changes}


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def judged(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("evaluation") / "one"
    shots = {"shots": str(tiny.conversations), "n_shots": 1, "shot_format": "{prompt} {answer}\n"}
    options = fields(tiny, validation=str(tiny.held_out), validation_length=32, **shots)
    return output, run(evaluation.STAGE, options, output, base=tiny.pretrain, sft=tiny.sft, ppo=tiny.pretrain)


def test_every_model_answers_and_is_scored(judged: tuple[Path, dict[str, Any]]) -> None:
    rows, metrics = rows_of(judged[0]), judged[1]
    assert (len(rows), metrics["prompts"]) == (24, 24)
    for row in rows:
        assert list(row["answers"]) == ["base", "base_prompted", "sft", "ppo"]
        for answer in row["answers"].values():
            assert answer["score"] == answer["text"].count("e")
    for name, found in metrics["models"].items():
        scores = [row["answers"][name]["score"] for row in rows]
        assert found["score"]["mean"] == pytest.approx(sum(scores) / 24)
        assert found["words"] == pytest.approx(sum(len(row["answers"][name]["text"].split()) for row in rows) / 24)
    assert [sample["prompt"] for sample in metrics["samples"]] == [row["messages"][0]["content"] for row in rows[:3]]
    json.dumps(metrics, allow_nan=False)


def test_win_rates(judged: tuple[Path, dict[str, Any]]) -> None:
    rows = rows_of(judged[0])
    table = {(entry["a"], entry["b"]): entry for entry in judged[1]["win_rates"]}
    assert set(table) >= {("sft", "base"), ("ppo", "sft"), ("base", "sft"), ("base_prompted", "base")}
    for (a, b), entry in table.items():
        pairs = [(row["answers"][a]["score"], row["answers"][b]["score"]) for row in rows]
        assert entry["rate"] == pytest.approx(sum((x > y) + 0.5 * (x == y) for x, y in pairs) / 24)


def test_the_base_model_gets_text(
    tiny: Any, judged: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlife.stages.generation import sampler

    asked: list[list[list[int]]] = []

    def caught(model: Any, prompts: list[list[int]], **_: Any) -> list[Any]:
        asked.append(prompts)
        return [sampler.Answer(tokenizer("One.\nTwo")["input_ids"], [], False) for _ in prompts]

    tokenizer = AutoTokenizer.from_pretrained(str(tiny.pretrain))
    monkeypatch.setattr(sampler, "sample", caught)
    config = evaluation.EvaluationConfig.model_validate(
        fields(tiny, shots=str(tiny.conversations), n_shots=2, max_new_tokens=4)
    )
    model = AutoModelForCausalLM.from_pretrained(str(tiny.pretrain))
    model.config.n_positions = 1000
    rows = [{"messages": [{"role": "user", "content": "Who?"}]}]
    found = candidates.base_answers(config, model, tokenizer, "base", rows)
    shown = [json.loads(line) for line in tiny.conversations.read_text("utf-8").splitlines()[:2]]
    prompted = "".join(f"Question: {row['prompt']}\nAnswer: {row['completion']}\n\n" for row in shown)
    texts = [tokenizer.decode(batch[0]) for batch in asked]
    assert texts == ["Who?\n", prompted + "Question: Who?\nAnswer:"]
    assert found == {"base": ["One."], "base_prompted": ["One."]}  # up to the first stop string


@torch.no_grad()
def test_tax(tiny: Any, judged: tuple[Path, dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.sft))
    texts = [json.loads(line)["text"] for line in tiny.held_out.read_text("utf-8").splitlines()]
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], 0]]
    for name, path in (("base", tiny.pretrain), ("sft", tiny.sft)):
        model, nats = AutoModelForCausalLM.from_pretrained(str(path)), 0.0
        for start in range(0, len(stream) - 1, 32):
            ids = torch.tensor([stream[start : start + 33]])
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        assert judged[1]["tax"][name]["validation_loss"] == pytest.approx(nats / (len(stream) - 1), abs=1e-5)
    assert judged[1]["tax"]["sft"]["validation_loss"] > judged[1]["tax"]["base"]["validation_loss"] + 0.1


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 1000])
def test_few_shot(tokens: int, tiny: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.pretrain))
    model = AutoModelForCausalLM.from_pretrained(str(tiny.pretrain)).eval()
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
    found = few_shot.few_shot(SelectedLogits(model), tokenizer, items, tokens)
    assert found["few_shot"] == {"task 0": 1.0, "task 1": 1.0}
    right = [-means[item["gold"]] for means, item in zip(told, items, strict=True)]
    assert found["few_shot_loss"] == {f"task {i}": pytest.approx(loss, abs=1e-5) for i, loss in enumerate(right)}
    wrong = [{**item, "gold": (item["gold"] + 1) % 3, "task": "all"} for item in items]
    found = few_shot.few_shot(SelectedLogits(model), tokenizer, [*wrong, {**items[0], "task": "all"}], tokens)
    assert found["few_shot"] == {"all": pytest.approx(1 / 3)}
    missed = [-means[item["gold"]] for means, item in zip(told, wrong, strict=True)]
    assert found["few_shot_loss"] == {"all": pytest.approx((sum(missed) + right[0]) / 3, abs=1e-5)}
    assert sum(missed) > sum(right) + 0.1


def test_the_reward_model_judges(tiny: Any, run: Any, tmp_path: Path) -> None:
    options = fields(tiny, judge={"reward_model": True}, max_new_tokens=4)
    metrics = run(evaluation.STAGE, options, tmp_path / "one", sft=tiny.sft, reward=tiny.reward_model)
    assert metrics["judge"] == "a reward model that nobody here learnt from"
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.reward_model))
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny.reward_model)).eval()
    for row in rows_of(tmp_path / "one")[:5]:
        ids = [3, *tokenizer(row["messages"][0]["content"])["input_ids"], 4]
        ids += [*tokenizer(row["answers"]["sft"]["text"])["input_ids"], 0]
        with torch.no_grad():
            score = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        assert row["answers"]["sft"]["score"] == pytest.approx(score, abs=1e-5)
    with pytest.raises(UserError, match=r"^evaluation\.judge: reward_model needs the input `reward`"):
        run(evaluation.STAGE, options, tmp_path / "two", sft=tiny.sft)


def test_greedy(tiny: Any, run: Any, tmp_path: Path) -> None:
    run(evaluation.STAGE, fields(tiny, temperature=0.0, max_new_tokens=5), tmp_path / "one", sft=tiny.sft)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.sft))
    model = AutoModelForCausalLM.from_pretrained(str(tiny.sft))
    for row in rows_of(tmp_path / "one")[:4]:
        batch = tokenizer.apply_chat_template(
            row["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        made = model.generate(**batch, max_new_tokens=5, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert row["answers"]["sft"]["text"] == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_models_are_not_asked_twice(tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, ask, asked = tmp_path / "one", candidates._ask, []

    def counted(config: Any, accelerator: Any, name: str, *rest: Any) -> Any:
        asked.append(name)
        if asked == ["base", "sft"]:
            raise KeyboardInterrupt
        return ask(config, accelerator, name, *rest)

    monkeypatch.setattr(candidates, "_ask", counted)
    with pytest.raises(KeyboardInterrupt):
        run(evaluation.STAGE, fields(tiny), output, base=tiny.pretrain, sft=tiny.sft)
    run(evaluation.STAGE, fields(tiny), output, base=tiny.pretrain, sft=tiny.sft)
    assert asked == ["base", "sft", "sft"]


def test_refusals(tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^evaluation\.inputs: nobody answers; give at least one of base, sft, ppo, or any other name$"
    ):
        run(evaluation.STAGE, fields(tiny), tmp_path / "one")
    options = fields(tiny, shots=str(tiny.conversations), n_shots=9)
    with pytest.raises(UserError, match=r"^evaluation\.n_shots: a prompt with 9 worked examples has over 56 tokens"):
        run(evaluation.STAGE, options, tmp_path / "two", base=tiny.pretrain)
