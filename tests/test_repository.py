"""What GitHub, citation managers and pre-commit read is well-formed, and CI runs what `make check` runs."""

from __future__ import annotations

import re
import tomllib
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


def test_the_workflow_builds_the_site_as_make_does() -> None:
    runs = [step["run"] for step in read(".github/workflows/ci.yml")["jobs"]["docs"]["steps"] if "run" in step]
    assert runs[-1] == "mkdocs build --strict"
    assert runs[-1] in (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert all(re.split(r"[>=<]", package)[0] in runs[0] for package in wanted["docs"])


def test_issue_forms_have_what_the_hub_needs() -> None:
    paths = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {path.stem for path in paths} == {"bug", "config", "feature", "question"}
    for path in paths:
        form = read(str(path.relative_to(ROOT)))
        if path.stem != "config":
            assert {"name", "description", "body"} <= form.keys()
            assert all(field["type"] and field["attributes"]["label"] for field in form["body"])


def test_pre_commit_has_the_ruff_of_the_constraints() -> None:
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert f"v{pinned[1]}" in {repo["rev"] for repo in read(".pre-commit-config.yaml")["repos"]}


def test_the_pull_request_template_asks_for_numbers() -> None:
    text = (ROOT / ".github" / "pull_request_template.md").read_text(encoding="utf-8")
    assert "| | before | after |" in text
    assert "three seeds" in text


def test_the_citation_is_complete_and_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "title", "message", "authors", "license", "version"} <= citation.keys()
    assert gptlife.__version__.startswith(citation["version"])
