"""What a stage is: a name, a config, named inputs and a function; and the one way in which it is run.

    STAGE = Stage("sft", SFTConfig, run, inputs=("base",))
    STAGE.main()      # python -m gptlife.stages.sft --config stage.yaml [field=value ...]
                      # accelerate launch stages/sft.py --config stage.yaml

The orchestrator and a person use the same `main`. `stage.yaml` is flat: the config's fields, plus `output`
(a directory), `inputs` (name: directory) and, as notes that are ignored when read, `stage`, `version`, `identity` and
`input_addresses`. A finished output carries the `stage.yaml` that re-makes it, and is taken for nothing else.
"""

from __future__ import annotations

import argparse
import errno
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field, PositiveInt

from gptlife.data.config import Config, Execution, HashFile, decode, sha256_of_file
from gptlife.data.errors import UserError, suggest
from gptlife.data.yaml_tables import apply_overrides, read_yaml
from gptlife.stages.runtime import artifact, signals, trust
from gptlife.stages.runtime.card import write_card

Metrics = dict[str, Any]
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_INPUT_NAME = re.compile(r"[a-z][a-z0-9_]*")
COST = (
    "seconds",
    "seconds_sampling",
    "seconds_scoring",
    "seconds_updating",
    "tokens_per_second",
    "checkpoints",
    "checkpoint_seconds",
    "checkpoint_mb",
    "mfu",
    "peak_gpu_memory_mb",
)
"""Metrics of the machine and the day: they go to the manifest, so that equal runs have equal `metrics.json`."""
RESERVED = ("stage", "version", "identity", "inputs", "input_addresses", "output")


class StageConfig(Config):
    """What every stage has."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random in the stage."""
    device: Execution[str | None] = None
    """`cpu`, `cuda`, `mps`; by default the best there is."""
    processes: Execution[PositiveInt | None] = None
    """How many processes are expected; the stage refuses to run in another number. None: any."""
    trust_remote_code: Execution[bool] = False
    """Run Python code that lies beside an adopted model's weights: only for code that you have read."""
    deterministic: Execution[bool] = False
    """On a GPU, only algorithms that give the same bits each time: slower, and some operations have none."""
    track: Execution[list[Literal["tensorboard", "wandb"]]] = ["tensorboard"]
    """Trackers that get the curves besides log.jsonl: `tensorboard`, `wandb`. One that is not installed is left out."""


Family = Literal["tokenizer", "base", "chat", "online", "preference", "reward", "answers", "rankings", "evaluation"]
"""What a stage's output is: `base` continues text, `chat`, `online` and `preference` answer in a chat and tell how they
learnt (from demonstrations, from their own answers, from preferences)."""


@dataclass(frozen=True)
class Stage:
    """A stage of a model's life.

    `inputs` must be given, `optional` ones may, and an `open` stage takes further ones by any name; `run(config,
    output, **inputs)` reads only its arguments, writes only under `output` and returns the metrics. `version` is
    bumped by hand when the same config would give another result. `title` is its name as people write it, `family`
    what its output is, `about` one or two sentences for the model card: reports, cards and evaluations read these, so
    a new stage needs no entry in theirs.
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

    def identity(self, config: StageConfig, hash_file: HashFile = sha256_of_file) -> dict[str, Any]:
        """What enters the address besides the inputs' addresses."""
        return {"stage": self.name, "version": self.version, "config": config.identity(hash_file)}

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Command line of one stage; exits with 0, 2 (something the user can mend) or 130 (interrupted)."""
        parser = argparse.ArgumentParser(prog=f"gptlife.stages.{self.name}", description=self.config.__doc__)
        parser.add_argument("--config", required=True, type=Path, help="a stage.yaml: fields, inputs, output")
        parser.add_argument("overrides", nargs="*", metavar="field=value")
        arguments = parser.parse_args(argv)
        try:
            with signals.heard(self.name):
                raw = apply_overrides(read_yaml(arguments.config), arguments.overrides)
                self.execute(raw, str(arguments.config))
        except UserError as error:
            self._end(2, str(error))
        except KeyboardInterrupt:
            self._end(130, "interrupted; run the same command again to resume")
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            place = f"{error.filename}: " if error.filename else ""
            self._end(2, f"{place}{error.strerror}; make room, or choose another place, and run again to resume")
        except (MemoryError, RuntimeError) as error:
            if "does not have a deterministic implementation" in str(error):
                self._end(2, f"{str(error).splitlines()[0]} (set deterministic: false)")
            if not _out_of_memory(error):
                raise
            reason = (str(error).strip() or "MemoryError").split("\n")[0]
            self._end(2, f"out of memory ({reason}); {self._what_to_lower()}, and run again to resume")

    def _end(self, code: int, message: str) -> NoReturn:
        if rank() == 0:
            said = message.startswith((f"{self.name}:", f"{self.name}."))  # where it is, the message says itself
            print(message if said else f"{self.name}: {message}", file=sys.stderr, flush=True)
        sys.exit(code)

    def _what_to_lower(self) -> str:
        """Settings of memory and time alone: none of them changes a result."""
        there = [name for name in ("micro_batch_tokens", "generation_batch_size") if name in self.config.model_fields]
        more = ", or set gradient_checkpointing: true" if "gradient_checkpointing" in self.config.model_fields else ""
        return f"lower {' or '.join(there)}{more}" if there else "give it more memory"

    def execute(self, raw: Mapping[str, Any], where: str) -> None:
        """Run the stage that the decoded `stage.yaml` describes; does nothing where its output is complete.

        Raises:
            UserError: for what the user can mend, an output of another config or other inputs included.
        """
        if raw.get("stage", self.name) != self.name:
            raise UserError(f"{where}: is of stage '{raw['stage']}', not '{self.name}'")
        config = decode(self.config, {k: v for k, v in raw.items() if k not in RESERVED}, where)
        inputs = self._inputs(raw.get("inputs") or {}, where)
        if not isinstance(raw.get("output"), str):
            raise UserError(f"{where}: no `output`; name the directory to write, as in output=runs/{self.name}")
        output = Path(raw["output"]).absolute()
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if config.processes is not None and config.processes != world:
            raise UserError(
                f"{where}: processes is {config.processes}, but {world} started; "
                "check the launcher (on a CPU: accelerate launch --multi_gpu with ACCELERATE_USE_CPU=true)"
            )
        if artifact.is_complete(output):
            self._confirm(config, inputs, output)
        elif rank() > 0:
            self._run(config, artifact.partial_of(output), inputs)
        else:
            with artifact.locked(output):
                if not artifact.is_complete(output):
                    for path in inputs.values():
                        if artifact.is_complete(path):
                            artifact.verify(path)
                    self._work(config, inputs, output)
                elif world == 1:
                    self._confirm(config, inputs, output)
                else:  # the other processes may be at work already: only a failure makes the launcher end them
                    raise UserError(f"{output}: finished meanwhile by another run; run again")

    def _confirm(self, config: StageConfig, inputs: dict[str, Path], output: Path) -> None:
        """Say that the output is complete, if it is this config's."""
        if rank() == 0:
            artifact.refuse_another(output, self._stage_file(config, inputs, output), "made with")
            artifact.forget_checkpoints(output)
            print(f"{self.name}: {output} is complete already")

    def _stage_file(self, config: StageConfig, inputs: dict[str, Path], output: Path) -> dict[str, Any]:
        return {
            "stage": self.name,
            "version": self.version,
            "identity": self.identity(config),
            "inputs": {name: str(path) for name, path in inputs.items()},
            "input_addresses": {name: address_of(path) for name, path in inputs.items()},
            "output": str(output),
            **config.model_dump(mode="json"),
        }

    def _run(self, config: StageConfig, output: Path, inputs: dict[str, Path]) -> Metrics:
        with ExitStack() as inside:
            inside.enter_context(trust.trusting(config.trust_remote_code))
            if config.deterministic:
                from gptlife.stages.runtime.device import same_bits

                inside.enter_context(same_bits())
            return self.run(config, output, **inputs)

    def _work(self, config: StageConfig, inputs: dict[str, Path], output: Path) -> None:
        partial = artifact.begin(output, self._stage_file(config, inputs, output))
        started, begun, identity = time.time(), time.monotonic(), self.identity(config)
        metrics = self._run(config, partial, inputs)
        metrics.setdefault("seconds", round(time.monotonic() - begun, 2))
        # Looked at again, since this may have taken days: an address tells what an output was made from.
        if changed := artifact.changes(identity, self.identity(config)):
            raise UserError(
                f"{output}: its data changed while it worked (differs in: {artifact.few(changed)}), so it is nobody's; "
                f"remove {partial}, and run again"
            )
        manifest = self._manifest(config, inputs, output, metrics, started)
        result = {name: value for name, value in metrics.items() if name not in COST}
        artifact.write_json(partial / artifact.METRICS, result)
        write_card(partial, self.name, manifest, result)
        artifact.commit(partial, output, manifest)

    def _manifest(
        self, config: StageConfig, inputs: dict[str, Path], output: Path, metrics: Metrics, started: float
    ) -> dict[str, Any]:
        return {
            "stage": self.name,
            "version": self.version,
            "address": output.name,
            "inputs": {name: address_of(path) for name, path in inputs.items()},
            "identity": self.identity(config),
            "versions": artifact.versions(),
            "commit": artifact.code_commit(),
            "host": platform.node(),
            "platform": platform.platform(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": metrics["seconds"],
            "cost": {name: metrics[name] for name in COST if name in metrics},
            "tokens": metrics.get("tokens"),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            **_device_of(config, artifact.partial_of(output)),
        }

    def takes(self, name: str) -> bool:
        """Whether the stage has an input of that name; an open one takes every lower-case identifier."""
        return name in (*self.inputs, *self.optional) or (self.open and _INPUT_NAME.fullmatch(name) is not None)

    def _inputs(self, given: Mapping[str, Any], where: str) -> dict[str, Path]:
        known = [*self.inputs, *self.optional]
        for name in given:
            if not self.takes(name):
                raise UserError(f"{where}: inputs.{name}: {self.name} has no such input{suggest(name, known)}")
        paths = {}
        for name in dict.fromkeys([*known, *given]):
            if given.get(name) is None:
                if name in self.inputs:
                    raise UserError(f"{where}: inputs.{name}: required; give the directory, inputs.{name}=...")
                continue
            path = Path(given[name])
            if not path.is_dir():
                raise UserError(f"{where}: inputs.{name}: {path} is no directory; run the stage that makes it first")
            paths[name] = path
        return paths


def _out_of_memory(error: Exception) -> bool:
    """Of Python, of torch on a device, or of torch on the CPU, whose error has no class of its own."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error)


def _device_of(config: StageConfig, partial: Path) -> dict[str, Any]:
    """What the stage worked on last, and all of it where it was several; one that never needed torch, on the CPU."""
    if "torch" not in sys.modules:
        return {"device": "cpu", "same_bits": True}
    from gptlife.stages.runtime.device import best_device, described
    from gptlife.stages.runtime.provenance import worked_on

    machines = worked_on(partial)
    several = {"machines": machines} if len(machines) > 1 else {}
    return {**described(best_device(config.device), config.deterministic), **several}


def rank() -> int:
    """This process's number in the job, 0 when there is only one (torchrun and accelerate set RANK)."""
    return int(os.environ.get("RANK", "0"))


def address_of(path: Path) -> str:
    """The address an input was made under, or the name of a directory that came from elsewhere."""
    if artifact.is_complete(path):
        return str(artifact.read_json(path / artifact.MANIFEST).get("address", path.name))
    return path.resolve().name
