"""Documents as rows of a run: `token_stream` joins them, `PackedRows` reads them, as pretraining and PPO-ptx do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlife.data.errors import UserError
from gptlife.data.sources import Source
from gptlife.data.tokens import SMALLEST_VOCABULARY, Encoded, encode_text, train_tokenizer
from gptlife.stages.training.lm import PackedRows
from gptlife.stages.training.token_stream import token_stream

# Bytes and special tokens only, so a text has as many tokens as bytes.
TOKENIZER = train_tokenizer(["x"], vocab_size=SMALLEST_VOCABULARY, model_max_length=8)
END = TOKENIZER.eos_token_id
ACCELERATOR = Accelerator(cpu=True)
DOCUMENTS = st.lists(st.text(alphabet="abcü", min_size=1, max_size=9), min_size=1, max_size=8)


def rows_of(documents: list[str], folder: Path, row_length: int) -> tuple[PackedRows, int]:
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    stream, n_bytes = token_stream([Source(path=str(file))], "x", TOKENIZER, folder, ACCELERATOR)
    return PackedRows(stream, row_length), n_bytes


def test_documents_by_hand(tmp_path: Path) -> None:
    a, b, c, d, e = (encode_text(TOKENIZER, letter)[0] for letter in "abcde")
    rows, n_bytes = rows_of(["abc", "d", "e"], tmp_path, 3)
    # a b c | d | e with an end after each: 8 tokens, 7 targets in rows of 3, 3 and 1; rows share a token.
    assert [rows.row(index) for index in range(len(rows))] == [
        Encoded([a, b, c, END], [False, True, True, True]),
        Encoded([END, d, END, e], [False, True, True, True]),
        Encoded([e, END], [False, True]),
    ]
    assert n_bytes == 5


@settings(max_examples=40, deadline=None)
@given(documents=DOCUMENTS, row_length=st.integers(1, 9))
def test_no_token_is_lost_or_moved(
    documents: list[str], row_length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows, n_bytes = rows_of(documents, tmp_path_factory.mktemp("stream"), row_length)
    tokens = [token for text in documents for token in [*encode_text(TOKENIZER, text), END]]
    read = [rows.row(index).tokens for index in range(len(rows))]
    assert [token for row in read for token in row[1:]] == tokens[1:]
    assert [row[0] for row in read] == tokens[:-1:row_length]
    assert {len(row) for row in read[:-1]} <= {row_length + 1}
    assert n_bytes == sum(len(text.encode()) for text in documents)


def test_text_without_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text\.jsonl: the file is empty"):
        rows_of([], tmp_path, 4)
