"""Run the smoke life, with `dpo` and `kto`, on the lowest versions of the dependencies that pyproject.toml allows.

    python tools/lowest.py                            # a fresh environment in build/lowest, about 2 GB
    python tools/lowest.py --instead torch==2.13.0    # another version of a package than its lowest

A lower bound that fails here is too low: raise it. Not part of `make check`, because of its size; run before a release.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
RIVALS = """
dpo: {learning_rate: 1.0e-4, batch_size: 16, pairs: best_worst}
kto: {learning_rate: 1.0e-4, batch_size: 16}
"""
"""Tables added to the recipe `smoke`, which has neither."""


def lowest(dependencies: list[str], instead: list[str]) -> list[str]:
    """`name==lowest version` of every dependency, but those of `instead` (also `name==version`)."""
    pins = {}
    for dependency in dependencies:
        match = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", dependency)
        if match is None:
            raise SystemExit(f"pyproject.toml: {dependency}: has no lower bound; write name>=version")
        pins[match[1]] = f"{match[1]}=={match[2]}"
    return [*(pins | {pin.partition("==")[0]: pin for pin in instead}).values()]


def main() -> None:
    """Make the environment and run the life."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instead", action="append", default=[], metavar="NAME==VERSION")
    arguments = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = lowest(project["dependencies"], arguments.instead)
    print("\n".join(pins), flush=True)
    folder, store, recipe = (BUILD / name for name in ("lowest", "lowest-store", "lowest.yaml"))
    venv.create(folder, clear=True, with_pip=True)
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    pip = [folder / "bin/python", "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--constraint", folder / "constraints.txt", "--editable", ROOT], check=False).returncode:
        sys.exit("the lowest versions can't be installed together: see above which conflict, and raise a bound")
    smoke = (ROOT / "pipelines/recipes/smoke.yaml").read_text(encoding="utf-8")
    recipe.write_text(smoke + RIVALS, encoding="utf-8")
    shutil.rmtree(store, ignore_errors=True)
    sys.exit(subprocess.run([folder / "bin/gptlife", "run", recipe, "--store", store], check=False).returncode)


if __name__ == "__main__":
    main()
