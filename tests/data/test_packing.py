import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlife.data.errors import UserError
from gptlife.data.packing import length_batches, pack_examples

LENGTHS = st.lists(st.integers(0, 20), max_size=60)


def test_examples_by_hand():
    # Longest first: 7 alone, 6 alone, 4 beside 6 (nothing left), 3 beside 7 (nothing left), 2 new.
    assert pack_examples([3, 7, 2, 6, 4], capacity=10) == [[0, 1], [2], [3, 4]]


def test_best_fit_beats_first_fit():
    # After 6 and 5, both rows have room for 4; the fuller one takes it, so that 5 still fits.
    assert pack_examples([6, 5, 4, 5], capacity=10) == [[0, 2], [1, 3]]


def test_too_long_an_example_is_refused():
    with pytest.raises(UserError, match="example 1: 11 tokens, a row holds 10"):
        pack_examples([1, 11], capacity=10)


@given(LENGTHS, st.integers(20, 40))
def test_rows_hold_every_example_once_within_capacity(lengths, capacity):
    rows = pack_examples(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert rows == sorted(rows)
    # Best-fit decreasing never leaves two rows that would fit into one another.
    fills = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(fills) < 2 or fills[0] + fills[1] > capacity


def test_batches_by_hand():
    # Longest first: 9 fills 2 x 9 <= 20; then 5, 5, 4, 1 as 4 x 5 <= 20.
    assert length_batches([5, 9, 1, 8, 5, 4], tokens_per_batch=20) == [[1, 3], [0, 4, 5], [2]]
    # A row shorter than 3/4 of the longest begins another batch, once the batch has an eighth of its tokens.
    assert length_batches([8, 6, 5], tokens_per_batch=64) == [[0, 1], [2]]
    assert length_batches([8, 6, 5], tokens_per_batch=136) == [[0, 1, 2]]


def test_a_batch_holds_at_least_one_token():
    with pytest.raises(ValueError, match="tokens_per_batch must be positive, found 0"):
        length_batches([1], tokens_per_batch=0)


@given(LENGTHS, st.integers(1, 60))
def test_batches_hold_every_example_once_within_the_limit(lengths, tokens_per_batch):
    batches = length_batches(lengths, tokens_per_batch=tokens_per_batch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= tokens_per_batch or len(batch) == 1
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
