"""What a device is recorded as."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gptlife.stages.runtime import device
from gptlife.stages.runtime.device import described


@pytest.mark.parametrize(
    ("kind", "wanted", "same"),
    [("cpu", False, True), ("cuda", False, False), ("cuda", True, True), ("mps", True, False)],
)
def test_where_bits_are_the_same(kind: str, wanted: bool, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Big One")
    found = described(torch.device(kind), wanted)
    assert found["same_bits"] is same
    assert found["device"] == ("cuda (A Big One)" if kind == "cuda" else kind)


def test_flops_a_token() -> None:
    def flops(kind: str, row: int, **sizes: Any) -> float:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=1000, **sizes))
        return device.flops_per_token(model, row)

    # GPT-2: tied embedding counted once (as the head), positions not. 6 N + 6 L T D.
    n = 1000 * 64 + 3 * (12 * 64**2 + 13 * 64) + 2 * 64
    assert flops("gpt2", 128, n_embd=64, n_layer=3, n_head=2) == 6 * n + 6 * 3 * 128 * 64
    # Llama: untied; the input table is looked up, not multiplied. Per layer 4 D^2 + 3 D F + 2 D.
    n = 1000 * 64 + 2 * (4 * 64**2 + 3 * 64 * 96 + 2 * 64) + 64
    found = flops("llama", 128, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
    assert found == 6 * n + 6 * 2 * 128 * 64


def test_peak_of_a_cpu() -> None:
    peak = device.peak_flops(torch.device("cpu"))
    assert peak is not None
    assert 1e8 < peak < 1e14
    assert device.peak_flops(torch.device("meta")) is None
    assert device.peak_gpu_memory_mb(torch.device("cpu")) is None
