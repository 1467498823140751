"""What a stage is: a name, a config, named inputs and a function.

    STAGE = Stage("sft", SFTConfig, run, inputs=("base",))
    STAGE.main()      # python -m gptlife.stages.sft --config stage.yaml [field=value ...]
                      # accelerate launch stages/sft.py --config stage.yaml

The orchestrator and a person use the same `main`. `stage.yaml` is flat: the config's fields, plus `output`
(a directory), `inputs` (name: directory) and, as notes that are ignored when read, `stage`, `version`, `identity` and
`input_addresses`. A finished output carries the `stage.yaml` that makes it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlife.data.config import HashFile, decode, sha256_of_file
from gptlife.data.errors import UserError, suggest
from gptlife.stages.runtime.card import About, Family
from gptlife.stages.runtime.command import run_command
from gptlife.stages.runtime.config import StageConfig
from gptlife.stages.runtime.execution import Job, Metrics, execute
from gptlife.stages.runtime.world import world_size

_INPUT_NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = ("stage", "version", "identity", "inputs", "input_addresses", "output")
"""What `stage.yaml` has besides the config's fields."""


@dataclass(frozen=True)
class Stage:
    """A stage of a model's life.

    `inputs` must be given, `optional` ones may, and an `open` stage takes further ones by any name; `run(config,
    output, **inputs)` reads only its arguments, writes only under `output` and returns the metrics. `version` is
    bumped by hand when the same config would give another result. `title` is its name as people write it, `family`
    what its output is, `about` one or two sentences for the model card: reports, cards and evaluations read these, so
    a new stage needs no entry in theirs. `check(config, names of the inputs)` refuses what these two already tell, so
    that a plan refuses it before anything runs; its errors begin with the stage's name and the field, and `run` calls
    it too.
    """

    name: str
    config: type[StageConfig]
    run: Callable[..., Metrics]
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    open: bool = False
    version: int = 1
    title: str = ""
    family: Family = "answers"
    about: str = ""
    check: Callable[[Any, Collection[str]], None] | None = None

    def identity(self, config: StageConfig, hash_file: HashFile = sha256_of_file) -> dict[str, Any]:
        """What enters the address besides the inputs' addresses."""
        return {"stage": self.name, "version": self.version, "config": config.identity(hash_file)}

    def main(self, argv: Sequence[str] | None = None) -> None:
        """The command line of this stage; exits with 0, 2 (something that the user can fix) or 130 (interrupted)."""
        run_command(self.name, self.config, self.execute, argv)

    def execute(self, raw: Mapping[str, Any], where: str) -> None:
        """Run the stage that the decoded `stage.yaml` describes; does nothing where its output is complete.

        Args:
            raw: the content of `stage.yaml`.
            where: its path, for errors.

        Raises:
            UserError: for what the user can fix, an output of another config or other inputs included.
        """
        execute(self.job(raw, where))

    def job(self, raw: Mapping[str, Any], where: str) -> Job:
        """One run as the decoded `stage.yaml` describes it.

        Raises:
            UserError: for fields, inputs, an output or a number of processes that are not as they must be.
        """
        if raw.get("stage", self.name) != self.name:
            raise UserError(f"{where}: is of stage '{raw['stage']}', not '{self.name}'")
        config = decode(self.config, {k: v for k, v in raw.items() if k not in RESERVED}, where)
        inputs = self._inputs(raw.get("inputs") or {}, where)
        if not isinstance(raw.get("output"), str):
            raise UserError(f"{where}: no `output`; name the directory to write, as in output=runs/{self.name}")
        if config.processes is not None and config.processes != world_size():
            raise UserError(
                f"{where}: processes is {config.processes}, but {world_size()} started; "
                "check the launcher (on a CPU: accelerate launch --multi_gpu with ACCELERATE_USE_CPU=true)"
            )
        return Job(
            about=About(self.name, self.family, self.about),
            version=self.version,
            config=config,
            inputs=inputs,
            output=Path(raw["output"]).absolute(),
            run=lambda output: self.run(config, output, **inputs),
            identity=lambda: self.identity(config),
        )

    def takes(self, name: str) -> bool:
        """Whether the stage has an input of that name; an open one takes every lower-case identifier."""
        return name in (*self.inputs, *self.optional) or (self.open and _INPUT_NAME.fullmatch(name) is not None)

    def _inputs(self, given: Mapping[str, Any], where: str) -> dict[str, Path]:
        names = [*self.inputs, *self.optional]
        for name in given:
            if not self.takes(name):
                raise UserError(f"{where}: inputs.{name}: {self.name} has no such input{suggest(name, names)}")
        paths = {}
        for name in dict.fromkeys([*names, *given]):
            if given.get(name) is None:
                if name in self.inputs:
                    raise UserError(f"{where}: inputs.{name}: required; give the directory, inputs.{name}=...")
                continue
            path = Path(given[name])
            if not path.is_dir():
                raise UserError(f"{where}: inputs.{name}: {path} is not a directory; run the stage that makes it first")
            paths[name] = path
        return paths
