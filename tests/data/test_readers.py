import gzip
import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from gptlife.data.errors import UserError
from gptlife.data.readers import ending_of, read_file, read_jsonl


def read(path):
    return list(read_file(str(path)))


def read_collecting(path):
    problems = []
    rows = list(read_file(str(path), on_bad=lambda error: problems.append(str(error))))
    return [row.fields for row in rows], problems


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


RECORDS = [{"text": "one\ntwo", "n": 1}, {"text": "käse 😀", "n": 2}]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def test_every_kind_and_packing_gives_the_same_rows(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    bodies = {".jsonl": LINES, ".json": json.dumps(RECORDS, indent=1)}
    for ending, body in bodies.items():
        write(tmp_path / f"a{ending}", body)
        write(tmp_path / f"a{ending}.gz", gzip.compress(body.encode()))
        two_frames = zstandard.compress(body[:9].encode()) + zstandard.compress(body[9:].encode())
        write(tmp_path / f"a{ending}.zst", two_frames)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 7
    for path in paths:
        assert [row.fields for row in read(path)] == RECORDS, path.name
    write(tmp_path / "lines.json", LINES)
    assert [row.fields for row in read(tmp_path / "lines.json")] == RECORDS


def test_lines_longer_than_a_read_are_joined(tmp_path):
    body = "x" * 3_000_001
    path = write(tmp_path / "a.jsonl", json.dumps({"text": body}) + "\n" + json.dumps({"text": "end"}))
    assert [row.fields["text"] for row in read(path)] == [body, "end"]


def test_a_txt_is_one_document(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\r\ntwo\n")
    assert read(path) == [(str(path), {"text": "one\n\ntwo\n"})]


def test_csv_has_quotes_and_tsv_has_none(tmp_path):
    csv_path = write(tmp_path / "a.csv", '\ufeffprompt,completion\n"a, b\n""c""",d\ne,f\n')
    assert [tuple(row.fields.values()) for row in read(csv_path)] == [('a, b\n"c"', "d"), ("e", "f")]
    assert [row.place for row in read(csv_path)] == [f"{csv_path}:2", f"{csv_path}:4"]
    tsv_path = write(tmp_path / "a.tsv", 'prompt\tcompletion\n"a" b\t"c\n')
    assert [row.fields for row in read(tsv_path)] == [{"prompt": '"a" b', "completion": '"c'}]


def test_a_csv_cell_may_be_longer_than_the_csv_modules_limit(tmp_path):
    assert len(read(write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n"))[0].fields["text"]) == 200_000


def test_broken_lines_are_told_apart_and_reading_goes_on(tmp_path):
    good = b'{"text": "ok"}\n'
    bad = [
        b'{"text": \n',
        b"\n",
        b"[1]\n",
        b'{"text": "\xe4"}\n',
        b'{"text": "\\ud83d"}\n',
        b'{"text": "\\ud83d\\ude00"}\n',
    ]
    path = write(tmp_path / "a.jsonl", good + b"".join(bad) + good)
    rows, problems = read_collecting(path)
    assert rows == [{"text": "ok"}, {"text": "😀"}, {"text": "ok"}]
    expected = [
        ":2: not valid JSON",
        ":4: a row must be an object",
        ":5: not UTF-8 (byte 0xe4 at position 10)",
        ":6: half",
    ]
    assert len(problems) == len(expected)
    for problem, beginning in zip(problems, expected, strict=True):
        assert problem.startswith(f"{path}{beginning}")
    with pytest.raises(UserError, match=r"a\.jsonl:2: not valid JSON \(.*\); fix or remove the line"):
        read(path)


def test_broken_tables_name_the_line(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n1,2\n1,2,3\n"x"y,2\n5,6\n')
    rows, problems = read_collecting(path)
    assert rows == [{"a": "1", "b": "2"}, {"a": "5", "b": "6"}]
    assert problems[0].startswith(f"{path}:3: 3 columns where the first line has 2")
    assert problems[1].startswith(f"{path}:4: not valid .csv")


def test_a_txt_in_latin1_names_line_and_byte(tmp_path):
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8 \(byte 0xe4 at position 5\)"):
        read(write(tmp_path / "a.txt", "one\nkäse".encode("latin-1")))


def test_a_broken_json_list_names_the_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.json:2: not valid JSON"):
        read(write(tmp_path / "a.json", '[{"a": 1},\n{"a" 2}]'))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_file_that_is_cut_short_is_refused_at_every_length(tmp_path, pack):
    # Text that packs badly, so that the cut falls into the data.
    body = "\n".join(json.dumps({"text": hashlib.sha256(str(i).encode()).hexdigest()}) for i in range(200)).encode()
    packed = pack(body)
    path = tmp_path / ("a.jsonl.gz" if pack is gzip.compress else "a.jsonl.zst")
    for length in (len(packed) - 1, len(packed) // 2, 5):
        with pytest.raises(UserError, match="cut short or damaged") as caught:
            read(write(path, packed[:length]))
        assert "\n" not in str(caught.value)
    assert len(read(write(path, packed))) == 200


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_of_another_kind_than_its_ending_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cut short or damaged"):
        read(write(tmp_path / name, LINES))


def test_the_longest_ending_counts():
    assert [ending_of(name) for name in ("a.jsonl.gz", "A.TXT", "a.b.json", "a.gz", "jsonl", ".csv.zst")] == [
        ".jsonl.gz", ".txt", ".json", "", "", ".csv.zst",
    ]  # fmt: skip


# --- what gptlife itself wrote --------------------------------------------------------------------------------------


def test_own_rows_are_read_as_they_were_written(tmp_path):
    rows = [{"text": "käse\u2028\n", "nan": float("inf")}, {}, {"a": [[[]]]}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_jsonl(path, "x") == rows
    assert read_jsonl(write(tmp_path / "b.jsonl", ""), "x") == []


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (b'{"a": 1}\n{"a": ', r"a\.jsonl:2: damaged \(Expecting value\); make it again$"),
        (b'{"a": 1}\n\n[1]\n', r"a\.jsonl:3: damaged \(found list, not an object\); make it again$"),
        (
            b'{"a": 1}\n{"a": "\xe4"}\n',
            r"a\.jsonl:2: damaged \('utf-8' codec can't decode byte 0xe4.*\); make it again$",
        ),
        (b"[" * 200_000, r"a\.jsonl:1: damaged \(nested too deeply\); make it again$"),
    ],
)
def test_own_rows_that_are_damaged_are_named(tmp_path, lines, complaint):
    with pytest.raises(UserError, match=complaint):
        read_jsonl(write(tmp_path / "a.jsonl", lines), "make it again")


def test_own_rows_that_are_gone(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: can't be read \(No such file or directory\); run it again$"):
        read_jsonl(tmp_path / "a.jsonl", "run it again")
