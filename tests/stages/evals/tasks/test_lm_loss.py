"""Task `lm_loss` against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlife.stages import evaluation
from gptlife.stages.runtime.artifact import CHECKPOINTS


def fields(tiny: Any, **changes: Any) -> dict[str, Any]:
    judge = {"function": f"{tiny.functions}:count_e"}
    return {"prompts": str(tiny.prompts), "judge": judge, "max_new_tokens": 8, "n_samples": 3, **changes}


@torch.no_grad()
def loss_of(path: Path, tiny: Any) -> float:
    """Mean loss of the held-out text in rows of 32 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    texts = [json.loads(line)["text"] for line in tiny.held_out.read_text("utf-8").splitlines()]
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    model, nats = AutoModelForCausalLM.from_pretrained(str(path)), 0.0
    for start in range(0, len(stream) - 1, 32):
        ids = torch.tensor([stream[start : start + 33]])
        nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    return nats / (len(stream) - 1)


def test_the_loss_before_and_after_alignment(tiny: Any, run: Any, tmp_path: Path) -> None:
    options = fields(tiny, validation=str(tiny.held_out), validation_length=32)
    tax = run(evaluation.STAGE, options, tmp_path / "one", base=tiny.pretrain, sft=tiny.sft)["tax"]
    losses = {name: table["validation_loss"] for name, table in tax.items()}
    assert losses == {
        "base": pytest.approx(loss_of(tiny.pretrain, tiny), abs=1e-5),
        "sft": pytest.approx(loss_of(tiny.sft, tiny), abs=1e-5),
    }
    assert losses["sft"] > losses["base"] + 0.1
    assert len(list((tmp_path / "one" / CHECKPOINTS).glob("tokenizer-*"))) == 1  # the text was tokenized once


def test_candidates_with_other_tokenizers_read_tokens_of_their_own(tiny: Any, run: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.pretrain))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    del state["model"]["merges"][-30:]  # fewer merges: other tokens for the same text
    model = AutoModelForCausalLM.from_pretrained(str(tiny.pretrain))
    model.save_pretrained(str(other))
    tokenizer.save_pretrained(str(other))
    (other / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    options = fields(tiny, validation=str(tiny.held_out), validation_length=32)
    tax = run(evaluation.STAGE, options, tmp_path / "one", base=tiny.pretrain, base_other=other)["tax"]
    assert tax["base_other"]["validation_loss"] == pytest.approx(loss_of(other, tiny), abs=1e-5)
    assert tax["base_other"]["validation_loss"] != pytest.approx(tax["base"]["validation_loss"], abs=1e-3)
