"""What a device is recorded as."""

from __future__ import annotations

import pytest
import torch

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
