"""What GitHub, citation managers and pre-commit read is well-formed, and CI runs what `make check` runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import gptlife

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_what_a_user_runs() -> None:
    steps = read(".github/workflows/ci.yml")["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert "make check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_issue_forms_have_what_the_hub_needs() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = read(str(path.relative_to(ROOT)))
        if path.stem != "config":
            assert {"name", "description", "body"} <= form.keys()
            assert all(field["type"] and field["attributes"]["label"] for field in form["body"])


def test_pre_commit_has_the_ruff_of_the_constraints() -> None:
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert f"v{pinned[1]}" in {repo["rev"] for repo in read(".pre-commit-config.yaml")["repos"]}


def test_the_citation_is_complete_and_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "title", "message", "authors", "license", "version"} <= citation.keys()
    assert gptlife.__version__.startswith(citation["version"])
