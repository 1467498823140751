from __future__ import annotations

from pathlib import Path

from toy_work import ToyConfig, work

from gptlife.stages.runtime.stage import Metrics, Stage


def run(config: ToyConfig, output: Path, *, base: Path, comparisons: Path | None = None) -> Metrics:
    return work(config, output)


STAGE = Stage("reward_model", ToyConfig, run, inputs=("base",), optional=("comparisons",))

if __name__ == "__main__":
    STAGE.main()
