"""The store: a directory of outputs by address, and a few files about them.

<root>/<address>/          finished outputs (`<address>.partial/` while one is being made)
<root>/runs/<recipe>.json  the addresses of a recipe's last run
<root>/reports/            one page per recipe
<root>/.work/              the stage.yaml of every step that was started
<root>/.hashes.json        content hashes of data files, so that each file is read once
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptlife.data.config import sha256_of_file
from gptlife.data.errors import UserError, suggest
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.files import read_json, write_text

_SETTLED_NS = 100_000_000
"""A file changed within this time may change again with the same time stamp, so its hash is not kept."""


class Store:
    """Outputs by address under one root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._hashes: dict[str, list[Any]] | None = None
        self._hashes_changed = False

    def path(self, address: str) -> Path:
        """Where the output of an address is, or will be."""
        return self.root / address

    def outputs(self) -> list[Path]:
        """Every finished output, sorted by name."""
        return sorted(path.parent for path in self.root.glob(f"*/{artifact.MANIFEST}") if _is_whole(path.parent))

    def check(self, path: Path, step: str) -> None:
        """A cheap check of a finished output: every file that its manifest lists exists and has its size.

        Raises:
            UserError: naming the first damaged file.
        """
        act = f"make it again (gptlife run ... --fresh {step})"
        for name, entry in read_json(path / artifact.MANIFEST)["files"].items():
            file = path / name
            if not file.is_file():
                raise UserError(f"{file}: missing, though the manifest lists it; {act}")
            if (size := file.stat().st_size) != entry["bytes"]:
                raise UserError(f"{file}: damaged ({size} bytes instead of {entry['bytes']}); {act}")

    def remove(self, path: Path) -> None:
        """Delete an output and the work towards it. It is renamed first, so that an address never holds half an output.

        Raises:
            UserError: while another process works on it.
        """
        with artifact.locked(path):
            for folder in (path, artifact.partial_of(path)):
                if folder.exists():
                    doomed = folder.with_name(f".removed-{folder.name}")
                    shutil.rmtree(doomed, ignore_errors=True)
                    os.rename(folder, doomed)
                    shutil.rmtree(doomed)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the store atomically, also when two processes write it at the same time.

        Raises:
            UserError: when the store can't be written.
        """
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror}); choose another store") from None
        return path

    # Content hashes of data files

    def hash_file(self, path: str) -> str:
        """sha256 of a file's content, remembered by path, size, times and inode.

        Raises:
            UserError: when it can't be read.
        """
        try:
            key, before = os.path.realpath(path), _stamp(path)
            entry = self._hash_table().get(key)
            if entry is not None and entry[:-1] == before:
                return str(entry[-1])
            digest = sha256_of_file(path)
            settled = before == _stamp(path) and time.time_ns() - max(before[1], before[2]) > _SETTLED_NS
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror}); check the path") from None
        if settled:
            self._hash_table()[key] = [*before, digest]
            self._hashes_changed = True
        return digest

    def save_hashes(self) -> None:
        """Write the remembered hashes. They only save time, so it is not an error if the store can't be written."""
        if self._hashes_changed:
            with suppress(UserError):
                self.write(".hashes.json", json.dumps(self._hashes))
                self._hashes_changed = False

    def _hash_table(self) -> dict[str, list[Any]]:
        if self._hashes is None:
            try:
                self._hashes = dict(json.loads((self.root / ".hashes.json").read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                self._hashes = {}
        return self._hashes

    # What was run here

    def record_run(self, name: str, run: Mapping[str, Any]) -> bool:
        """Remember a recipe's last run, so that its name means its outputs in `show`, `chat` and `report`.

        `run` has `recipe` (what loads it again), `overrides`, and `steps`: address and path of each, by name.

        Returns:
            Whether its last run had the same steps.
        """
        try:
            before = self.last_run(name)
        except UserError:  # a damaged file is replaced
            before = None
        self.write(f"runs/{name}.json", json.dumps(run, indent=1))
        return before is not None and before["steps"] == run["steps"]

    def last_run(self, name: str) -> dict[str, Any] | None:
        """What `record_run` remembered for a recipe's name, or None.

        Raises:
            UserError: when its file is damaged.
        """
        path = self.root / "runs" / f"{name}.json"
        if not path.is_file():
            return None
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            return {key: run[key] for key in ("recipe", "overrides", "steps")}
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{path}: damaged; gptlife run {name} replaces it") from None

    def find(self, target: str, suits: Callable[[Path], bool] = artifact.is_complete) -> Path:
        """The output meant by an address, a directory, `recipe` (its last step that `suits`) or `recipe:step`.

        Raises:
            UserError: when there is none.
        """
        if artifact.is_complete(self.path(target)):
            return self.path(target)
        name, _, step = target.partition(":")
        if run := self.last_run(Path(name).stem):
            return self._step_of(run, name, step, suits)
        if Path(target).is_dir():
            return Path(target).absolute()
        names = [path.name for path in self.outputs()] + [path.stem for path in self.root.glob("runs/*.json")]
        hint = suggest(target, names) if names else "; start with: gptlife run RECIPE"
        raise UserError(f"{target}: not a directory, an address or a recipe that was run in {self.root}{hint}")

    def _step_of(self, run: dict[str, Any], name: str, step: str, suits: Callable[[Path], bool]) -> Path:
        paths = {key: self._path_now(entry) for key, entry in run["steps"].items()}
        if step:
            if step not in paths:
                raise UserError(f"{name}:{step}: the recipe has no such step{suggest(step, list(paths))}")
            if not paths[step].is_dir():
                raise UserError(f"{name}:{step}: not made yet; gptlife run {name} --until {step}")
            return paths[step]
        for path in reversed(paths.values()):
            if path.is_dir() and suits(path):
                return path
        raise UserError(f"{name}: no finished output in {self.root} fits here; gptlife run {name}")

    def _path_now(self, step: Mapping[str, str]) -> Path:
        """Where the output of a step that was run is: in this store, a copied one too, or where it was adopted."""
        path = Path(step["path"])
        return self.path(step["address"]) if path.name == step["address"] else path


def _is_whole(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.endswith(".partial")


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
