"""A stage's output directory: work happens beside it, and one rename completes it.

    <output>.partial/   work in progress; the same config finds its own checkpoints there again
    <output>/           complete, always: the manifest is written last, then the rename

`.<name>.lock` beside it is held (flock, released when the process ends) while a process works on that output.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import read_yaml
from gptlife.stages.runtime.files import (
    read_json,
    sha256_of_text,
    sums,
    sync_directory,
    sync_file,
    write_json,
    write_text,
)

MANIFEST = "manifest.json"
STAGE_FILE = "stage.yaml"
METRICS = "metrics.json"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"


def is_complete(output: Path) -> bool:
    """Whether a finished output lies at `output`."""
    return (output / MANIFEST).is_file()


def partial_of(output: Path) -> Path:
    """Where work towards `output` happens."""
    return output.with_name(output.name + ".partial")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of `output`.

    Raises:
        UserError: when another process holds it, or the folder can't be written.
    """
    path = output.with_name(f".{output.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{path.parent}: can't be written ({error.strerror}); choose another place") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(handle)
            raise UserError(f"{output}: another process{holder} is working on it; wait for it, or stop it") from None
        _sign(handle, f"{os.getpid()} {platform.node()}")
        try:
            yield
        finally:
            _sign(handle, "")
    finally:
        os.close(handle)


def _sign(handle: int, holder: str) -> None:
    """Write the holder's name into a lock; on a full disk the name is missing, but the lock holds."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, holder.encode())


def _holder(handle: int) -> str:
    """The process that holds a lock, as it signed there: ` (4711)`, or ` (4711 on another-host)`."""
    pid, _, host = os.read(handle, 1000).decode("utf-8", "replace").partition(" ")
    if not pid.isdecimal():
        return ""
    return f" ({pid})" if host == platform.node() else f" ({pid} on {host})"


def begin(output: Path, stage_file: Mapping[str, Any]) -> Path:
    """Create or reopen the partial directory of `output` and write the `stage.yaml` that it works on.

    Raises:
        UserError: when a partial directory of another config or of other inputs exists.
    """
    if output.exists() and not is_complete(output):
        raise UserError(f"{output}: exists but is not a finished output (no {MANIFEST}); move it away, then run again")
    partial = partial_of(output)
    record = partial / STAGE_FILE
    if record.is_file():
        refuse_another(partial, stage_file, "begun with")
    partial.mkdir(parents=True, exist_ok=True)
    for leftover in partial.rglob("*.tmp"):  # of a `write_text` that was killed
        leftover.unlink()
    write_text(record, yaml.safe_dump(dict(stage_file), sort_keys=False, allow_unicode=True))
    return partial


def refuse_another(folder: Path, stage_file: Mapping[str, Any], verb: str) -> None:
    """Check that the `stage.yaml` in `folder` has the identity and the inputs' addresses of `stage_file`.

    The paths of inputs and the `Execution` fields may change between runs of one address.

    Args:
        verb: how the error begins: "begun with" or "made with".

    Raises:
        UserError: naming the first fields that differ, or when the file in `folder` is damaged.
    """
    try:
        before = read_yaml(folder / STAGE_FILE)
    except UserError:
        raise UserError(f"{folder / STAGE_FILE}: damaged; remove {folder}, and run again") from None
    changed = changes(before.get("identity"), stage_file.get("identity"))
    what = "another config"
    # A fetched model records no inputs.
    if not changed and before.get("input_addresses") is not None:
        changed = changes(before["input_addresses"], stage_file.get("input_addresses"), "inputs.")
        what = "other inputs"
    if changed:
        raise UserError(f"{folder}: {verb} {what} (differs in: {few(changed)}); remove it, or give another output")


def changes(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values that differ, without `config.`: a file has the config's fields at its top level."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [prefix.removeprefix("config.").rstrip(".") or "identity"]
    return [
        name for key in sorted({*before, *now}) for name in changes(before.get(key), now.get(key), f"{prefix}{key}.")
    ]


def few(names: Sequence[str]) -> str:
    """The first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def commit(partial: Path, output: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest (with size and sha256 of every file) and rename the directory to `output`.

    Checkpoints are removed last: a run killed before the rename resumes from them.
    """
    paths = (path for path in sorted(partial.rglob("*")) if path.is_file() and path.name != MANIFEST)
    names = [name for path in paths if not (name := str(path.relative_to(partial))).startswith(f"{CHECKPOINTS}/")]
    for name in names:
        sync_file(partial / name)
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sums(partial, names).items()}
    whole = {**manifest, "files": files}
    write_json(partial / MANIFEST, {**whole, "sum": _sum_of(whole)})
    for folder in {(partial / name).parent for name in (MANIFEST, *names)}:
        sync_directory(folder)
    os.rename(partial, output)
    sync_directory(output.parent)
    forget_checkpoints(output)


def verify(output: Path, names: Sequence[str] | None = None) -> None:
    """Check every byte of a finished output against its manifest (about a second per gigabyte).

    Args:
        output: the output's directory.
        names: the files to check, of those that the manifest lists; None: all.

    Raises:
        UserError: naming the first file that is damaged.
    """
    manifest = read_json(output / MANIFEST)
    act = "make it again (gptlife run ... --fresh STEP)"
    if "sum" in manifest and manifest["sum"] != _sum_of(manifest):
        raise UserError(f"{output / MANIFEST}: damaged (its content does not match its sum); {act}")
    listed = {name: entry for name, entry in (manifest.get("files") or {}).items() if names is None or name in names}
    actual = sums(output, listed)
    for name, entry in listed.items():
        if name not in actual:
            raise UserError(f"{output / name}: missing, though the manifest lists it; {act}")
        if actual[name] != [entry["bytes"], entry["sha256"]]:
            raise UserError(f"{output / name}: damaged (its bytes differ from the manifest's); {act}")


def _sum_of(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sum"}
    return sha256_of_text(json.dumps(rest, sort_keys=True, ensure_ascii=True))


def forget_checkpoints(output: Path) -> None:
    """Remove the checkpoints of a finished output, also of one that was killed right after its rename."""
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def measured(metrics: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers of an output: its metrics, and the cost that its manifest records."""
    return {**(manifest.get("cost") or {}), **metrics}


def address_of(path: Path) -> str:
    """The address of an output, or the name of a directory that comes from elsewhere."""
    if is_complete(path):
        return str(read_json(path / MANIFEST).get("address", path.name))
    return path.resolve().name
