"""Start one step of a plan: check one that is done, fetch one that is adopted, give the command of any other.

The command is the one that a person types, `python -m gptlife.stages.X --config stage.yaml`, with the recipe's launcher
in front. Reading, writing, resuming and locking is done by the stage (stages/runtime/stage.py).
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from gptlife.data.errors import UserError
from gptlife.pipelines.planner import Planned, address_now
from gptlife.pipelines.recipe import Adopted
from gptlife.pipelines.store import Store
from gptlife.stages.runtime import artifact, trust
from gptlife.stages.runtime.provenance import versions

_OTHER_WEIGHTS = ["*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf", "*.mlmodel", "coreml/*", "onnx/*"]
_NOT_FETCHED = [*_OTHER_WEIGHTS, *trust.PICKLED]


def look_for_launchers(wanted: Sequence[Planned]) -> None:
    """Check that every launcher is a program, before anything is started.

    Raises:
        UserError: naming the first that is not.
    """
    for step in wanted:
        if step.launcher and step.state != "done" and shutil.which(step.launcher[0]) is None:
            raise UserError(f"{step.name}: launcher '{step.launcher[0]}' not found on PATH; fix `launcher`")


def begin(step: Planned, store: Store, note: str = "") -> list[str] | None:
    """Check a step that is done, fetch an adopted one, or return the command that runs it; prints which.

    `note` ends the printed line of a step that has a command.

    Raises:
        UserError: for a damaged output, data that changed since the plan was made, or a model that can't be fetched.
    """
    if step.state == "done":
        if not step.external:
            store.check(step.path, step.name)
        say(step.name, f"done      {_described(step)}")
        return None
    if address_now(step, store.hash_file) != step.address:
        raise UserError(f"{step.name}: its data changed since the plan was made; run the same command again")
    if step.adopted is not None:
        say(step.name, f"fetching  {step.adopted}")
        fetch(step)
        return None
    say(step.name, f"{'resuming' if step.state == 'partial' else 'running '}  {step.address}{note}")
    return command(step, store)


def command(step: Planned, store: Store) -> list[str]:
    """Write a step's stage.yaml into the store; the command line that runs it."""
    assert step.config is not None
    stage_file = {
        "stage": step.stage.name,
        "version": step.stage.version,
        "inputs": {name: str(upstream.path) for name, upstream in step.inputs.items()},
        "output": str(step.path),
        **step.config.model_dump(mode="json"),
    }
    text = yaml.safe_dump(stage_file, sort_keys=False, allow_unicode=True)
    path = store.write(f".work/{step.address}.stage.yaml", text)
    return [*(step.launcher or (sys.executable,)), "-m", step.module, "--config", str(path)]


def complaint(step: Planned, code: int, messages: str = "above") -> str:
    """Why a stage that ended with `code` made no output; `messages` says where its messages are."""
    if code == 0:
        problem = f"ended without an output at {step.path}; check the launcher"
    elif code == -signal.SIGKILL:
        problem = "killed by SIGKILL (out of memory is the usual reason)"
    elif code < 0:
        problem = f"killed by {signal.Signals(-code).name}"
    else:
        problem = f"failed with exit code {code} (its messages are {messages})"
    log = artifact.partial_of(step.path) / artifact.LOG
    return f"{problem}; log: {log}" if log.is_file() else problem


def fetch(step: Planned) -> None:
    """Download an adopted hub model into the store, as complete as any other output.

    Raises:
        UserError: when a file of it can't be downloaded.
    """
    assert step.adopted is not None
    note = {"stage": step.name, "adopted": str(step.adopted)}
    with artifact.locked(step.path):
        if step.state == "done":  # by another process, between the plan and the lock
            return
        partial = artifact.begin(step.path, {**note, "identity": note})
        try:
            commit = _download(step.adopted, partial)
        except Exception as error:  # of the hub, its cache or its HTTP library
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{step.name}: {step.adopted} can't be fetched ({reason}); check id, revision and network, "
                "or adopt a local directory"
            ) from None
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        made = {"address": step.address, "hub_commit": commit, "inputs": {}, "versions": versions()}
        artifact.commit(partial, step.path, {**note, **made})


def _download(adopted: Adopted, partial: Path) -> str | None:
    """Download a repository's files and return their commit.

    Without a network `snapshot_download` returns whatever is in the directory, so the list of files and their sizes
    is fetched first and compared afterwards.
    """
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    assert adopted.hub is not None
    info = huggingface_hub.HfApi().model_info(adopted.hub, revision=adopted.revision, files_metadata=True)
    sizes = {entry.rfilename: entry.size for entry in info.siblings or []}
    if trust.only_pickled(sizes):
        raise OSError("its weights are only pickles, which can run any code; none are in safetensors")
    huggingface_hub.snapshot_download(
        adopted.hub, revision=adopted.revision, local_dir=partial, ignore_patterns=_NOT_FETCHED
    )
    for name in filter_repo_objects(sizes, ignore_patterns=_NOT_FETCHED):
        if not (partial / name).is_file() or (partial / name).stat().st_size != sizes[name]:
            raise OSError(f"{name} did not arrive complete")
    return info.sha


def _described(step: Planned) -> str:
    return f"{step.address}  (adopted: {step.adopted})" if step.adopted else step.address


def say(name: str, text: str) -> None:
    """One line on stdout about a step."""
    print(f"{name:<13} {text}", flush=True)
