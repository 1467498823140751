"""Compare what two stores hold of one recipe: does a change leave every number what it was?

    gptlife run smoke --store build/before       # at the commit before the change
    gptlife run smoke --store build/after        # with the change; same machine, same OMP_NUM_THREADS
    python tools/compare_stores.py build/before build/after smoke

Files that hold numbers (weights, answers, rankings, metrics, tokenizers) are compared byte for byte, a log line by line
without its times. Model cards may change their wording: they are listed, but don't count. Exit code 1 when a number
differs or a step is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gptlife.data.config import sha256_of_file

OF_THE_DAY = ("manifest.json", "stage.yaml")
"""Files with times, places and versions."""
TIMES = ("tokens_per_second", "seconds_sampling", "seconds_scoring", "seconds_updating")
WORDS = ".md"
"""Model cards."""


def fingerprint(output: Path) -> dict[str, Any]:
    """Everything in an output that must not depend on when, where and how often it was run, by file."""
    kept: dict[str, Any] = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if not path.is_file() or path.parent.name == "tensorboard":
            continue
        if path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            kept[name] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        elif path.name not in OF_THE_DAY:
            kept[name] = sha256_of_file(str(path))
    return kept


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Names of the files that are not the same in two fingerprints."""
    return sorted(name for name in {*one, *two} if one.get(name) != two.get(name))


def outputs(store: Path, recipe: str) -> dict[str, Path]:
    """The output of each step in a recipe's last run."""
    run = json.loads((store / "runs" / f"{recipe}.json").read_text(encoding="utf-8"))
    return {name: store / step["address"] for name, step in run["steps"].items()}


def compare(before: dict[str, Path], after: dict[str, Path]) -> list[tuple[str, str, bool]]:
    """(step, what is to be said of it, whether its numbers are the same), in the order of the first store."""
    table = []
    for name in [*before, *(name for name in after if name not in before)]:
        if not all(name in steps and steps[name].is_dir() for steps in (before, after)):
            table.append((name, "MISSING in one of the stores", False))
            continue
        one, two = fingerprint(before[name]), fingerprint(after[name])
        wrong = differences(one, two)
        numbers = [file for file in wrong if not file.endswith(WORDS)]
        moved = "" if before[name].name == after[name].name else f", address {before[name].name} -> {after[name].name}"
        said = f"DIFFERS in {', '.join(numbers)}" if numbers else f"same ({len(one)} files)"
        words = (
            f"; other words in {', '.join(file for file in wrong if file.endswith(WORDS))}" if wrong != numbers else ""
        )
        table.append((name, said + words + moved, not numbers))
    return table


def main() -> int:
    """Print a line per step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("recipe", nargs="?", default="smoke")
    arguments = parser.parse_args()
    table = compare(outputs(arguments.before, arguments.recipe), outputs(arguments.after, arguments.recipe))
    for name, said, _ in table:
        print(f"{name:<14} {said}")
    return int(not all(same for _, _, same in table))


if __name__ == "__main__":
    sys.exit(main())
