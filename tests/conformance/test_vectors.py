"""vectors.json is what the oracles say, gptlife agrees with every vector, and every known mistake is told apart."""

from __future__ import annotations

import json
from typing import Any

import make_vectors
import ours
import page
import pytest
from compare import agree, differences
from vector import text as vector_text

CONTENT = make_vectors.made()
VECTORS = {vector["name"]: vector for vector in CONTENT["vectors"]}


def test_the_file_is_what_the_oracles_make() -> None:
    """Committed and made anew are the same, but for the last digits that a C library may turn."""
    committed = json.loads(make_vectors.PATH.read_text(encoding="utf-8"))
    same_shape(committed, json.loads(vector_text(CONTENT)))
    # Twin: another number in one vector is seen.
    committed["vectors"][0]["expected"]["result"][0][2] += 1
    with pytest.raises(AssertionError):
        same_shape(committed, CONTENT)


def same_shape(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            same_shape(one[name], two[name])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            same_shape(first, second)
    else:
        assert one == (pytest.approx(two, abs=1e-10) if isinstance(two, float) else two)


@pytest.mark.parametrize("name", list(VECTORS))
def test_gptlife_agrees(name: str) -> None:
    """Ours equals the expected value far closer than is asked of others, and no known mistake."""
    vector = VECTORS[name]
    found = ours.FUNCTIONS[vector["function"]](vector["inputs"])
    # Averaged weights are kept in float32, whatever the model's are.
    agree(found, vector["expected"], 1e-6 if vector["function"] == "ema" else 1e-7)
    for wrong in vector["broken"].values():
        with pytest.raises(AssertionError):
            agree(found, wrong["value"], vector["tolerance"])


@pytest.mark.parametrize("name", list(VECTORS))
def test_known_mistakes_are_told_apart(name: str) -> None:
    """A mistake lies ten tolerances from the truth and from every other mistake, so a difference has one name."""
    vector = VECTORS[name]
    values = {"right": vector["expected"], **{wrong: known["value"] for wrong, known in vector["broken"].items()}}
    for one, first in values.items():
        for two, second in values.items():
            if one != two:
                assert differences(first, second, 10 * vector["tolerance"]), (one, two)


def test_every_function_has_a_vector() -> None:
    """No adapter without a vector, and the other way round."""
    assert {vector["function"] for vector in VECTORS.values()} == set(ours.FUNCTIONS)


def test_the_page_is_made_from_the_suite() -> None:
    """docs/conformance.md has each detail with its test's sentence, every vector, and the numbers of today."""
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.made(text) == text, "run tools/conformance/page.py"
    assert sum(map(len, page.details().values())) >= 73
    assert page.made(text.replace(f"{len(VECTORS)} vectors", "7 vectors").replace("KL", "LK")) != text
