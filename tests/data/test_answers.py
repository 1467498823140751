"""Encoded by hand: 261 entries are bytes and special tokens only, so a text has as many tokens as letters."""

import pytest

from gptlife.data.answers import encode_answers
from gptlife.data.errors import UserError
from gptlife.data.tokens import SMALLEST_VOCABULARY, Encoded, encode_text, train_tokenizer

TOKENIZER = train_tokenizer(["x"], vocab_size=SMALLEST_VOCABULARY, model_max_length=8)
END = TOKENIZER.eos_token_id
USER, ASSISTANT = (TOKENIZER.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant"))
ASK = [{"role": "user", "content": "why"}]


def ids(text):
    return encode_text(TOKENIZER, text)


PROMPT = [USER, *ids("why"), ASSISTANT]  # 5 tokens


def encode(answers, finished=None, *, limit, too_long, messages=ASK):
    """The answers' tokens; each row must begin with the prompt's."""
    rows = encode_answers(TOKENIZER, messages, answers, finished, limit=limit, too_long=too_long, place="x: prompt 3")
    parts = [row and row.split() for row in rows]
    assert all(part is None or part[0] == Encoded.prompt(PROMPT) for part in parts)
    return [part and part[1] for part in parts]


@pytest.mark.parametrize("too_long", ["drop", "cut", "refuse"])
def test_within_the_limit_every_policy_gives_the_same(too_long):
    encoded = encode(["ab", "", "abc"], [True, True, False], limit=8, too_long=too_long)
    # The first and the last have 8 tokens: exactly the limit.
    assert encoded == [[*ids("ab"), END], [END], ids("abc")]


def test_without_a_word_on_it_all_answers_ended():
    assert encode(["a", "b"], limit=9, too_long="refuse") == [[*ids("a"), END], [*ids("b"), END]]
    assert encode(["a", "b"], [False, True], limit=9, too_long="refuse") == [ids("a"), [*ids("b"), END]]


def test_drop_leaves_the_long_ones_out_and_keeps_their_places():
    encoded = encode(["abc", "ab", "abcd"], [True, True, False], limit=8, too_long="drop")
    assert encoded == [None, [*ids("ab"), END], None]
    assert encode(["abc"], limit=9, too_long="drop") == [[*ids("abc"), END]]  # the twin: one more fits


def test_cut_keeps_the_first_tokens():
    encoded = encode(["abc", "abcde", "a"], limit=8, too_long="cut")
    # The end token goes first: a cut answer did not end by itself.
    assert encoded == [ids("abc"), ids("abc"), [*ids("a"), END]]
    assert max(len(PROMPT) + len(answer) for answer in encoded) == 8


def test_refuse_names_the_place_and_the_length():
    with pytest.raises(UserError) as caught:
        encode(["ab", "abc"], limit=8, too_long="refuse")
    line = "x: prompt 3 has 9 tokens with its answer, the limit is 8; shorten it or leave it out"
    assert str(caught.value) == line
    # The twin: cut off, it has no end token and fits.
    assert encode(["ab", "abc"], [True, False], limit=8, too_long="refuse")[1] == ids("abc")


@pytest.mark.parametrize("limit", [5, 4])
def test_a_prompt_that_leaves_no_room(limit):
    with pytest.raises(UserError) as caught:
        encode(["a"], limit=limit, too_long="cut")
    assert str(caught.value) == f"x: prompt 3 has 5 tokens, the limit is {limit}; shorten it so that an answer fits"
    assert encode(["a"], limit=limit, too_long="drop") == [None]
    with pytest.raises(UserError, match=f"has 7 tokens with its answer, the limit is {limit}"):
        encode(["a"], limit=limit, too_long="refuse")
    assert encode(["a"], limit=6, too_long="cut") == [ids("a")]  # the twin: room for one token


def test_an_empty_cut_off_answer_beside_a_full_prompt_has_no_tokens():
    assert encode([""], [False], limit=5, too_long="drop") == [[]]


def test_each_answer_needs_its_mark():
    with pytest.raises(ValueError, match="zip"):
        encode(["a", "b"], [True], limit=99, too_long="drop")
