"""Files that are there whole or not at all: written beside, synced, renamed; and pieces of unfinished work.

A piece (a chunk of answers, a member of an ensemble, the note of a token stream) is JSON behind its own sha256, so that
a resumed run recognises a damaged piece and makes it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlife.data.config import sha256_of_file
from gptlife.data.errors import UserError
from gptlife.stages.runtime.notices import notice

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


def write_text(path: Path, text: str) -> None:
    """Write a file so that it exists whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON; NaN raises ValueError: callers omit non-finite metrics."""
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
    write_text(path, f"{sha256_of_text(text)}\n{text}\n")


def kept_piece(path: Path) -> Any:
    """What `keep_piece` wrote; None where nothing exists, or where it is damaged (with a notice): make it again."""
    try:
        return read_piece(path)
    except FileNotFoundError:
        return None
    except ValueError:
        notice(f"{path}: damaged; made again")
        return None


def kept_by_all(state: Accelerator | PartialState, path: Path) -> Any:
    """`kept_piece`, read by the first process for all."""
    from accelerate.utils import broadcast_object_list

    pieces = [kept_piece(path) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(pieces)
    return pieces[0]


def read_piece(path: Path) -> Any:
    """What `keep_piece` wrote.

    Raises:
        FileNotFoundError: when nothing exists there.
        ValueError: when it is damaged.
    """
    digest, _, text = path.read_text(encoding="utf-8").removesuffix("\n").partition("\n")
    if digest != sha256_of_text(text):
        raise ValueError(f"{path}: its content does not match its sha256")
    return json.loads(text)


def sums(folder: Path, names: Iterable[str]) -> dict[str, list[Any]]:
    """name -> [bytes, sha256] of files of a folder; missing files are left out."""
    files = {name: folder / name for name in names}
    return {name: [path.stat().st_size, sha256_of_file(str(path))] for name, path in files.items() if path.is_file()}


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


def sha256_of_text(text: str) -> str:
    """Hex sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
