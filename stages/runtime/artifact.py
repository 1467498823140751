"""A stage's output directory: begun beside its place, complete by one rename.

    <output>.partial/   work in progress; the same config finds its own checkpoints there again
    <output>/           complete, always: manifest written last, then the rename

`.<name>.lock` beside it is held (flock, gone with the process) while somebody works on that output.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gptlife.data.config import sha256_of_file
from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import read_yaml

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

MANIFEST = "manifest.json"
STAGE_FILE = "stage.yaml"
METRICS = "metrics.json"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
_VERSIONED = ("gptlife", "torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "numpy")


def is_complete(output: Path) -> bool:
    """Whether a finished artefact lies at `output`."""
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
            who = _holder(handle)
            raise UserError(f"{output}: another process{who} is working on it; wait for it, or stop it") from None
        _sign(handle, f"{os.getpid()} {platform.node()}")
        try:
            yield
        finally:
            _sign(handle, "")
    finally:
        os.close(handle)


def _sign(handle: int, who: str) -> None:
    """Write into a lock who holds it. On a full disk it can't be, and the lock holds all the same."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, who.encode())


def _holder(handle: int) -> str:
    """Which process holds a lock, as it wrote there: ` (4711)`, or ` (4711 on another-host)`."""
    pid, _, host = os.read(handle, 1000).decode("utf-8", "replace").partition(" ")
    if not pid.isdecimal():
        return ""
    return f" ({pid})" if host == platform.node() else f" ({pid} on {host})"


def begin(output: Path, stage_file: Mapping[str, Any]) -> Path:
    """Open (or find again) the partial directory of `output` and write what it is to become.

    Raises:
        UserError: when a partial directory of another config, or of other inputs, lies there already.
    """
    if output.exists() and not is_complete(output):
        raise UserError(f"{output}: exists but is no finished output (no {MANIFEST}); move it away, then run again")
    partial = partial_of(output)
    record = partial / STAGE_FILE
    if record.is_file():
        refuse_another(partial, stage_file, "begun with")
    partial.mkdir(parents=True, exist_ok=True)
    for left in partial.rglob("*.tmp"):  # of a `write_text` that was killed
        left.unlink()
    write_text(record, yaml.safe_dump(dict(stage_file), sort_keys=False, allow_unicode=True))
    return partial


def refuse_another(place: Path, stage_file: Mapping[str, Any], how: str) -> None:
    """Compare what `place` says that it is with `stage_file`: the config's identity and the inputs' addresses.

    Where inputs lie, and how the work is spread, may change between runs of one address.

    Raises:
        UserError: naming the first fields that differ (`how` is the verb: "begun with", "made with"), or when what
            `place` says is damaged.
    """
    try:
        before = read_yaml(place / STAGE_FILE)
    except UserError:
        raise UserError(f"{place / STAGE_FILE}: damaged; remove {place}, and run again") from None
    changed = changes(before.get("identity"), stage_file.get("identity"))
    what = "another config"
    # A fetched model records no inputs.
    if not changed and before.get("input_addresses") is not None:
        changed = changes(before["input_addresses"], stage_file.get("input_addresses"), "inputs.")
        what = "other inputs"
    if changed:
        raise UserError(f"{place}: {how} {what} (differs in: {few(changed)}); remove it, or give another output")


def changes(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values that differ; `config.` is left out, since a config's fields stand on top in a file."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [prefix.removeprefix("config.").rstrip(".") or "identity"]
    return [
        name for key in sorted({*before, *now}) for name in changes(before.get(key), now.get(key), f"{prefix}{key}.")
    ]


def few(names: Sequence[str]) -> str:
    """The first three names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def sums(folder: Path, names: Iterable[str]) -> dict[str, list[Any]]:
    """name -> [bytes, sha256] of files of a folder; those that are missing are left out."""
    files = {name: folder / name for name in names}
    return {name: [path.stat().st_size, sha256_of_file(str(path))] for name, path in files.items() if path.is_file()}


def commit(partial: Path, output: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest (with size and sha256 of every file) and move the directory to its place in one rename.

    Checkpoints go last: whoever is killed before the rename goes on from them.
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
    """See that a finished output is what its manifest says, byte for byte (about a second a gigabyte).

    Args:
        output: the output's directory.
        names: the files to look at, of those that the manifest lists; None: all.

    Raises:
        UserError: naming the first file that is damaged.
    """
    manifest = read_json(output / MANIFEST)
    act = "make it again (gptlife run ... --fresh STEP)"
    if "sum" in manifest and manifest["sum"] != _sum_of(manifest):
        raise UserError(f"{output / MANIFEST}: damaged (another sum than its own); {act}")
    listed = {name: entry for name, entry in (manifest.get("files") or {}).items() if names is None or name in names}
    found = sums(output, listed)
    for name, entry in listed.items():
        if name not in found:
            raise UserError(f"{output / name}: missing, though the manifest lists it; {act}")
        if found[name] != [entry["bytes"], entry["sha256"]]:
            raise UserError(f"{output / name}: damaged (not the bytes that its manifest lists); {act}")


def _sum_of(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sum"}
    return _sha256(json.dumps(rest, sort_keys=True, ensure_ascii=True))


def forget_checkpoints(output: Path) -> None:
    """Remove what a finished output needs no more; also for one that was killed between its rename and this."""
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make a file's content (a directory's: its names) durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON. NaN is refused: a metric that is no number is left out by who makes it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Decode a JSON file that gptlife wrote.

    Raises:
        UserError: when it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that makes it") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: damaged ({error.msg}); run its stage again with --fresh") from None


def keep_piece(path: Path, value: Any) -> None:
    """Write a piece of unfinished work (anything of JSON) with its sha256, whole or not at all."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{_sha256(text)}\n{text}\n")


def kept_piece(path: Path) -> Any:
    """What `keep_piece` wrote; None where there is nothing, or where it is damaged, which is said: make it again."""
    try:
        return read_piece(path)
    except FileNotFoundError:
        return None
    except ValueError:
        print(f"{path}: is damaged; made again", file=sys.stderr, flush=True)
        return None


def kept_by_all(state: Accelerator | PartialState, path: Path) -> Any:
    """`artifact.kept_piece`, read by the first process for all."""
    from accelerate.utils import broadcast_object_list

    found = [kept_piece(path) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def read_piece(path: Path) -> Any:
    """What `keep_piece` wrote.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: where it is damaged.
    """
    digest, _, text = path.read_text(encoding="utf-8").removesuffix("\n").partition("\n")
    if digest != _sha256(text):
        raise ValueError(f"{path}: another sha256")
    return json.loads(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def measured(metrics: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers of an output: its metrics, and what it cost as its manifest says."""
    return {**(manifest.get("cost") or {}), **metrics}


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_commit() -> str | None:
    """The commit of the source tree this runs from, with `+` where it has uncommitted changes; None elsewhere."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        commit_id = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit_id.returncode != 0:
            return None
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit_id.stdout.strip() + ("+" if dirty.stdout.strip() else "")
