import hashlib
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from gptlife.data.config import Added, BelowOne, Config, Execution, Share, Was, decode, sha256_of_file, walk_configs
from gptlife.data.errors import UserError


class Sampling(Config):
    """Inner fields, one of them renamed."""

    top_p: Annotated[Share, Was("nucleus")] = 1.0
    """Share of the probability that is sampled from."""


class Training(Config):
    """One field of every kind."""

    learning_rate: float
    """Peak."""
    gamma: Annotated[Share, Was("discount")] = 1.0
    """Discount per token."""
    micro_batch: Execution[int] = 8
    """Rows at once."""
    rows_at_once: Annotated[Execution[int], Was("rows")] = 4
    """Renamed and not in the address."""
    group_by: Added[str] = "use_case"
    """Came later."""
    layers: Added[list[int]] = Field(default_factory=lambda: [1, 2])
    """Came later, with a list as its default."""
    sampling: Sampling = Sampling()
    """A table."""
    more: list[Sampling] = []
    """A list of tables."""
    either: Literal["no"] | Sampling = "no"
    """A word or a table."""


def refusal(raw, model=Training):
    with pytest.raises(UserError) as caught:
        decode(model, raw, "x.yaml: sft")
    assert "\n" not in str(caught.value)
    return str(caught.value)


PLAIN = {"learning_rate": 0.5, "discount": 1.0, "sampling": {"nucleus": 1.0}, "more": [], "either": "no"}


def identity(**fields):
    return decode(Training, {"learning_rate": 0.5, **fields}, "x").identity(str)


# --- the address ----------------------------------------------------------------------------------------------------


def test_identity_has_all_that_decides_a_result():
    assert identity() == PLAIN


def test_a_renamed_field_enters_under_its_old_name():
    assert identity(gamma=0.9) == {**PLAIN, "discount": 0.9}
    assert identity(sampling={"top_p": 0.5}) == {**PLAIN, "sampling": {"nucleus": 0.5}}
    assert identity(more=[{"top_p": 0.5}]) == {**PLAIN, "more": [{"nucleus": 0.5}]}
    assert identity(either={"top_p": 0.5}) == {**PLAIN, "either": {"nucleus": 0.5}}


def test_how_a_result_is_computed_does_not_enter():
    assert identity(micro_batch=1, rows_at_once=2) == PLAIN
    assert identity(gamma=0.5) != PLAIN  # the twin


def test_an_added_field_enters_only_away_from_its_default():
    assert identity(group_by="use_case", layers=[1, 2]) == PLAIN
    assert identity(group_by="task") == {**PLAIN, "group_by": "task"}
    assert identity(layers=[2, 1]) == {**PLAIN, "layers": [2, 1]}


def test_what_has_no_json_form_is_no_part_of_an_address():
    class Odd(Config):
        value: object = None

    assert Odd(value={"a": (1, None, "b", True)}).identity(str) == {"value": {"a": [1, None, "b", True]}}
    with pytest.raises(TypeError, match="has no canonical JSON form"):
        Odd(value=1j).identity(str)


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    assert sha256_of_file(str(tmp_path / "a")) == hashlib.sha256(b"hello").hexdigest()


# --- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"learning_rate": 1.0, "discount": 0.9}, "discount: this field is called 'gamma' now; rename it"),
        ({"learning_rate": 1.0, "rows": 2}, "rows: this field is called 'rows_at_once' now; rename it"),
        (
            {"learning_rate": 1.0, "sampling": {"nucleus": 0.9}},
            "sampling.nucleus: this field is called 'top_p' now; rename it",
        ),
        (
            {"learning_rate": 1.0, "more": [{"top_p": 0.9}, {"nucleus": 0.9}]},
            "more.1.nucleus: this field is called 'top_p' now; rename it",
        ),
        (
            {"learning_rate": 1.0, "either": {"nucleus": 0.9}},
            "either.nucleus: this field is called 'top_p' now; rename it",
        ),
        # The old name of a field of another table is an unknown one.
        (
            {"learning_rate": 1.0, "nucleus": 0.9},
            "nucleus: no such field; there are: learning_rate, gamma, micro_batch, ",
        ),
        ({"learning_rat": 1.0}, "learning_rat: no such field; did you mean 'learning_rate'?"),
        ({"learning_rate": 1.0, "sampling": {"top": 0.9}}, "sampling.top: no such field; did you mean 'top_p'?"),
        ({}, "learning_rate: required, but not given"),
        (None, "learning_rate: required, but not given"),
        ({"learning_rate": "1"}, "learning_rate: input should be a valid number, found '1'"),
        ({"learning_rate": float("inf")}, "learning_rate: input should be a finite number, found inf"),
        ({"learning_rate": 1.0, "gamma": 2.0}, "gamma: input should be less than or equal to 1, found 2.0"),
        ({"learning_rate": 1.0, "micro_batch": True}, "micro_batch: input should be a valid integer, found True"),
    ],
)
def test_refused_in_one_line_with_its_place(raw, line):
    said = refusal(raw)
    assert said.startswith(f"x.yaml: sft.{line}")


def test_a_field_of_a_file_follows_a_colon():
    class Pair(Config):
        low: int = 0

        @model_validator(mode="after")
        def _low(self):
            if self.low > 1:
                raise ValueError(f"low: {self.low} is above 1")
            return self

    for raw, line in (({"hihg": 1}, "hihg: no such field"), ({"low": 2}, "low: 2 is above 1")):
        for where, place in (("a/stage.yaml", "a/stage.yaml: "), ("x.yaml: sft", "x.yaml: sft."), ("sft", "sft.")):
            with pytest.raises(UserError) as error:
                decode(Pair, raw, where)
            assert str(error.value).startswith(place + line)


def test_what_is_not_a_table_is_refused():
    assert refusal([1]) == "x.yaml: sft: expected a table of fields, found [1]"


def test_a_validator_of_several_fields_may_name_its_field():
    class Window(Config):
        low: int = 0
        high: int = 9

        @model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError(f"low: {self.low} is above high ({self.high})")
            if self.low == 3:
                raise ValueError("three is not allowed")
            return self

    class Outer(Config):
        window: Window

    assert refusal({"window": {"low": 10}}, Outer) == "x.yaml: sft.window.low: 10 is above high (9)"
    assert refusal({"window": {"low": 3}}, Outer) == "x.yaml: sft.window: three is not allowed"


def test_shares_have_their_ends():
    class Shares(Config):
        share: Share = 0.0
        below: BelowOne = 0.0

    assert decode(Shares, {"share": 1.0, "below": 0.999}, "x") == Shares(share=1.0, below=0.999)
    assert refusal({"below": 1.0}, Shares) == "x.yaml: sft.below: input should be less than 1, found 1.0"
    assert (
        refusal({"share": -0.1}, Shares) == "x.yaml: sft.share: input should be greater than or equal to 0, found -0.1"
    )


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Sampling().top_p = 0.5


def test_every_config_inside_is_walked():
    inner = Sampling(top_p=0.5)
    outer = Training(learning_rate=1.0, more=[inner, inner], either=inner)
    assert list(walk_configs({"a": [outer], "b": 3})) == [outer, Sampling(), inner, inner, inner]
