"""The documentation's links: those that leave docs/ lead to pages of the site, and a broken one is left to fail."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

pytest.importorskip("mkdocs")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("uri", "link", "leads_to"),
    [
        ("index.md", "docs/scale.md", "scale.md"),
        ("index.md", "docs/configuration.md#ppo", "configuration.md#ppo"),
        ("index.md", "CHANGELOG.md", "changelog.md"),
        ("index.md", "docs/images/label.png", "images/label.png"),
        ("index.md", "examples/reward_length.py", "source/examples/reward_length.py.md"),
        ("examples.md", "own_data.py", "source/examples/own_data.py.md"),
        ("api.md", "../CONTRIBUTING.md", "contributing.md"),
        ("results/fuzz.md", "../../tools/faults/fuzz.py", "../source/tools/faults/fuzz.py.md"),
        ("results/kills.md", "faults.md", "faults.md"),
        ("index.md", "https://arxiv.org/abs/2203.02155", "https://arxiv.org/abs/2203.02155"),
        ("index.md", "docs/no-such-page.md", "docs/no-such-page.md"),
    ],
)
def test_where_a_link_leads(hook: ModuleType, uri: str, link: str, leads_to: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
    assert hook.on_page_markdown(f"[x]({link})", page, None, None) == f"[x]({leads_to})"


def test_code_is_left_alone(hook: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    text = "```python\nx[0](CHANGELOG.md)\n```\n[x](CHANGELOG.md)\n"
    assert hook.on_page_markdown(text, page, None, None) == text.replace("[x](CHANGELOG", "[x](changelog")


def test_a_source_file_is_shown_whole(hook: ModuleType) -> None:
    shown = hook.shown("tools/site_pages.py")
    assert (ROOT / "tools" / "site_pages.py").read_text(encoding="utf-8") in shown
    assert "- `smoke.yaml`\n" in hook.shown("pipelines/recipes")


def test_broken_links_and_forgotten_pages_fail_the_build() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = yaml.safe_load(text)["validation"]
    assert {validation["links"][name] for name in ("not_found", "anchors")} == {"warn"}
    assert validation["nav"]["omitted_files"] == "warn"
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text(encoding="utf-8")
