"""The store: a directory of outputs by address, and the little that is remembered beside them.

<root>/<address>/          finished outputs (`<address>.partial/` while one is being made)
<root>/runs/<recipe>.json  the addresses of a recipe's last run
<root>/reports/            one page a recipe
<root>/.work/              the stage.yaml of every step that was started
<root>/.hashes.json        content hashes of data files, so that gigabytes are read once
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptlife.data.config import sha256_of_file
from gptlife.data.errors import UserError, suggest
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.recipe import Recipe
from gptlife.stages.runtime import artifact
from gptlife.stages.runtime.files import read_json, write_text

_SETTLED_NS = 100_000_000
"""A file changed within this time may change again without its time stamp moving, so its hash is not kept."""


class Store:
    """Outputs by address under one root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._hashes: dict[str, list[Any]] | None = None
        self._hashes_changed = False

    def path(self, address: str) -> Path:
        """Where the output of an address lies, or will lie."""
        return self.root / address

    def artefacts(self) -> list[Path]:
        """Every finished output, sorted by name."""
        return sorted(path.parent for path in self.root.glob(f"*/{artifact.MANIFEST}") if _is_whole(path.parent))

    def check(self, path: Path, step: str) -> None:
        """Cheap look at a finished output: every file that its manifest lists is there with its size.

        Raises:
            UserError: naming the first damaged file.
        """
        for name, entry in read_json(path / artifact.MANIFEST)["files"].items():
            file = path / name
            if not file.is_file():
                raise UserError(f"{file}: missing, though the manifest lists it; make it again with --fresh {step}")
            if (size := file.stat().st_size) != entry["bytes"]:
                raise UserError(
                    f"{file}: damaged ({size} bytes instead of {entry['bytes']}); make it again with --fresh {step}"
                )

    def remove(self, path: Path) -> None:
        """Delete an output and the work towards it. The rename comes first: an address never holds half an output.

        Raises:
            UserError: while another process works on it.
        """
        with artifact.locked(path):
            for place in (path, artifact.partial_of(path)):
                if place.exists():
                    doomed = place.with_name(f".removed-{place.name}")
                    shutil.rmtree(doomed, ignore_errors=True)
                    os.rename(place, doomed)
                    shutil.rmtree(doomed)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the store, whole or not at all, also when two processes write it at the same time.

        Raises:
            UserError: when the store can't be written.
        """
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror}); choose another place: --store DIR") from None
        return path

    # Content hashes of data files

    def hash_file(self, path: str) -> str:
        """sha256 of a file's content, remembered by path, size, times and inode.

        Raises:
            UserError: when it can't be read.
        """
        try:
            key, before = os.path.realpath(path), _stamp(path)
            known = self._hash_table().get(key)
            if known is not None and known[:-1] == before:
                return str(known[-1])
            digest = sha256_of_file(path)
            settled = before == _stamp(path) and time.time_ns() - max(before[1], before[2]) > _SETTLED_NS
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror}); check the path") from None
        if settled:
            self._hash_table()[key] = [*before, digest]
            self._hashes_changed = True
        return digest

    def save_hashes(self) -> None:
        """Write the remembered hashes. They only save time, so a store that can't be written is no error."""
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

    def record_run(self, recipe: Recipe, planned: list[Planned]) -> bool:
        """Remember a recipe's addresses, so that its name stands for them in `show`, `chat` and `report`.

        Returns:
            Whether its last run had the same ones.
        """
        try:
            before = self.last_run(recipe.name)
        except UserError:  # damaged, and written anew now
            before = None
        steps = {step.name: {"address": step.address, "path": str(step.path)} for step in planned}
        run = {"recipe": recipe.source, "overrides": list(recipe.overrides), "steps": steps}
        self.write(f"runs/{recipe.name}.json", json.dumps(run, indent=1))
        return before is not None and before["steps"] == steps

    def last_run(self, name: str) -> dict[str, Any] | None:
        """What `record_run` remembered for a recipe's name, or None.

        Raises:
            UserError: when its file is damaged.
        """
        path = self.root / "runs" / f"{name}.json"
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {key: found[key] for key in ("recipe", "overrides", "steps")}
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{path}: damaged; gptlife run {name} writes it anew") from None

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
        known = [path.name for path in self.artefacts()] + [path.stem for path in self.root.glob("runs/*.json")]
        hint = suggest(target, known) if known else "; start with: gptlife run RECIPE"
        raise UserError(f"{target}: no directory, and neither an address nor a recipe run in {self.root}{hint}")

    def _step_of(self, run: dict[str, Any], name: str, step: str, suits: Callable[[Path], bool]) -> Path:
        paths = {key: Path(entry["path"]) for key, entry in run["steps"].items()}
        if step:
            if step not in paths:
                raise UserError(f"{name}:{step}: the recipe has no such step{suggest(step, list(paths))}")
            if not paths[step].is_dir():
                raise UserError(f"{name}:{step}: not made yet; gptlife run {name} --until {step}")
            return paths[step]
        for path in reversed(paths.values()):
            if path.is_dir() and suits(path):
                return path
        raise UserError(f"{name}: nothing of it is finished in {self.root} that serves here; gptlife run {name}")


def _is_whole(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.endswith(".partial")


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
