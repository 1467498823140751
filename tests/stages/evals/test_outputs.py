"""What candidates gave: ready answers of best_of_n, and pieces that a killed run left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.errors import UserError
from gptlife.stages import evaluation
from gptlife.stages.evals import outputs


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    judge = {"function": f"{tiny.functions}:count_e"}
    return {"prompts": str(tiny.prompts), "judge": judge, "max_new_tokens": 8, "n_samples": 3, **changes}


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_ready_answers_must_be_to_the_same_prompts(tiny: Any, run: Any, tmp_path: Path) -> None:
    ready = tmp_path / "best"
    ready.mkdir()
    rows = [json.loads(line) for line in tiny.prompts.read_text("utf-8").splitlines()]
    given = [{"messages": [{"role": "user", "content": row["prompt"]}], "best": "e" * i} for i, row in enumerate(rows)]
    given[3] |= {"answers": ["x", "eee", "y"], "finished": [True, False, True]}
    (ready / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    metrics = run(evaluation.STAGE, fields(tiny), tmp_path / "one", sft=tiny.sft, best_of_n=ready)
    assert metrics["models"]["best_of_n"]["score"]["mean"] == pytest.approx(sum(range(24)) / 24)
    assert "best_of_n" not in metrics["tax"]
    ended = [row["answers"]["best_of_n"]["finished"] for row in rows_of(tmp_path / "one")]
    assert ended == [number != 3 for number in range(24)]
    (ready / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given[1:]), encoding="utf-8")
    with pytest.raises(UserError, match=r"its answers are to other prompts; give best_of_n the same `prompts`"):
        run(evaluation.STAGE, fields(tiny), tmp_path / "two", sft=tiny.sft, best_of_n=ready)


def test_models_are_not_asked_twice(tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, ask, asked = tmp_path / "one", outputs.outputs_of_model, []

    def counted(candidates: Any, *rest: Any) -> Any:
        asked.append(candidates[0].name)
        if asked == ["base", "sft"]:
            raise KeyboardInterrupt
        return ask(candidates, *rest)

    monkeypatch.setattr(outputs, "outputs_of_model", counted)
    inputs = {"base": tiny.pretrain, "sft": tiny.sft}
    with pytest.raises(KeyboardInterrupt):
        run(evaluation.STAGE, fields(tiny), output, **inputs)
    resumed = run(evaluation.STAGE, fields(tiny), output, **inputs)
    assert asked == ["base", "sft", "sft"]
    whole = run(evaluation.STAGE, fields(tiny), tmp_path / "whole", **inputs)
    assert resumed | {"seconds": 0} == whole | {"seconds": 0}
    assert (output / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
