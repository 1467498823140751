"""Stage `tokenizer`: what it saves, and its compression by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptlife.data.errors import UserError
from gptlife.stages import tokenizer


def test_output_is_plain_transformers(tiny: Any) -> None:
    loaded = AutoTokenizer.from_pretrained(str(tiny.tokenizer))
    assert (loaded.eos_token, loaded.eos_token_id) == ("<|endoftext|>", 0)
    assert (loaded.pad_token, loaded.pad_token_id) == ("<|pad|>", 1)
    text = "Zoë has a red hat;\n\tno, two 🎩!"
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert len(loaded("Anna has a")["input_ids"]) < len("Anna has a") // 2
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert loaded.apply_chat_template(chat, tokenize=False) == "<|user|>a<|assistant|>b<|endoftext|>"


def test_compression(tiny: Any, run: Any, tmp_path: Path) -> None:
    metrics = run(tokenizer.STAGE, {"data": str(tiny.text), "vocabulary": 261}, tmp_path / "bytes")
    assert metrics["vocabulary"] == 261
    assert metrics["bytes_per_token"] == 1.0  # no merges: every byte is a token
    metrics = run(tokenizer.STAGE, {"data": str(tiny.text), "vocabulary": 300}, tmp_path / "merged")
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "merged"))
    texts = [json.loads(line)["text"] for line in tiny.text.read_text(encoding="utf-8").splitlines()]
    n_tokens = sum(len(loaded(text)["input_ids"]) for text in texts)
    assert metrics["bytes_per_token"] == pytest.approx(sum(len(text.encode()) for text in texts) / n_tokens)


def test_sample_and_template(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text * 9}) + "\n" for text in ("ab", "cd")), encoding="utf-8")
    options = {"data": str(path), "vocabulary": 300, "sample_documents": 1, "chat_template": "{{ messages }}"}
    run(tokenizer.STAGE, options, tmp_path / "one")
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "one"))
    assert "ab" in loaded.get_vocab()
    assert "cd" not in loaded.get_vocab()
    assert loaded.chat_template == "{{ messages }}"


def test_too_small_a_vocabulary(tiny: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^tokenizer\.vocabulary: input should be .* 261, found 260$"):
        run(tokenizer.STAGE, {"data": str(tiny.text), "vocabulary": 260}, tmp_path / "one")
