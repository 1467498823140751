"""Model cards: what they say of a manifest written by hand, and that the code on them runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from gptlife.stages.runtime.card import About, Family, write_card

SOURCE: dict[str, Any] = {"fields": None, "start": 0, "limit": None, "weight": 1.0, "bad_rows": "refuse"}
MANIFEST: dict[str, Any] = {
    "stage": "sft",
    "address": "sft-0123456789ab",
    "inputs": {"base": "pretrain-ba9876543210"},
    "commit": "feedbeef",
    "versions": {"python": "3.11.7", "torch": "9.8.7"},
    "identity": {
        "config": {
            "learning_rate": 0.5,
            "data": [
                {**SOURCE, "village": {"part": "demonstrations", "split": "train", "count": 600, "seed": 3}},
                {**SOURCE, "hub": ["org/chat", "abc123", None, "train"], "start": 5, "limit": 20, "weight": 0.5},
            ],
            "pretraining": [{**SOURCE, "files": [[".txt", "c0ffee" * 10 + "beef"]]}],
        }
    },
}
ABOUT = About("sft", "chat", "A language model fine-tuned on demonstrations.")


def card(
    folder: Path, metrics: dict[str, Any] | None = None, about: About = ABOUT, **changes: Any
) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    write_card(folder, about, {**MANIFEST, **changes}, metrics or {})
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def code_of(text: str) -> str:
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_front_matter_names_library_task_and_tags(tmp_path):
    front, _ = card(tmp_path)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gptlife", "sft"],
    }
    front, _ = card(tmp_path, about=About("reward_model", "reward", "A scorer."))
    assert front["pipeline_tag"] == "text-classification"
    front, _ = card(tmp_path, about=About("tokenizer", "tokenizer", "A BPE."))
    assert front == {"library_name": "transformers", "tags": ["gptlife", "tokenizer"]}
    front, _ = card(tmp_path, about=About("comparisons", "rankings", "Rankings."))
    assert front == {"tags": ["gptlife", "comparisons"]}


def test_lineage_and_data(tmp_path):
    _, text = card(tmp_path)
    assert "- address: `sft-0123456789ab`\n- base: `pretrain-ba9876543210`\n" in text
    assert "commit of gptlife: `feedbeef`" in text
    assert "torch 9.8.7" in text
    assert "- `data`: the Village's demonstrations (split train, count 600, seed 3)\n" in text
    assert "- `data`: `org/chat` at `abc123`, split train; rows from 6 to 25; weight 0.5\n" in text
    assert "- `pretraining`: files of sha256 `c0ffeec0ffeec0ff`\n" in text
    assert "learning_rate" not in text


def test_a_manifest_without_data_or_inputs(tmp_path):
    _, text = card(tmp_path, inputs={}, identity=None, commit=None)
    assert "None besides its inputs." in text
    assert "commit" not in text


def test_metrics_are_a_table_of_what_is_a_number(tmp_path):
    metrics = {
        "validation_loss": 1.23456789,
        "tokens": 3000000,
        "broken": float("nan"),
        "algorithm": "PPO-ptx",
        "peak_gpu_memory_mb": None,
        "flag": True,
        "calibration": {"ece": 0.0421, "counts": [1, 2]},
        "win_rates": [{"a": "ppo", "b": "sft", "rate": 0.712, "low": 0.67, "high": 0.751}],
    }
    _, text = card(tmp_path, metrics)
    assert "| validation_loss | 1.23457 |\n| tokens | 3e+06 |\n| calibration error | 0.0421 |\n" in text
    assert "| ppo | sft | 71.2% | 67.0% to 75.1% |" in text
    for absent in ("nan", "flag", "None", "counts"):
        assert absent not in text


@pytest.mark.parametrize("family", get_args(Family))
def test_a_new_stage_needs_its_family_and_a_sentence(tmp_path, family):
    _, text = card(tmp_path, {"algorithm": "PPO-ptx", "loss": 0.5}, about=About("distill", family, "Said by it."))
    assert re.search(r"\n# distill: (a|an|ranked|sampled) [a-z -]+\n\nSaid by it\.", text)
    assert "| loss | 0.5 |" in text
    compile(code_of(text), family, "exec")
    assert ("## Limits" in text) == (family in ("base", "chat", "online", "preference", "reward"))
    assert ("The algorithm was PPO-ptx." in text) == (family == "online")
    assert ("the score is read there" in text) == (family == "reward")
    assert "{%" not in text
    assert "\n\n\n" not in text
    auto = {"reward": "AutoModelForSequenceClassification", "tokenizer": "AutoTokenizer"}
    if family in ("base", "chat", "online", "preference", *auto):
        assert f"{auto.get(family, 'AutoModelForCausalLM')}.from_pretrained" in text
    else:
        assert ("answers.jsonl" in text) == (family != "rankings")
        assert ("train.jsonl" in text) == (family == "rankings")


def test_a_card_is_written_over_whole(tmp_path):
    card(tmp_path)
    card(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models of a few thousand random weights, one a kind."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    from gptlife.data.tokens import train_tokenizer

    torch.manual_seed(0)
    text = ["Tell me a story. No. Once upon a time there was a goat."] * 50
    tokenizer = train_tokenizer(text, 300, 200)
    special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=200,
        pad_token_id=tokenizer.pad_token_id, num_labels=1, **special,
    )  # fmt: skip
    kinds = {"pretrain": GPT2LMHeadModel, "sft": GPT2LMHeadModel, "reward_model": GPT2ForSequenceClassification}
    folders = {}
    for kind, model in kinds.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        model(config).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


@pytest.mark.parametrize(("stage", "family"), [("pretrain", "base"), ("sft", "chat"), ("reward_model", "reward")])
def test_the_code_on_a_card_runs(checkpoints, stage, family, monkeypatch):
    _, text = card(checkpoints[stage], about=About(stage, family, "A model."))
    monkeypatch.chdir(checkpoints[stage])
    names: dict[str, Any] = {}
    exec(code_of(text), names)
    if stage == "sft":
        asked = names["tokenizer"].decode(names["inputs"]["input_ids"][0])
        assert asked == "<|user|>Tell me a story.<|assistant|>"
    if stage == "reward_model":
        # The same score as PPO reads: at the end-of-text of the conversation.
        from gptlife.data.tokens import encode_answer, encode_prompt
        from gptlife.stages.modeling.forward import SelectedScores
        from gptlife.stages.modeling.scorer import score

        tokenizer, (asked, answered) = names["tokenizer"], names["messages"]
        prompt = encode_prompt(tokenizer, [asked])
        rows = [prompt.followed_by(encode_answer(tokenizer, answered["content"], ended)) for ended in (True, False)]
        expected, cut = score(SelectedScores(names["model"]), rows).tolist()
        assert names["score"] == pytest.approx(expected, abs=1e-6)
        assert names["score"] != pytest.approx(cut, abs=1e-6)
