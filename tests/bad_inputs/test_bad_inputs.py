"""A corpus of files that are broken or look broken: each is refused in one line, or read correctly.

`expected.yaml`, written by hand, says what each must give. A file that is too large to keep is made here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlife.data import forms
from gptlife.data.errors import UserError
from gptlife.data.sources import Source

HERE = Path(__file__).parent
CASES = yaml.safe_load((HERE / "expected.yaml").read_text(encoding="utf-8"))


def load(path: Path, kind: str, **more: Any) -> list[Any]:
    return list(getattr(forms, kind)([Source(path=str(path), **more)]))


def test_every_file_has_its_line_and_the_corpus_is_large() -> None:
    assert Counter(case["file"] for case in CASES) == Counter(path.name for path in (HERE / "files").iterdir())
    assert sum("says" in case for case in CASES) >= 60
    assert all(("says" in case) != ("rows" in case) for case in CASES)


@pytest.mark.parametrize("case", [case for case in CASES if "says" in case], ids=lambda case: case["file"])
def test_refused_in_one_line(case: dict[str, Any]) -> None:
    path = HERE / "files" / case["file"]
    with pytest.raises(UserError) as caught:
        load(path, case["as"])
    said = str(caught.value)
    assert said.startswith(case["says"].format(file=path))
    assert "\n" not in said
    assert len(said) < 500
    # Skipping leaves exactly the good rows; a damaged file is refused even then.
    if "left" in case:
        assert len(load(path, case["as"], bad_rows="skip")) == case["left"]
    else:
        with pytest.raises(UserError):
            load(path, case["as"], bad_rows="skip")


@pytest.mark.parametrize("case", [case for case in CASES if "rows" in case], ids=lambda case: case["file"])
def test_read_correctly(case: dict[str, Any]) -> None:
    path = HERE / "files" / case["file"]
    assert len(load(path, case["as"])) == case["rows"]


def test_a_line_of_a_hundred_megabytes(tmp_path: Path) -> None:
    path, text = tmp_path / "long.jsonl", "word " * 20_000_000
    path.write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "b"}) + "\n" + "{" + text, encoding="utf-8")
    rows = forms.texts([Source(path=str(path))])
    assert [len(next(rows)), len(next(rows))] == [100_000_000, 1]
    with pytest.raises(UserError, match=r"long\.jsonl:3: not valid JSON") as caught:
        next(rows)
    assert len(str(caught.value)) < 500
