"""Write the numbers and the table of details into docs/conformance.md, from the tests, mutations and vectors.

python tools/conformance/page.py
"""

from __future__ import annotations

import ast
import json
import re

from make_vectors import PATH, SUITE
from mutants import ROOT, mutations

PAGE = ROOT / "docs" / "conformance.md"
MARK = "<!-- From here on: tools/conformance/page.py -->\n"


def made(page: str) -> str:
    """The page with the numbers and the table that belong to the suite as it is."""
    vectors = json.loads(PATH.read_text(encoding="utf-8"))["vectors"]
    numbers = {
        r"\d+(?= details\. )": sum(map(len, details().values())),
        r"\d+(?= ways)": len(mutations()),
        r"\d+(?= vectors of )": len(vectors),
        r"(?<=vectors of )\d+": len({vector["detail"] for vector in vectors}),
        r"(?<=is ours, in )\d+": round(len((SUITE / "ours.py").read_text(encoding="utf-8").splitlines()), -1),
    }
    for pattern, number in numbers.items():
        page = re.sub(pattern, str(number), page)
    return page[: page.index(MARK)] + MARK + tables(vectors)


def details() -> dict[str, dict[str, str]]:
    """Name and sentence of each detail, by the file of its test; test_vectors.py has none."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(SUITE.glob("test_*.py")):
        tests = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
        named = {test.name.removeprefix("test_"): test for test in tests if test.name.startswith("test_")}
        if path.name != "test_vectors.py":
            found[path.name] = {name: (ast.get_docstring(test) or "").splitlines()[0] for name, test in named.items()}
    return found


def tables(vectors: list[dict[str, str]]) -> str:
    """One table per file of tests, then one of the vectors."""
    text = ""
    for file, rows in details().items():
        text += f"\n### `{file}`\n\n| detail | what, and its source |\n|---|---|\n"
        for name, sentence in rows.items():
            escaped = sentence.replace("|", r"\|")
            text += f"| `{name}` | {escaped} |\n"
    text += "\n### `vectors.json`\n\n| detail | function | vectors |\n|---|---|---|\n"
    for detail in dict.fromkeys(vector["detail"] for vector in vectors):
        own = [vector for vector in vectors if vector["detail"] == detail]
        text += f"| `{detail}` | `{own[0]['function']}` | {len(own)} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
