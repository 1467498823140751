"""Stage `evaluation`: answers, scores, win rates and further sets against transformers and counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages import evaluation


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


def test_further_prompts_are_scored_and_not_compared(run: Any, tiny: Any, tmp_path: Path) -> None:
    further = tmp_path / "further.jsonl"
    further.write_text("".join(json.dumps({"prompt": f"Who is {name}?"}) + "\n" for name in "ABCDE"), encoding="utf-8")
    inputs = {"base": tiny.pretrain, "sft": tiny.sft}
    metrics = run(evaluation.STAGE, fields(tiny, further_prompts={"five": str(further)}), tmp_path / "one", **inputs)
    assert {name: found["score"]["n"] for name, found in metrics["further"]["five"].items()} == {"base": 5, "sft": 5}
    assert {row["n"] for row in metrics["win_rates"]} == {24}
    with pytest.raises(UserError, match=r"^evaluation\.further_prompts: invalid prompt-set name 'Five'"):
        run(evaluation.STAGE, fields(tiny, further_prompts={"Five": str(further)}), tmp_path / "two", sft=tiny.sft)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"baseline": "stf"}, "no candidate is called 'stf'; did you mean 'sft'?"),
        ({"baseline": "base_prompted"}, "no candidate is called 'base_prompted'; there are: base, sft"),
    ],
)
def test_a_baseline_that_is_no_candidate(more: dict[str, Any], said: str, run: Any, tiny: Any, tmp_path: Path) -> None:
    inputs = {"base": tiny.pretrain, "sft": tiny.sft}
    with pytest.raises(UserError) as error:
        run(evaluation.STAGE, fields(tiny, **more), tmp_path / "one", **inputs)
    assert str(error.value) == f"evaluation.baseline: {said}"


def test_without_candidates(tiny: Any, run: Any, tmp_path: Path) -> None:
    said = r"^evaluation\.inputs: no candidates; give at least one model or output of best_of_n, by any name$"
    with pytest.raises(UserError, match=said):
        run(evaluation.STAGE, fields(tiny), tmp_path / "one")
    with pytest.raises(UserError, match=said):
        run(evaluation.STAGE, fields(tiny), tmp_path / "two", reward=tiny.reward_model)
