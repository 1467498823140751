from __future__ import annotations

from pathlib import Path

from toy_work import ToyConfig, work

from gptlife.stages.runtime.stage import Metrics, Stage


def run(config: ToyConfig, output: Path, *, policy: Path) -> Metrics:
    return work(config, output)


STAGE = Stage("comparisons", ToyConfig, run, inputs=("policy",))

if __name__ == "__main__":
    STAGE.main()
