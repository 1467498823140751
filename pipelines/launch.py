"""Start one step of a plan: check what is done, fetch what is adopted, give the command that makes the rest.

The command is the one that a person types, `python -m gptlife.stages.X --config stage.yaml`, with the recipe's launcher
in front. What a stage reads, writes, resumes and locks is its own affair (stages/runtime/stage.py).
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
    """See that every launcher is a program, before anything is started.

    Raises:
        UserError: naming the first that is none.
    """
    for step in wanted:
        if step.launcher and step.state != "done" and shutil.which(step.launcher[0]) is None:
            raise UserError(f"{step.name}: launcher '{step.launcher[0]}' is no program here; mend `launcher`")


def begin(step: Planned, store: Store, note: str = "") -> list[str] | None:
    """Check a step that is done, fetch an adopted one, or give the command that makes it; says which on stdout.

    `note` ends the line about a step that has a command.

    Raises:
        UserError: for a damaged output, data that changed since the plan was made, or a model that can't be fetched.
    """
    if step.state == "done":
        if not step.external:
            store.check(step.path, step.name)
        say(step.name, f"done      {_place(step)}")
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
    """Why a stage that ended with `code` made nothing; `messages` says where its own words are."""
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
    """Download an adopted hub model into the store, complete as any other output.

    Raises:
        UserError: when the hub does not give all of it.
    """
    assert step.adopted is not None
    note = {"stage": step.name, "adopted": str(step.adopted)}
    with artifact.locked(step.path):
        if step.state == "done":  # by another process, between the plan and the lock
            return
        partial = artifact.begin(step.path, {**note, "identity": note})
        try:
            commit = _download(step.adopted, partial)
        except Exception as error:  # of the hub, its cache, or whatever HTTP library it uses this year
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{step.name}: {step.adopted} can't be fetched ({reason}); check id, revision and network, "
                "or adopt a local directory"
            ) from None
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        made = {"address": step.address, "hub_commit": commit, "inputs": {}, "versions": versions()}
        artifact.commit(partial, step.path, {**note, **made})


def _download(adopted: Adopted, partial: Path) -> str | None:
    """Fetch a repository's files; the commit they are of.

    Without a network `snapshot_download` returns what happens to lie in the directory, so the list of files and
    their sizes is asked for first and compared afterwards.
    """
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    assert adopted.hub is not None
    info = huggingface_hub.HfApi().model_info(adopted.hub, revision=adopted.revision, files_metadata=True)
    sizes = {entry.rfilename: entry.size for entry in info.siblings or []}
    if trust.only_pickled(sizes):
        raise OSError("its weights are pickles alone, which can run anything, and none is in safetensors")
    huggingface_hub.snapshot_download(
        adopted.hub, revision=adopted.revision, local_dir=partial, ignore_patterns=_NOT_FETCHED
    )
    for name in filter_repo_objects(sizes, ignore_patterns=_NOT_FETCHED):
        if not (partial / name).is_file() or (partial / name).stat().st_size != sizes[name]:
            raise OSError(f"{name} did not arrive whole")
    return info.sha


def _place(step: Planned) -> str:
    return f"{step.address}  (adopted: {step.adopted})" if step.adopted else step.address


def say(name: str, text: str) -> None:
    """One line on stdout about a step."""
    print(f"{name:<13} {text}", flush=True)
