"""gptlife: the full life of a GPT, from raw text to PPO-ptx. The public names of the library are here.

    import gptlife

    planned = gptlife.plan("quickstart")             # the address of every step; runs nothing
    gptlife.run("quickstart", {"seed": 1})           # makes what is not there yet
    output = gptlife.open_output("quickstart:ppo")   # its metrics, log, config, model and tokenizer

A stage of your own is a `Config`, a function and a `Stage`; `step` wires it, and `steps=(*LIFECYCLE, step(...))` lets
recipes name it. A name is imported when it is first used: none of them imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptlife.data.config import Config
    from gptlife.data.errors import UserError
    from gptlife.pipelines.api import Output, Plan, open_output, plan, run
    from gptlife.pipelines.lifecycle import LIFECYCLE, Step, step
    from gptlife.stages.runtime.stage import Stage, StageConfig

__version__ = "0.2.0.dev0"
__all__ = [
    "LIFECYCLE",
    "Config",
    "Output",
    "Plan",
    "Stage",
    "StageConfig",
    "Step",
    "UserError",
    "open_output",
    "plan",
    "run",
    "step",
]

_MODULES = {
    "data.config": ("Config",),
    "data.errors": ("UserError",),
    "pipelines.api": ("Output", "Plan", "open_output", "plan", "run"),
    "pipelines.lifecycle": ("LIFECYCLE", "Step", "step"),
    "stages.runtime.stage": ("Stage", "StageConfig"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"gptlife.{module}"), name)
    raise AttributeError(f"module 'gptlife' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
