import pytest

from gptlife.data.errors import UserError
from gptlife.data.splits import split


@pytest.mark.parametrize(
    ("share", "held"),
    [(0.1, [9]), (0.25, [8, 9]), (0.26, [7, 8, 9]), (0.9, [1, 2, 3, 4, 5, 6, 7, 8, 9])],
)
def test_the_last_rows_are_held_out(share, held):
    # 2.5 rows are rounded to the even number.
    assert split(list(range(10)), share, "x") == ([row for row in range(10) if row not in held], held)


def test_every_row_is_on_one_side_in_order():
    for count in range(2, 40):
        rows = list(range(count))
        kept, held = split(rows, 0.5, "x")
        assert kept + held == rows


@pytest.mark.parametrize(("count", "share"), [(10, 0.04), (10, 0.96), (10, 0.0), (10, 1.0), (1, 0.5), (0, 0.5)])
def test_an_empty_side_is_refused(count, share):
    with pytest.raises(UserError) as caught:
        split(list(range(count)), share, "sft.validation")
    fault = f"sft.validation: a share of {share} of {count} rows leaves no row on one side"
    assert str(caught.value) == f"{fault}; give another share, or more rows"
