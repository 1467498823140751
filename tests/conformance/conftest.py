"""What the conformance tests share: the oracles on the import path, and tiny random models made without our stages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tools" / "conformance")]  # oracles.py, make_vectors.py, ...

LETTERS = "abcdefgh"
PROMPTS = ("a", "bad", "cab", "deaf", "fade", "head", "beg", "hag", "ace", "dab", "egg", "fee")


class World(NamedTuple):
    """A policy and a reward model far from uniform and alike in nothing but their tokenizer, with data in letters."""

    folder: Path
    policy: Path
    reward: Path
    prompts: Path
    demonstrations: Path
    pairs: Path
    text: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Five special tokens and eight letters (so an answer ends soon), GPT-2 of 2 layers and width 16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("conformance")
    # Untied: with tied embeddings a random model says its last token again.
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    ids = {"vocab_size": 13, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "num_labels": 1,
           "tie_word_embeddings": False}  # fmt: skip
    for seed, (name, kind) in enumerate(
        (("policy", AutoModelForCausalLM), ("reward", AutoModelForSequenceClassification))
    ):
        torch.manual_seed(seed)
        # Dropout stays at GPT-2's 0.1 in the files: code that forgets to turn it off shows.
        model = kind.from_config(AutoConfig.for_model("gpt2", **sizes, **ids))
        model.save_pretrained(str(folder / name))
        letters().save_pretrained(str(folder / name))
    rows = {
        "prompts": [{"prompt": text} for text in PROMPTS],
        "demonstrations": [{"prompt": text, "completion": text[::-1]} for text in PROMPTS],
        "pairs": [{"prompt": text, "chosen": text + "h", "rejected": "a" + text} for text in PROMPTS],
        "text": [{"text": (LETTERS * 4)[::-1]}],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return World(folder, folder / "policy", folder / "reward", *(folder / f"{name}.jsonl" for name in rows))


def letters() -> Any:
    """A tokenizer with one token per letter: end 0, pad 1, system 2, user 3, assistant 4, letters from 5."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from gptlife.data.tokens import ASSISTANT, CHAT_TEMPLATE, END, PAD, SPECIALS, SYSTEM, USER

    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *LETTERS])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], list[dict[str, Any]]]:
    """`vectors(detail)`: the committed vectors of one detail."""
    content = json.loads(Path(__file__).with_name("vectors.json").read_text(encoding="utf-8"))

    def of(detail: str) -> list[dict[str, Any]]:
        found = [vector for vector in content["vectors"] if vector["detail"] == detail]
        assert found, detail
        return found

    return of


@pytest.fixture(scope="session")
def scorer() -> Any:
    """A random scalar-head GPT-2 without dropout, in float64."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(5)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=1, initializer_range=0.3,
        pad_token_id=1, eos_token_id=0, bos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval().double()
