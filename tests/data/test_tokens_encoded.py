"""Rows as a model reads them, by hand."""

from dataclasses import FrozenInstanceError

import pytest

from gptlife.data.tokens import Encoded


def test_a_prompt_and_its_answers():
    prompt = Encoded.prompt((3, 20, 4))
    assert (prompt.tokens, prompt.marks, len(prompt)) == ([3, 20, 4], [False] * 3, 3)
    row = prompt.followed_by([7, 0])
    assert (row.tokens, row.marks, len(row)) == ([3, 20, 4, 7, 0], [False, False, False, True, True], 5)
    # The prompt stays as it is: its next answer does not follow the first.
    assert prompt.followed_by([8]).tokens == [3, 20, 4, 8]


@pytest.mark.parametrize("answer", [[7, 0], [7], []])
def test_split_takes_apart_what_was_put_together(answer):
    prompt = Encoded.prompt([3, 20, 4])
    assert prompt.followed_by(answer).split() == (prompt, answer)
    assert prompt.followed_by(answer) != Encoded.prompt([3, 20, 4, *answer]) or not answer


def test_all_but_the_last():
    row = Encoded([3, 4, 7, 0], [False, False, True, False])
    assert row.without_last() == Encoded([3, 4, 7], [False, False, True])


def test_nothing_changes_it():
    with pytest.raises(FrozenInstanceError):
        Encoded.prompt([3]).tokens = [4]
