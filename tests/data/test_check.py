import json

import pytest

from gptlife.data.check import check, render
from gptlife.data.errors import UserError
from gptlife.data.sources import Source


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def mixed(tmp_path):
    return write(
        tmp_path / "a.jsonl",
        {"question": "one two", "answer": "three"},
        "{broken\n",
        {"question": "one two", "answer": ""},
        {"prompt": "a", "chosen": "b c", "rejected": "d e f"},
        {"question": "one two", "answer": "three"},
        {"x": 1},
        {"text": "word " * 40},
    )


def test_a_mixed_file_is_read_to_its_end(mixed):
    report = check(mixed)
    assert report.place == mixed
    assert report.rows == 4
    assert report.formats == {"question_answer": 2, "pair": 1, "text": 1}
    assert report.duplicates == 1
    assert report.unit == "words"
    assert report.lengths == {2: 2, 4: 1, 32: 1}  # 3, 3, 6 and 40 words
    assert (report.total, report.longest) == (52, 40)
    beginnings = [":2: not valid JSON", ":3: answer ('answer') is empty", ":6: no known format (fields: x)"]
    assert len(report.problems) == len(beginnings)
    for problem, beginning in zip(report.problems, beginnings, strict=True):
        assert problem.startswith(mixed + beginning)


def test_the_rendered_report(mixed):
    lines = render(check(mixed)).split("\n")
    assert lines[1:4] == [
        "  format      question_answer 2, pair 1, text 1",
        "  rows        4 usable, 3 not, 1 repeated",
        "  words       52 in all, 13.0 per row, longest 40",
    ]
    assert [line.split() for line in lines[4:7]] == [
        ["2-3", "2", "#" * 40],
        ["4-7", "1", "#" * 20],
        ["32-63", "1", "#" * 20],
    ]
    assert lines[7] == "  problems    3"
    assert len(lines) == 11


def test_many_problems_are_cut(tmp_path):
    path = write(tmp_path / "a.jsonl", *[{"x": 1}] * 25)
    report = check(path)
    assert len(report.problems) == 25
    assert render(report).endswith("... and 5 more")


def test_prompts_and_a_field_map(tmp_path):
    path = write(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "hello"}]})
    assert check(path).formats == {"messages (prompt)": 1}
    path = write(tmp_path / "b.jsonl", {"q": "hello"})
    assert check(Source(path=path, fields={"prompt": "q"})).formats == {"prompt": 1}


def test_labelled_answers_are_named_with_all_their_text(tmp_path):
    good = {"prompt": "one two", "completion": "three", "label": True}
    asked = {"messages": [{"role": "user", "content": "x"}], "label": True}
    report = check(write(tmp_path / "a.jsonl", good, {**good, "completion": "four five", "label": 0}, asked))
    assert report.formats == {"labelled": 2}
    assert (report.total, report.longest) == (3 + 4, 4)
    assert [problem.partition(".jsonl")[2] for problem in report.problems] == [
        ":3: the last turn is the user's, not the assistant's; fix or remove the row, or set bad_rows: skip"
    ]


def test_lengths_in_tokens(tmp_path):
    from gptlife.data.tokens import train_tokenizer

    # 261 entries are bytes and special tokens only, so a text has as many tokens as bytes.
    train_tokenizer(["x"], vocab_size=261, model_max_length=8).save_pretrained(tmp_path / "tokenizer")
    path = write(tmp_path / "a.jsonl", {"text": "käse"}, {"text": "<|pad|> and more"})
    report = check(path, tokenizer=str(tmp_path / "tokenizer"))
    assert report.unit == "tokens"
    assert (report.total, report.longest) == (5 + 16, 16)
    assert report.lengths == {4: 1, 16: 1}


def test_a_missing_tokenizer_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "hello")
    with pytest.raises(UserError, match="no tokenizer there"):
        check(path, tokenizer=str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        check(path, tokenizer=str(tmp_path / "none"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        check(str(tmp_path / "none.jsonl"))


def test_a_file_without_a_usable_row_still_has_a_report(tmp_path):
    report = check(write(tmp_path / "a.jsonl", "{\n"))
    assert (report.rows, report.total, report.lengths) == (0, 0, {})
    assert "format      none" in render(report)


def test_shared_hh(shared_data):
    report = check(str(shared_data / "preference/hh_harmless_base_part_train.jsonl.gz"))
    assert report.formats == {"pair": 1379}
    assert report.rows + len(report.problems) == 1404
