"""The comparison of two stores sees every changed number, and nothing in what depends on the day."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_stores.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_stores", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store(root: Path, address: str, **changed: str) -> Path:
    """A store with one output, `sft`."""
    files = {
        "model.safetensors": "weights",
        "metrics.json": "{}",
        "log.jsonl": json.dumps({"step": 1, "loss": 2.0, "tokens_per_second": len(root.name)}) + "\n",
        "README.md": "card",
        "manifest.json": f"made in {root.name}",
        "tensorboard/events": root.name,
        **changed,
    }
    for name, text in files.items():
        path = root / address / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "runs").mkdir()
    steps = {"sft": {"address": address, "path": "elsewhere"}}
    (root / "runs" / "smoke.json").write_text(json.dumps({"steps": steps}), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("changed", "said", "same"),
    [
        ({}, "same (4 files)", True),
        ({"README.md": "another card"}, "same (4 files); other words in README.md", True),
        ({"model.safetensors": "other"}, "DIFFERS in model.safetensors", False),
        ({"ema/model.safetensors": "new"}, "DIFFERS in ema/model.safetensors", False),
        ({"log.jsonl": '{"step": 1, "loss": 2.5}\n'}, "DIFFERS in log.jsonl", False),
    ],
)
def test_a_line_for_a_step(tool: ModuleType, tmp_path: Path, changed: dict[str, str], said: str, same: bool) -> None:
    before, after = store(tmp_path / "before", "sft-1"), store(tmp_path / "later", "sft-1", **changed)
    stores = [tool.outputs(root, "smoke") for root in (before, after)]
    assert tool.compare(*stores) == [("sft", said, same)]


def test_a_moved_address_is_told_and_a_missing_step_counts(tool: ModuleType, tmp_path: Path) -> None:
    before, after = store(tmp_path / "a", "sft-1"), store(tmp_path / "b", "sft-2")
    one, two = (tool.outputs(root, "smoke") for root in (before, after))
    assert tool.compare(one, two) == [("sft", "same (4 files), address sft-1 -> sft-2", True)]
    assert tool.compare(one, {}) == [("sft", "MISSING in one of the stores", False)]
