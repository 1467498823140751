"""Stage `comparisons`: answers, rankings, their summary by hand, and work that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.errors import UserError
from gptlife.data.rankings import pairs
from gptlife.reward.judges.config import JudgeConfig
from gptlife.stages import comparisons


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    labelers = {"function": f"{tiny.functions}:rank"}
    return {
        "prompts": str(tiny.prompts), "validation": 0.25, "labelers": labelers, "max_new_tokens": 8,
        "answers_min": 2, "answers_max": 4, **changes,
    }  # fmt: skip


def rows_of(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def compared(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("comparisons") / "one"
    return output, run(comparisons.STAGE, fields(tiny), output, policy=tiny.sft)


def test_every_prompt_is_answered_and_ranked(tiny: Any, compared: tuple[Path, dict[str, Any]]) -> None:
    asked = [json.loads(line)["prompt"] for line in tiny.prompts.read_text(encoding="utf-8").splitlines()]
    train, validation = rows_of(compared[0], "train"), rows_of(compared[0], "validation")
    assert [row["messages"] for row in train + validation] == [[{"role": "user", "content": text}] for text in asked]
    assert (len(train), len(validation)) == (18, 6)
    assert {len(row["answers"]) for row in train} == {2, 3, 4}
    assert len({answer for row in train for answer in row["answers"]}) > 20
    for row in train + validation:
        assert len(row["answers"]) == len(row["finished"]) == len(row["ranks"])
        # The labeler counts letters e: more is better, as many is a tie.
        for one in range(len(row["ranks"])):
            for two in range(one):
                a, b = (row["answers"][place].count("e") for place in (one, two))
                assert (row["ranks"][one] < row["ranks"][two]) == (a > b)
                assert (row["ranks"][one] == row["ranks"][two]) == (a == b)


def test_chunks_change_nothing_and_are_not_made_twice(
    tiny: Any, run: Any, compared: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, options = tmp_path / "two", fields(tiny, chunk=5, generation_batch_size=3)
    sample_chunk, made = comparisons._sample_chunk, []

    def counted(*args: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(args[-2:])
        return sample_chunk(*args)

    monkeypatch.setattr(comparisons, "_sample_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        run(comparisons.STAGE, options, output, policy=tiny.sft)
    assert not (output / "train.jsonl").exists()
    made.append(("", 0))  # no more interruptions
    run(comparisons.STAGE, options, output, policy=tiny.sft)
    assert made == [
        ("train", 0),
        ("train", 5),
        ("", 0),
        ("train", 10),
        ("train", 15),
        ("validation", 0),
        ("validation", 5),
    ]
    for name in ("train", "validation"):
        assert (output / f"{name}.jsonl").read_bytes() == (compared[0] / f"{name}.jsonl").read_bytes()


def test_the_log_keeps_both_parts(compared: tuple[Path, dict[str, Any]], log_of: Any) -> None:
    assert [line["step"] for line in log_of(compared[0])] == [18, 24]


def test_summary() -> None:
    rows = [
        {"ranks": [1, 2, 2, 3], "answers": ["a"] * 4, "finished": [True, True, False, True]},
        {"ranks": [1, 1], "answers": ["a"] * 2, "finished": [False, False]},
    ]
    # Pairs: 6 less one tie, and 1 less one tie.
    assert comparisons.summary(rows) == {
        "rankings": 2, "answers": 6, "pairs": 5, "tie_share": pytest.approx(2 / 7), "finished_share": 0.5
    }  # fmt: skip
    assert pairs([1, 2, 2]) == [(0, 1), (0, 2)]
    assert pairs([3, 1]) == [(1, 0)]


def test_ceilings(tmp_path: Path) -> None:
    (tmp_path / "gold.py").write_text("def gold(prompts, answers):\n    return [len(a) for a in answers]\n", "utf-8")
    rows = [
        {"answers": ["a", "bb", "ccc"], "ranks": [3, 2, 1], "second_ranks": [3, 1, 2], "group": "g", "messages": []},
        {"answers": ["a", "b"], "ranks": [1, 2], "second_ranks": [1, 1], "group": "g", "messages": []},
        {"answers": ["aa", "b"], "ranks": [2, 1], "group": "h", "messages": []},
    ]
    found = comparisons.ceilings(rows, JudgeConfig(function=f"{tmp_path / 'gold.py'}:gold"))
    # Group g, gold longer is better: pairs of row one all right (3), of row two a tie of the judge (half): 3.5 of 4.
    # The second labeler agrees on two of row one's three pairs; his tie in row two says nothing.
    assert found == {"ceiling_g": 3.5 / 4, "agreement_g": pytest.approx(2 / 3), "ceiling_h": 0.0}


def test_village_panels(tiny: Any, run: Any, tmp_path: Path) -> None:
    prompts = {"village": {"part": "prompts", "count": 10, "villagers": 12}}
    options = fields(
        tiny, prompts=prompts, validation=0.5, labelers={"village": "training"}, gold={"village": True},
        heldout_labelers={"village": "heldout"}, answers_min=3, max_new_tokens=4,
    )  # fmt: skip
    base = tmp_path / "base"
    _with_context(tiny.sft, base, 1024)
    metrics = run(comparisons.STAGE, options, tmp_path / "one", policy=base)
    train, validation = rows_of(tmp_path / "one", "train"), rows_of(tmp_path / "one", "validation")
    assert {row["group"] for row in train} == {"training"}
    assert [row["group"] for row in validation] == ["training", "heldout"] * 5
    assert all("second_ranks" in row and "meta" in row for row in validation)
    assert metrics["train_rankings"] == 5
    assert metrics["validation_rankings"] == 10
    assert all(0.0 <= metrics[f"ceiling_{group}"] <= 1.0 for group in ("training", "heldout"))


def _with_context(path: Path, output: Path, positions: int) -> None:
    """The model at `path` with room for longer rows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(path))
    wide = torch.nn.Embedding(positions, model.config.n_embd)
    model.transformer.wpe, model.config.n_positions = wide, positions
    model.save_pretrained(str(output))
    AutoTokenizer.from_pretrained(str(path)).save_pretrained(str(output))


def test_refusals(tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^comparisons\.answers_min: 5 must be at least 2 and not exceed"):
        run(comparisons.STAGE, fields(tiny, answers_min=5), tmp_path / "one", policy=tiny.sft)
    (tmp_path / "bad.py").write_text("def rank(prompt, answers, rng):\n    return [1]\n", encoding="utf-8")
    options = fields(tiny, labelers={"function": f"{tmp_path / 'bad.py'}:rank"})
    with pytest.raises(UserError, match=r"^labeler .*bad\.py:rank: gave 1 ranks for \d answers$"):
        run(comparisons.STAGE, options, tmp_path / "two", policy=tiny.sft)
