"""Stage `best_of_n`: what it writes against subsets counted one by one and scores by plain transformers; resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded, encode_answer, encode_prompt
from gptlife.stages import best_of_n
from gptlife.stages.generation import chunks

N, SIZES = 8, [1, 2, 3, 4, 5, 8]
LLM = {"endpoint": "http://localhost:1/v1", "model": "none"}


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    judge = {"function": f"{tiny.functions}:count_e"}
    return {
        "prompts": str(tiny.prompts), "samples": N, "ns": SIZES, "answer_n": 3, "judge": judge, "max_new_tokens": 8,
        **changes,
    }  # fmt: skip


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def negated(path: Path, output: Path) -> Path:
    """The reward model at `path` with every score's sign changed."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(str(path))
    model.score.weight.data.neg_()
    model.save_pretrained(str(output))
    AutoTokenizer.from_pretrained(str(path)).save_pretrained(str(output))
    return output


@pytest.fixture(scope="module")
def done(tiny: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("best_of_n")
    other = negated(tiny.reward_model, folder / "other")
    inputs = {"policy": tiny.sft, "reward": tiny.reward_model, "other": other}
    return folder / "one", run(best_of_n.STAGE, fields(tiny), folder / "one", **inputs)


def test_the_written_rows(tiny: Any, done: tuple[Path, dict[str, Any]]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny.reward_model))
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny.reward_model)).eval()

    rows = rows_of(done[0])
    asked = [json.loads(line)["prompt"] for line in tiny.prompts.read_text(encoding="utf-8").splitlines()]
    assert [row["messages"] for row in rows] == [[{"role": "user", "content": text}] for text in asked]
    assert {len(row[name]) for row in rows for name in ("answers", "finished", "gold")} == {N}
    assert len({answer for row in rows for answer in row["answers"]}) > 50
    for row in rows:
        first = row["scores"]["reward"][:3]
        assert row["best"] == row["answers"][first.index(max(first))]
        assert row["gold"] == [text.count("e") for text in row["answers"]]
        assert row["scores"]["other"] == pytest.approx([-score for score in row["scores"]["reward"]], abs=1e-5)
    assert any(row["scores"]["reward"].index(max(row["scores"]["reward"])) >= 3 for row in rows)
    assert {True, False} == {ended for row in rows for ended in row["finished"]}
    for row in rows[:4]:
        for text, ended, score in zip(row["answers"], row["finished"], row["scores"]["reward"], strict=True):
            tokens = encode_prompt(tokenizer, row["messages"]).followed_by(encode_answer(tokenizer, text, ended)).tokens
            with torch.no_grad():
                assert float(model(torch.tensor([tokens])).logits) == pytest.approx(score, abs=1e-4)


def test_curves_are_those_of_all_subsets(done: tuple[Path, dict[str, Any]]) -> None:
    rows, curves = rows_of(done[0]), done[1]["curves"]
    assert list(curves) == ["reward", "other"]
    for name, curve in curves.items():
        assert [point["n"] for point in curve] == SIZES
        for point in curve:
            means = {"proxy": 0.0, "gold": 0.0, "win_rate": 0.0}
            for row in rows:
                scores, gold = row["scores"][name], row["gold"]
                subsets = list(combinations(range(N), point["n"]))
                for subset in subsets:
                    top = max(scores[i] for i in subset)
                    best = [i for i in subset if scores[i] == top]
                    share = 1 / len(best) / len(subsets) / len(rows)
                    means["proxy"] += share * len(best) * top
                    means["gold"] += share * sum(gold[i] for i in best)
                    wins = [(gold[i] > other) + 0.5 * (gold[i] == other) for i in best for other in gold]
                    means["win_rate"] += share * sum(wins) / N
            for key, mean in means.items():
                assert point[key]["mean"] == pytest.approx(mean, abs=1e-9)
                assert point[key]["low"] <= mean <= point[key]["high"]
                assert point[key]["n"] == len(rows)
        proxies = [point["proxy"]["mean"] for point in curve]
        assert all(low < high for low, high in pairwise(proxies))
        assert (curve[0]["kl"], curve[0]["d"], curve[0]["win_rate"]["mean"]) == (0, 0, pytest.approx(0.5))
        assert curve[3]["kl"] == pytest.approx(0.636, abs=1e-3)  # log 4 - 3/4
    # Both choose among the same answers: they part as n grows.
    first, last = ([curves[name][place]["gold"]["mean"] for name in ("reward", "other")] for place in (0, -1))
    assert first[0] == pytest.approx(first[1])
    assert last[0] != pytest.approx(last[1], abs=0.05)


def test_fits_are_of_the_recentred_curve(done: tuple[Path, dict[str, Any]]) -> None:
    import numpy as np

    curve, fits = done[1]["curves"]["reward"], done[1]["fits"]["reward"]
    d = np.array([point["d"] for point in curve[1:]])
    for name in ("proxy", "gold"):
        gain = np.array([point[name]["mean"] - curve[0][name]["mean"] for point in curve[1:]])
        for form, bend in (("best_of_n", d * d), ("rl", d * np.log(d))):
            found = np.linalg.lstsq(np.stack([d, -bend], 1), gain, rcond=None)[0]
            assert (fits[name][form]["alpha"], fits[name][form]["beta"]) == pytest.approx(tuple(found))
            assert fits[name][form]["alpha_error"] > 0
    assert fits["predicted"]["n_fit"] == 3
    assert fits["predicted"]["n"] == 5
    assert fits["proxy"]["best_of_n"]["r2"] > 0.9
    json.dumps(done[1], allow_nan=False)


def test_the_report_reads_its_fits_and_predicted_peak(done: tuple[Path, dict[str, Any]]) -> None:
    """The report was first drawn from made-up metrics, of another shape."""
    from types import SimpleNamespace

    from gptlife.pipelines.report.sections.overoptimisation import curves

    metrics = done[1]
    record: Any = SimpleNamespace(metrics=metrics, name="best_of_n", upstream=lambda name: name)
    found = {curve.reward: curve for curve in curves([record], [])}
    assert set(found) == {"reward", "other"}
    for name, curve in found.items():
        assert curve.fit["alpha"] == metrics["fits"][name]["gold"]["best_of_n"]["alpha"]
        assert curve.predicted["found_d"] == metrics["fits"][name]["predicted"]["found_d"]


def test_goes_on_where_it_was_interrupted(
    tiny: Any, run: Any, done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_answers, made = chunks.sample_answers, []

    def counted(*args: Any, **options: Any) -> Any:
        made.append(min(args[4]))
        found = sample_answers(*args, **options)
        if len(made) == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(chunks, "sample_answers", counted)
    options, inputs = fields(tiny, chunk=5, generation_batch_size=7), {"policy": tiny.sft, "reward": tiny.reward_model}
    inputs["other"] = done[0].parent / "other"
    with pytest.raises(KeyboardInterrupt):
        run(best_of_n.STAGE, options, tmp_path / "two", **inputs)
    assert not (tmp_path / "two" / "answers.jsonl").exists()
    metrics = run(best_of_n.STAGE, options, tmp_path / "two", **inputs)
    assert made == [0, 5, 10, 10, 15, 20]
    assert (tmp_path / "two" / "answers.jsonl").read_bytes() == (done[0] / "answers.jsonl").read_bytes()
    assert metrics | {"seconds": 0} == done[1] | {"seconds": 0}
    other_seed = run(best_of_n.STAGE, {**options, "seed": 1}, tmp_path / "three", **inputs)
    assert other_seed["curves"] != metrics["curves"]


def test_an_ensemble_chooses_by_its_rule(tiny: Any, run: Any, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(tiny.reward_model, tmp_path / "ensemble")
    negated(tiny.reward_model, tmp_path / "ensemble" / "members" / "1")
    inputs = {"policy": tiny.sft, "reward": tmp_path / "ensemble"}
    options = fields(tiny, ensemble={"rule": "worst"}, judge=None, ns=[1, 4])
    metrics = run(best_of_n.STAGE, options, tmp_path / "one", **inputs)
    for row in rows_of(tmp_path / "one"):
        assert row["scores"].keys() == {"reward", "reward.1"}
        assert row["scores"]["reward"] == pytest.approx([-abs(s) for s in row["scores"]["reward.1"]], abs=1e-5)
        assert "gold" not in row
    assert metrics["fits"] == {"reward": None, "reward.1": None}  # one point is too few
    assert metrics["curves"]["reward"][1].keys() == {"n", "kl", "d", "proxy"}


def test_a_held_out_reward_model_as_judge(
    tiny: Any, run: Any, done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    inputs = {"policy": tiny.sft, "reward": tiny.reward_model, "gold": done[0].parent / "other"}
    metrics = run(best_of_n.STAGE, fields(tiny, judge={"reward_model": True}), tmp_path / "one", **inputs)
    assert metrics["curves"].keys() == {"reward"}
    for row in rows_of(tmp_path / "one"):
        assert row["gold"] == pytest.approx([-score for score in row["scores"]["reward"]], abs=1e-5)
    del inputs["gold"]
    for judge, text in (
        ({"function": "nowhere.py:f"}, "'nowhere.py:f' can't be loaded"),
        ({"llm": LLM}, "gives no scores"),
    ):
        with pytest.raises(UserError, match=text):
            run(best_of_n.STAGE, fields(tiny, judge=judge), tmp_path / "two", **inputs)
    assert not list((tmp_path / "two").iterdir())  # before anything was sampled
    with pytest.raises(UserError, match=r"^best_of_n\.judge: reward_model needs the input `gold`"):
        run(best_of_n.STAGE, fields(tiny, judge={"reward_model": True}), tmp_path / "two", **inputs)


def test_an_answer_too_long_for_the_reward_model_is_cut_and_a_prompt_refused(
    tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptlife.stages.evals.reward import RewardModel
    from gptlife.stages.modeling.loading import load_tokenizer

    tokenizer = load_tokenizer(tiny.reward_model)
    prompts = [json.loads(line)["prompt"] for line in tiny.prompts.read_text(encoding="utf-8").splitlines()]
    rows = [
        {"messages": [{"role": "user", "content": text}], "answers": ["xyzw" * 3, *"x" * 7], "finished": [True] * N}
        for text in prompts
    ]
    monkeypatch.setattr(best_of_n, "_sample_all", lambda *_: rows)
    opened, member_scores, read = RewardModel.__init__, RewardModel.member_scores, list[list[int]]()

    def with_context(limit: int, output: Path) -> None:
        def short(self: RewardModel, *rest: Any) -> None:
            opened(self, *rest)
            self.limit = limit

        monkeypatch.setattr(RewardModel, "__init__", short)
        run(best_of_n.STAGE, fields(tiny), output, policy=tiny.sft, reward=tiny.reward_model)

    def seen(self: RewardModel, rows: list[Encoded]) -> Any:
        read.extend(row.tokens for row in rows)
        return member_scores(self, rows)

    monkeypatch.setattr(RewardModel, "member_scores", seen)
    longest = max(len(encode_prompt(tokenizer, row["messages"])) for row in rows)
    with_context(longest + 2, tmp_path / "one")
    prompt = encode_prompt(tokenizer, rows[0]["messages"]).tokens
    assert max(map(len, read)) == longest + 2
    assert read[0] == (prompt + encode_answer(tokenizer, "xyzw" * 3, True))[: longest + 2]
    assert read[1] == [*prompt, *encode_answer(tokenizer, "x", True)]
    with pytest.raises(UserError) as error:
        with_context(len(prompt), tmp_path / "two")
    n = len(prompt)
    said = f"best_of_n.inputs.reward: prompt 1 has {n} tokens, the limit is {n}; shorten it so that an answer fits"
    assert str(error.value) == said


def test_sizes() -> None:
    def config(**changes: Any) -> best_of_n.BestOfNConfig:
        return decode(best_of_n.BestOfNConfig, {"prompts": "prompts.jsonl", **changes}, "best_of_n")

    assert config().sizes() == [1, 2, 4, 8, 16, 32, 64]
    assert config(samples=24).sizes() == [1, 2, 4, 8, 16, 24]
    assert config(samples=24, ns=[1, 5]).sizes() == [1, 5]
    for changes, text in (
        ({"samples": 8}, r"^best_of_n\.answer_n: 16 is more than samples \(8\); lower it"),
        ({"ns": [1, 65]}, r"ns: \[1, 65\] does not rise from 1 to at most samples \(64\)"),
        ({"ns": [2, 4]}, "ns: .* does not rise from 1"),
        ({"ns": [1, 4, 2]}, "ns: .* does not rise from 1"),
        ({"ns": [1, 1]}, "ns: .* does not rise from 1"),
        ({"ns": []}, "ns: .* does not rise from 1"),
        ({"samples": 1001}, r"^best_of_n\.samples: "),
    ):
        with pytest.raises(UserError, match=text):
            config(**changes)


@pytest.mark.slow
def test_two_processes(tiny: Any, done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    table = {"device": "cpu", "track": [], "processes": 2, **fields(tiny, chunk=7), "output": str(tmp_path / "two")}
    inputs = {"policy": tiny.sft, "reward": tiny.reward_model, "other": done[0].parent / "other"}
    table["inputs"] = {name: str(path) for name, path in inputs.items()}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
               "gptlife.stages.best_of_n", "--config", str(tmp_path / "stage.yaml")]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "two" / "answers.jsonl").read_bytes() == (done[0] / "answers.jsonl").read_bytes()
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics | {"seconds": 0} == done[1] | {"seconds": 0}
