"""Text as one stream of tokens on disk: written once by the first process, read by all through a memory map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from gptlife.data.config import sha256_of_file
from gptlife.data.errors import UserError
from gptlife.data.forms import texts
from gptlife.data.sources import Source
from gptlife.data.tokens import encode_texts
from gptlife.stages.runtime.artifact import CHECKPOINTS
from gptlife.stages.runtime.files import keep_piece, kept_piece, sync_file
from gptlife.stages.runtime.notices import notice


def token_stream(
    data: list[Source], name: str, tokenizer: Any, output: Path, accelerator: Accelerator, seed: int = 0
) -> tuple[np.ndarray, int]:
    """The tokens of every document in order, each followed by end-of-text; and the size of the text in bytes.

    The stream is kept with the checkpoints under `output` (removed when the stage is complete), so a resumed stage and
    the other processes don't tokenize again; a damaged one is reported and made again.

    Raises:
        UserError: when the text is empty.
    """
    path, note = (output / CHECKPOINTS / f"{name}.{kind}" for kind in ("tokens", "json"))
    if accelerator.is_main_process and not _is_whole(path, kept_piece(note)):
        if note.is_file():  # it was finished once
            notice(f"{path}: damaged; made again")
            note.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        n_bytes = 0
        with open(path, "wb") as file:
            for batch in _batches(texts(data, seed), 1000):
                n_bytes += sum(len(text.encode("utf-8")) for text in batch)
                for ids in encode_texts(tokenizer, batch):
                    np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32).tofile(file)
        if not n_bytes:
            raise UserError(f"{name}: the text is empty; give a source with text in it")
        sync_file(path)
        keep_piece(note, {"bytes": n_bytes, "sha256": sha256_of_file(str(path))})
    accelerator.wait_for_everyone()
    return np.memmap(path, dtype=np.int32, mode="r"), int(kept_piece(note)["bytes"])


def _is_whole(path: Path, note: dict[str, Any] | None) -> bool:
    """Whether the stream of an earlier run is undamaged."""
    return note is not None and path.is_file() and sha256_of_file(str(path)) == note["sha256"]


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
