"""Hook of mkdocs.yml: pages from outside docs/, and links that lead out of docs/.

README.md and its like are pages of the site as well as of the repository. A link of any page to a source file (a test,
a tool, an example) becomes a link to a page that shows the file, so the site is complete wherever it is hosted. A link
to a file that does not exist is left as it is, and the strict build fails on it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
"""Files of the repository that are pages of the site."""
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "sh", ".md": "markdown"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside, and a page for every source file that any page links to."""
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    texts |= {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=texts[name]))
    sources = {target for name, text in texts.items() for target in targets(text, name) if is_source(target)}
    for source in sorted(sources):
        files.append(File.generated(config, page_of(source), content=shown(source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let the links of a page lead to pages of the site."""
    source = origin(page.file.src_uri)

    def linked(match: re.Match[str]) -> str:
        target = resolved(match[1], source)
        if not (ROOT / target).exists():
            return match[0]
        relative = os.path.relpath(page_of(target), PurePosixPath(page.file.src_uri).parent)
        return relative + (match[2] or "")

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(linked, part) for part in parts)


def origin(uri: str) -> str:
    """The file of the repository that a page of the site was made from."""
    return next((name for name, page in PAGES.items() if page == uri), f"docs/{uri}")


def targets(text: str, name: str) -> set[str]:
    """What the links of a file lead to, from the root of the repository."""
    return {resolved(match[1], name) for match in LINK.finditer(FENCE.sub("", text))}


def resolved(link: str, name: str) -> str:
    """A link in a file, from the root of the repository."""
    return os.path.normpath(PurePosixPath(name).parent / link)


def is_source(target: str) -> bool:
    """Whether a target is a file or folder of the repository that has no page yet."""
    return not target.startswith(("docs/", "..")) and target not in PAGES and (ROOT / target).exists()


def page_of(target: str) -> str:
    """The page or file of the site that shows a file of the repository."""
    return PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"source/{target}.md")


def shown(source: str) -> str:
    """The page that shows a source file, or lists a folder's files. The search leaves it out."""
    path = ROOT / source
    head = f"---\nsearch: {{exclude: true}}\ntitle: {source}\n---\n# `{source}`\n\n"
    if path.is_dir():
        return head + "".join(f"- `{file.name}`\n" for file in sorted(path.iterdir()) if file.is_file())
    return f"{head}````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}````\n"
