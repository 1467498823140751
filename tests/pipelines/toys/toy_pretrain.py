from __future__ import annotations

from pathlib import Path

from toy_work import ToyConfig, work

from gptlife.stages.runtime.stage import Metrics, Stage


def run(config: ToyConfig, output: Path, *, tokenizer: Path) -> Metrics:
    return work(config, output)


STAGE = Stage("pretrain", ToyConfig, run, inputs=("tokenizer",))

if __name__ == "__main__":
    STAGE.main()
