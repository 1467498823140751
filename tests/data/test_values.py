import pytest

from gptlife.data.values import is_int, is_number


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [
        (0, True, True),
        (-3, True, True),
        (10**400, True, True),  # beyond every float
        (1.0, False, True),
        (-0.5, False, True),
        (float("nan"), False, False),
        (float("inf"), False, False),
        (True, False, False),
        (False, False, False),
        ("1", False, False),
        (None, False, False),
        ([1], False, False),
    ],
)
def test_kinds_of_numbers(value, whole, number):
    assert is_int(value) is whole
    assert is_number(value) is number
