"""The toy lifecycle; as a program, `gptlife` itself on that lifecycle and without a report."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import toy_comparisons
import toy_pretrain
import toy_reward_model
import toy_sft
import toy_tokenizer

from gptlife.pipelines.lifecycle import step

CHAIN = (
    step(toy_tokenizer.STAGE),
    step(toy_pretrain.STAGE, tokenizer="tokenizer"),
    step(toy_sft.STAGE, base="pretrain"),
    step(toy_comparisons.STAGE, policy="sft"),
    step(toy_reward_model.STAGE, base="sft", comparisons="comparisons"),
)


def fake_report() -> ModuleType:
    """Stands where gptlife.pipelines.report.page stands: a page of one line a step."""
    module: Any = ModuleType("gptlife.pipelines.report.page")

    def write(planned: list[Any], output: Path, name: str) -> Path:
        output.write_text("".join(f"{p.name} {p.state}\n" for p in planned), encoding="utf-8")
        return output

    module.write = write
    return module


if __name__ == "__main__":
    import gptlife.pipelines.report
    from gptlife.pipelines.cli import app as cli
    from gptlife.pipelines.cli import run

    report = fake_report()
    sys.modules["gptlife.pipelines.report.page"] = gptlife.pipelines.report.page = report  # type: ignore[attr-defined]
    run.lifecycle = lambda: CHAIN  # type: ignore[assignment]
    cli.main()
