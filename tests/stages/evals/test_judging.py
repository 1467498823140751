"""Judging: an LLM, a reward model, verdicts that are not defined everywhere."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages import evaluation


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    judge = {"function": f"{tiny.functions}:count_e"}
    return {"prompts": str(tiny.prompts), "judge": judge, "max_new_tokens": 8, "n_samples": 3, **changes}


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


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


def test_the_reward_model_judges(tiny: Any, run: Any, tmp_path: Path) -> None:
    options = fields(tiny, judge={"reward_model": True}, max_new_tokens=4)
    metrics = run(evaluation.STAGE, options, tmp_path / "one", sft=tiny.sft, reward=tiny.reward_model)
    assert metrics["judge"] == "a reward model that no candidate learnt from"
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.reward_model))
    model = AutoModelForSequenceClassification.from_pretrained(str(tiny.reward_model)).eval()
    for row in rows_of(tmp_path / "one"):
        ids = [3, *tokenizer(row["messages"][0]["content"])["input_ids"], 4]
        given = row["answers"]["sft"]
        ids += [*tokenizer(given["text"])["input_ids"], *([0] if given["finished"] else [])]
        with torch.no_grad():
            score = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        assert given["score"] == pytest.approx(score, abs=1e-5)
    with pytest.raises(UserError, match=r"^evaluation\.judge: reward_model needs the input `reward`"):
        run(evaluation.STAGE, options, tmp_path / "two", sft=tiny.sft)


JUDGE = '''
def judge(prompts, answers):
    """Says whether what Anna has is true, and of all else only how long it is."""
    verdicts = []
    for prompt, answer in zip(prompts, answers):
        verdict = {"score": float(len(answer)), "long": float(len(answer) > 10)}
        if "Anna" in prompt["messages"][-1]["content"]:
            verdict["truthful"] = 1.0
        verdicts.append(verdict)
    return verdicts
'''


def test_verdicts_and_groups_are_the_judges_and_the_prompts(tiny: Any, run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(JUDGE, encoding="utf-8")
    prompts = [json.loads(line)["prompt"] for line in tiny.prompts.read_text("utf-8").splitlines()]
    rows = [{"prompt": text, "meta": {"verb": text.removesuffix("?").split()[-1]}} for text in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judge = {"function": f"{tmp_path / 'mine.py'}:judge"}
    options = {"prompts": str(tmp_path / "prompts.jsonl"), "judge": judge, "max_new_tokens": 8, "group_by": "verb"}
    metrics = run(evaluation.STAGE, options, tmp_path / "one", sft=tiny.sft)
    lengths = [len(row["answers"]["sft"]["text"]) for row in rows_of(tmp_path / "one")]
    verdicts = metrics["models"]["sft"]["verdicts"]
    assert {name: mean["n"] for name, mean in verdicts.items()} == {"score": 24, "long": 24}
    assert verdicts["long"]["mean"] == pytest.approx(sum(length > 10 for length in lengths) / 24)
    assert {name: (mean["mean"], mean["n"]) for name, mean in metrics["honesty"]["sft"].items()} == {
        "truthful": (1.0, 3)
    }
    groups = metrics["use_cases"]
    assert {name: group["prompts"] for name, group in groups.items()} == {"have": 8, "see": 8, "want": 8}
    assert groups["see"]["sft"] == pytest.approx(sum(lengths[1::3]) / 8)
    plain = run(evaluation.STAGE, {**options, "group_by": "use_case"}, tmp_path / "two", sft=tiny.sft)
    assert "use_cases" not in plain
