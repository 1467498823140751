import pytest

from gptlife.data.errors import UserError, suggest


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain: käse 😀", "plain: käse 😀"),
        ("two\nlines\r\x1b[31mred", "two\\nlines\\r\\x1b[31mred"),
        ("\u2028 and \x00", "\\u2028 and \\x00"),
        # A word can't be turned around or hidden by a mark that is not printed.
        ("a\u202eb\u200b", "a\\u202eb\\u200b"),
    ],
)
def test_an_error_stays_one_printable_line(text, line):
    assert str(UserError(text)) == line
    assert str(UserError(text)).isprintable()


def test_a_similar_name_is_suggested():
    assert suggest("pretrian", ["tokenizer", "pretrain", "sft"]) == "; did you mean 'pretrain'?"


def test_otherwise_all_names_are_listed():
    assert suggest("xyz", ["tokenizer", "pretrain"]) == "; there are: tokenizer, pretrain"
    assert suggest("xyz", ["tokenizer", "pretrain", "tokenizer"]) == "; there are: tokenizer, pretrain"  # each once
