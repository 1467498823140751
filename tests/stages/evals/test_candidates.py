"""Candidates: how base models are asked, which inputs are base models, and what an answer that ended is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.data.tokens import Encoded
from gptlife.stages import evaluation
from gptlife.stages.evals import candidates
from gptlife.stages.evals.candidates import Answers, Continuation
from gptlife.stages.generation.sampler import Answer
from gptlife.stages.runtime import artifact


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


def test_a_base_model_gets_text(tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Encoded]] = []

    def caught(model: Any, prompts: list[Encoded], **_: Any) -> list[Answer]:
        asked.append(prompts)
        return [Answer(tokenizer("One.\nTwo")["input_ids"], [], False) for _ in prompts]

    tokenizer = AutoTokenizer.from_pretrained(str(tiny.pretrain))
    monkeypatch.setattr(candidates, "sample", caught)
    load_causal = candidates.loading.load_causal

    def roomy(path: Path, *rest: Any) -> Any:
        model = load_causal(path, *rest)
        model.config.n_positions = 1000
        return model

    monkeypatch.setattr(candidates.loading, "load_causal", roomy)
    options = fields(tiny, shots=str(tiny.conversations), n_shots=2, max_new_tokens=4)
    metrics = run(evaluation.STAGE, options, tmp_path / "one", base=tiny.pretrain)
    shown = [json.loads(line) for line in tiny.conversations.read_text("utf-8").splitlines()[:2]]
    prompted = "".join(f"Question: {row['prompt']}\nAnswer: {row['completion']}\n\n" for row in shown)
    question = json.loads(tiny.prompts.read_text("utf-8").splitlines()[0])["prompt"]
    texts = [tokenizer.decode(batch[0].tokens) for batch in asked]
    assert texts == [f"{question}\n", f"{prompted}Question: {question}\nAnswer:"]
    assert metrics["samples"][0]["answers"] == {"base": "One.", "base_prompted": "One."}  # up to the first stop string


def test_an_answer_that_a_stop_string_ends_is_finished() -> None:
    way = Continuation("{prompt}\n", ["\n", "END"])
    cut = way.cut(Answers([" a \n b", "a END", "a b", "a b ", ""], [False, False, False, True, False]))
    assert cut.texts == ["a", "a", "a b", "a b", ""]
    assert cut.finished == [True, True, False, True, False]


def test_formats_may_have_braces_in_what_they_are_given() -> None:
    ways = candidates.continuations("{prompt}", [], [[{"content": "{x}"}, {"content": "{y}"}]], "{prompt}: {answer}; ")
    assert ways["_prompted"].text([{"role": "user", "content": "{z}"}]) == "{x}: {y}; {z}:"


@pytest.mark.parametrize(
    ("name", "manifest", "base"),
    [
        ("base", None, True),  # from elsewhere
        ("base_large", None, True),
        ("baseline", None, False),
        ("sft", None, False),
        ("base_large", {"stage": "pretrain_large", "adopted": "hub@1"}, True),
        ("large", {"stage": "pretrain", "adopted": "hub@1"}, False),
        ("large", {"stage": "pretrain"}, True),  # made before manifests had families
        ("base", {"stage": "sft"}, False),
        ("large", {"stage": "continued", "family": "base"}, True),
        ("base", {"stage": "grpo", "family": "online"}, False),
    ],
)
def test_which_inputs_are_base_models(name: str, manifest: dict[str, Any] | None, base: bool, tmp_path: Path) -> None:
    path = tmp_path / "output"
    if manifest is None:
        path.mkdir()
    else:
        artifact.begin(path, {})
        artifact.commit(tmp_path / "output.partial", path, manifest)
    assert candidates.continues_text(name, path) is base


def test_a_recipe_may_say_which_are_base_models(tiny: Any, run: Any, tmp_path: Path) -> None:
    inputs = {"base": tiny.sft, "raw": tiny.pretrain}
    shots = {"shots": str(tiny.conversations), "n_shots": 1, "shot_format": "{prompt} {answer}\n"}
    metrics = run(evaluation.STAGE, fields(tiny, continuations=["raw"], **shots), tmp_path / "one", **inputs)
    assert list(metrics["models"]) == ["base", "raw", "raw_prompted"]
    with pytest.raises(UserError, match=r"^evaluation\.continuations: no input is called 'row'; did you mean 'raw'"):
        run(evaluation.STAGE, fields(tiny, continuations=["row"]), tmp_path / "two", **inputs)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "evaluation.prompts: a prompt has over 4 tokens, all that max_new_tokens 60 leaves of the base model's "
             "context; shorten it or lower max_new_tokens"),
        ({"max_new_tokens": 8}, "evaluation.n_shots: a prompt with 9 worked examples has over 56 tokens, all that "
                                "max_new_tokens 8 leaves of the base model's context; show fewer"),
    ],
)  # fmt: skip
def test_a_base_prompt_that_does_not_fit(tiny: Any, run: Any, tmp_path: Path, more: dict[str, Any], said: str) -> None:
    options = {**fields(tiny, shots=str(tiny.conversations), n_shots=9, max_new_tokens=60), **more}
    with pytest.raises(UserError) as error:
        run(evaluation.STAGE, options, tmp_path / "one", base=tiny.pretrain)
    assert str(error.value) == said


def test_a_candidate_is_loaded_once(tiny: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load_causal = candidates.loading.load_causal

    def counted(path: Path, *rest: Any) -> Any:
        loads.append(path.name)
        return load_causal(path, *rest)

    monkeypatch.setattr(candidates.loading, "load_causal", counted)
    shots = {"shots": str(tiny.conversations), "n_shots": 1, "shot_format": "{prompt} {answer}\n"}
    options = fields(tiny, validation=str(tiny.held_out), **shots)
    run(evaluation.STAGE, options, tmp_path / "one", base=tiny.pretrain, sft=tiny.sft)
    assert loads == ["pretrain", "sft"]
