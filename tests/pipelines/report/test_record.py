"""What is read of a step: numbers that are its manifest's, its title, and fields of an old stage.yaml."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from gptlife.pipelines.report.record import read


def artifact_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What a manifest says of a folder's numbers."""
    paths = [folder / name for name in ("metrics.json", "log.jsonl")]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return {path.name: {"bytes": path.stat().st_size, "sha256": digests[path.name]} for path in paths}


@pytest.mark.parametrize("name", ["metrics.json", "log.jsonl"])
def test_numbers_that_are_not_the_manifests_are_not_shown(half, name, reader):
    folder, log = half.steps["sft"].path, [{"step": 1, "loss": 1.5}]
    half.done("sft", {"validation_loss": 1.125}, log)
    half.done("sft", {"validation_loss": 1.125}, log, files=artifact_files(folder))
    assert "1.125" in reader(half.page()).text
    (folder / name).write_text((folder / name).read_text().replace("5}", "6}"))
    text = reader(half.page()).text
    assert "1.125" not in text
    assert f"{name}: damaged (its bytes differ from the manifest's); make it again" in text


def test_fields_of_a_stage_file_from_before_a_rename(half):
    half.done("ppo", {})
    stage_file = half.steps["ppo"].path / "stage.yaml"
    stage_file.write_text("stage: ppo\nidentity: {}\ndiscount: 0.5\nstop_kl: 3.0\nkl_coef: 0.25\n", encoding="utf-8")
    record = read(half.steps["ppo"])
    assert [record.field(name) for name in ("gamma", "target_kl", "kl_coef")] == [0.5, 3.0, 0.25]
    assert record.field("lam") == 0.95  # only the plan tells
    assert record.field("discount") is None
    assert "discount: 0.5" in record.config  # shown as it was written
    stage_file.write_text("a: [", encoding="utf-8")
    assert read(half.steps["ppo"]).field("gamma") == 1.0
