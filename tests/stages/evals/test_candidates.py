"""Stage `evaluation` with any number of answerers: open inputs, ready answers, further prompts, an LLM as judge."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gptlife.data.errors import UserError
from gptlife.stages import evaluation
from gptlife.stages.evals import candidates, tables
from gptlife.stages.evals.candidates import Answerer


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    judge = {"function": f"{tiny.functions}:count_e"}
    return {"prompts": str(tiny.prompts), "judge": judge, "max_new_tokens": 8, "n_samples": 3, **changes}


def test_any_name_answers_and_base_ones_get_text(tiny: Any, run: Any, tmp_path: Path) -> None:
    inputs = {"base_other": tiny.pretrain, "sft": tiny.sft, "quick": tiny.sft, "reward": tiny.reward_model}
    options = fields(tiny, shots=str(tiny.conversations), n_shots=1, shot_format="{prompt} {answer}\n")
    metrics = run(evaluation.STAGE, options, tmp_path / "one", **inputs)
    assert list(metrics["models"]) == ["base_other", "base_other_prompted", "sft", "quick"]
    assert metrics["models"]["quick"]["score"] == metrics["models"]["sft"]["score"]  # the same weights, draws, judge
    assert metrics["models"]["sft"]["parameters"] == metrics["models"]["base_other"]["parameters"] > 10_000
    assert metrics["models"]["sft"]["reward"]["n"] == 24  # beside the function's score
    with pytest.raises(UserError, match=r"^evaluation\.inputs: nobody answers"):
        run(evaluation.STAGE, fields(tiny), tmp_path / "two", reward=tiny.reward_model)


def test_ready_answers_must_be_to_the_same_prompts(tiny: Any, run: Any, tmp_path: Path) -> None:
    ready = tmp_path / "best"
    ready.mkdir()
    rows = [json.loads(line) for line in tiny.prompts.read_text("utf-8").splitlines()]
    given = [{"messages": [{"role": "user", "content": row["prompt"]}], "best": "e" * i} for i, row in enumerate(rows)]
    (ready / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    metrics = run(evaluation.STAGE, fields(tiny), tmp_path / "one", sft=tiny.sft, best_of_n=ready)
    assert metrics["models"]["best_of_n"]["score"]["mean"] == pytest.approx(sum(range(24)) / 24)
    assert "best_of_n" not in metrics["tax"]
    (ready / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given[1:]), encoding="utf-8")
    with pytest.raises(UserError, match=r"its answers are to other prompts; give best_of_n the same `prompts`"):
        run(evaluation.STAGE, fields(tiny), tmp_path / "two", sft=tiny.sft, best_of_n=ready)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"baseline": "stf"}, "nobody here is called 'stf'; did you mean 'sft'?"),
        ({"baseline": "base_prompted"}, "nobody here is called 'base_prompted'; there are: base, sft"),
    ],
)
def test_a_baseline_that_nobody_is(more: dict[str, Any], said: str, run: Any, tiny: Any, tmp_path: Path) -> None:
    inputs = {"base": tiny.pretrain, "sft": tiny.sft}
    with pytest.raises(UserError) as error:
        run(evaluation.STAGE, fields(tiny, **more), tmp_path / "one", **inputs)
    assert str(error.value) == f"evaluation.baseline: {said}"


def test_further_prompts_are_scored_and_not_compared(run: Any, tiny: Any, tmp_path: Path) -> None:
    further = tmp_path / "further.jsonl"
    further.write_text("".join(json.dumps({"prompt": f"Who is {name}?"}) + "\n" for name in "ABCDE"), encoding="utf-8")
    inputs = {"base": tiny.pretrain, "sft": tiny.sft}
    metrics = run(evaluation.STAGE, fields(tiny, further_prompts={"five": str(further)}), tmp_path / "one", **inputs)
    assert {name: found["score"]["n"] for name, found in metrics["further"]["five"].items()} == {"base": 5, "sft": 5}
    assert {row["n"] for row in metrics["win_rates"]} == {24}
    with pytest.raises(UserError, match=r"^evaluation\.further_prompts: 'Five' is no name for a set"):
        run(evaluation.STAGE, fields(tiny, further_prompts={"Five": str(further)}), tmp_path / "two", sft=tiny.sft)


def test_verdicts_are_means_with_intervals() -> None:
    verdicts = [{"rude": 1.0, "true": 1.0}, {"rude": 0.0, "true": 1.0}]
    found = tables.described(Answerer({"prompts": ["one", "two words"]}), "prompts", [0.5, 1.0], verdicts)
    assert (found["words"], found["score"]["mean"]) == (1.5, 0.75)
    assert (found["verdicts"]["rude"]["mean"], found["verdicts"]["true"]["low"]) == (0.5, 1.0)


def test_honesty_is_a_mean_over_the_answers_that_have_it() -> None:
    verdicts = [
        {"score": 1.0, "truthful": 1.0, "truthful_informative": 1.0},
        {"score": 1.0, "truthful": 1.0, "truthful_informative": 0.0},
        {"score": 1.0, "truthful": 0.0, "truthful_informative": 0.0},
        {"score": 1.0, "hallucination": 1.0},
        {"score": 1.0, "hallucination": 0.0},
        {"score": 1.0},
    ]
    found = tables.honesty(verdicts)
    assert found["truthful"]["mean"] == pytest.approx(2 / 3)
    assert found["truthful_informative"]["mean"] == pytest.approx(1 / 3)
    assert found["hallucination"]["mean"] == 0.5
    assert tables.honesty([{"score": 1.0}]) == {}


def test_an_llm_is_asked_about_pairs_with_the_baseline_only() -> None:
    three = {name: Answerer({"prompts": ["one", "two words"]}) for name in ("a", "b", "c")}
    asked = []

    def prefer(a: str, b: str) -> list[float]:
        asked.append((a, b))
        return [1.0, 0.5]

    table = tables.win_rates(three, prefer, "b", only_baseline=True)
    assert asked == [("a", "b"), ("c", "b")]
    assert [row["rate"] for row in table] == [0.75, 0.75]
    asked.clear()
    tables.win_rates(three, prefer, "b", only_baseline=False)
    assert asked == [("b", "a"), ("c", "a"), ("c", "b"), ("a", "b")]


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A stub of an OpenAI-compatible server that prefers the answer with more letters e."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][1]["content"]
            shown = [re.search(rf"<answer-{i} (\w+)>\n(.*?)\n</answer-{i} \1>", text, re.DOTALL) for i in (1, 2)]
            first, second = (match[2].count("e") if match else -1 for match in shown)
            verdict = "1" if first > second else "2" if second > first else "tie"
            reply = {
                "choices": [{"message": {"content": f"Counted.\nVerdict: {verdict}"}}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2},
            }
            payload = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_llm_judges_as_the_same_rule_in_a_function_does(tiny: Any, run: Any, tmp_path: Path, endpoint: str) -> None:
    inputs = {"base": tiny.pretrain, "sft": tiny.sft}
    llm = {"llm": {"endpoint": endpoint, "model": "stub", "prompt_price": 1.0, "completion_price": 2.0}}
    by_llm = run(evaluation.STAGE, fields(tiny, judge=llm), tmp_path / "llm", **inputs)
    by_function = run(evaluation.STAGE, fields(tiny), tmp_path / "function", **inputs)
    row = next(row for row in by_function["win_rates"] if (row["a"], row["b"]) == ("base", "sft"))
    assert by_llm["win_rates"] == [row]
    assert "score" not in by_llm["models"]["sft"]
    usage = by_llm["judging"]
    assert usage["calls"] == 2 * (usage["pairs"] - usage["identical"]) > 0
    assert usage["cost"] == pytest.approx(usage["calls"] * (10 * 1.0 + 2 * 2.0) / 1e6)
    assert by_llm["judge"] == "the language model stub"
    json.dumps(by_llm, allow_nan=False)


def test_names_of_base_models() -> None:
    assert [candidates.is_base(name) for name in ("base", "base_large", "baseline", "sft")] == [
        True,
        True,
        False,
        False,
    ]
