import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from gptlife.data.config import Config, decode, sha256_of_file
from gptlife.data.errors import UserError
from gptlife.data.sources import Data, Source, files, mix, rows


class Holder(Config):
    data: Data


def read(path, **options):
    return list(rows(Source(path=str(path), **options)))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- the config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        ("a.txt", ["a.txt"]),
        ({"path": "a.txt"}, ["a.txt"]),
        (["a.txt", {"path": "b.jsonl", "weight": 2}], ["a.txt", "b.jsonl"]),
    ],
)
def test_data_takes_a_path_a_table_or_a_list(raw, paths):
    assert [source.path for source in decode(Holder, {"data": raw}, "x").data] == paths


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({}, "exactly one of path, hub, village"),
        ({"path": "a.txt", "hub": "b"}, "exactly one of path, hub, village"),
        ({"path": []}, "path is empty"),
        ({"hub": "a/b"}, "revision"),
        ({"hub": "a/b", "revision": "main"}, "revision"),
        ({"path": "a.txt", "revision": "v1"}, "belong to `hub`"),
        ({"path": "a.txt", "weight": 0}, "greater than 0"),
        ({"path": "a.txt", "start": -1}, "greater than or equal to 0"),
        ({"paht": "a.txt"}, "did you mean 'path'"),
        ([], "at least 1 item"),
    ],
)
def test_bad_sources_are_refused_in_one_line(raw, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        decode(Holder, {"data": raw}, "stage.yaml")
    assert "\n" not in str(caught.value)


def test_identity_knows_contents_but_not_paths(tmp_path):
    one, other = write(tmp_path / "a.txt", "hello"), write(tmp_path / "sub.txt", "hello")
    identity = Source(path=str(one)).identity(sha256_of_file)
    assert identity["files"] == [[".txt", hashlib.sha256(b"hello").hexdigest()]]
    assert identity == Source(path=str(other)).identity(sha256_of_file)
    assert str(tmp_path) not in json.dumps(identity)
    write(other, "hello!")
    assert identity != Source(path=str(other)).identity(sha256_of_file)


def test_identity_changes_with_everything_that_changes_rows(tmp_path):
    path = str(write(tmp_path / "a.csv", "text\nhello\n"))
    same_bytes = str(write(tmp_path / "a.txt", "text\nhello\n"))
    sources = [
        Source(path=path),
        Source(path=same_bytes),
        Source(path=[path, path]),
        Source(path=path, fields={"text": "0"}),
        Source(path=path, start=1),
        Source(path=path, limit=1),
        Source(path=path, weight=2.0),
        Source(path=path, bad_rows="skip"),
        Source(hub="a/b", revision="v1"),
        Source(hub="a/b", revision="v2"),
        Source(hub="a/b", revision="v1", name="c"),
        Source(hub="a/b", revision="v1", split="test"),
    ]
    assert len({json.dumps(source.identity(sha256_of_file)) for source in sources}) == len(sources)


def test_village_identity_has_its_version(monkeypatch):
    from gptlife.data.village import source as village

    source = decode(Source, {"village": {"part": "web", "count": 3}}, "x")
    before = source.identity(sha256_of_file)
    assert before["village"]["count"] == 3
    monkeypatch.setattr(village, "VERSION", village.VERSION + 1)
    assert source.identity(sha256_of_file) != before


# --- files ----------------------------------------------------------------------------------------------------------


def test_patterns_are_expanded_in_sorted_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl"):
        write(tmp_path / name, "{}")
    found = files(Source(path=[str(tmp_path / "*.txt"), str(tmp_path / "c.jsonl")]))
    assert [Path(path).name for path in found] == ["a.txt", "b.txt", "c.jsonl"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    assert files(Source(path=str(write(tmp_path / "a[1].txt", "x")))) == [str(tmp_path / "a[1].txt")]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("*.parquet", None, "no file matches"),
        ("none.txt", None, "no such file"),
        ("empty.txt", b"", "is empty"),
        ("a.pdf", b"x", r"unknown ending; known are \.txt"),
        ("", None, "is a folder"),
    ],
)
def test_unusable_paths_are_refused(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        files(Source(path=str(tmp_path / name)))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_columns_named_by_number_mean_no_header(tmp_path):
    path = write(tmp_path / "a.tsv", "q1\ta1\nq2\ta2\n")
    found = read(path, fields={"question": "0", "answer": "1"})
    assert [row.fields for row in found] == [{"0": "q1", "1": "a1"}, {"0": "q2", "1": "a2"}]


def test_start_and_limit_take_disjoint_rows_over_all_files(tmp_path):
    for name, numbers in (("a", range(3)), ("b", range(3, 7))):
        write(tmp_path / f"{name}.jsonl", "".join(f'{{"n": {n}}}\n' for n in numbers))
    pattern = tmp_path / "*.jsonl"
    assert [row.fields["n"] for row in read(pattern, limit=4)] == [0, 1, 2, 3]
    assert [row.fields["n"] for row in read(pattern, start=4)] == [4, 5, 6]
    assert [row.fields["n"] for row in read(pattern, start=2, limit=2)] == [2, 3]


def test_hub_rows_are_loaded_at_the_revision(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(rows(Source(hub="x/y", revision="v1", name="small", split="test", limit=1)))
    assert asked == [(("x/y", "small"), {"split": "test", "revision": "v1"})]
    assert found == [("x/y@v1 [test]:1", {"text": "a"})]


def test_a_hub_failure_is_one_line(monkeypatch):
    import datasets

    def load_dataset(*args, **options):
        raise FileNotFoundError("no such thing\nTraceback and more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"x/y@v1 \[train\]: can't be loaded \(no such thing\)"):
        list(rows(Source(hub="x/y", revision="v1")))


def test_village_rows_come_through():
    source = decode(Source, {"village": {"part": "web", "count": 3}}, "x")
    found = list(rows(source))
    assert [row.place for row in found] == ["village web:1", "village web:2", "village web:3"]
    assert all(row.fields["text"] for row in found)


# --- mixing ---------------------------------------------------------------------------------------------------------


def test_equal_weights_concatenate():
    assert list(mix([iter("ab"), iter("cd")], [3.0, 3.0], seed=1)) == list("abcd")


def test_weights_are_shares_and_order_is_kept():
    streams = [[("a", i) for i in range(10_000)], [("b", i) for i in range(10_000)]]
    mixed = list(mix([iter(stream) for stream in streams], [3.0, 1.0], seed=1))
    for stream in streams:
        mine = [item for item in mixed if item[0] == stream[0][0]]
        assert mine == stream[: len(mine)]
    share = Counter(name for name, _ in mixed)["a"] / len(mixed)
    assert abs(share - 0.75) < 0.02
    assert abs(share - 0.5) > 0.2  # the twin: equal shares would be seen
    assert mixed == list(mix([iter(stream) for stream in streams], [3.0, 1.0], seed=1))
    assert mixed != list(mix([iter(stream) for stream in streams], [3.0, 1.0], seed=2))


def test_the_mix_ends_when_a_drawn_source_has_nothing_left():
    mixed = list(mix([iter(range(5)), iter(range(100, 1100))], [1.0, 2.0], seed=0))
    assert [item for item in mixed if item < 100] == list(range(5))
    assert len(mixed) < 100
