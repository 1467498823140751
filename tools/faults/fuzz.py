"""Throw a million mutated files at each reader: no crash, no hang, nothing accepted that isn't so.

    pip install atheris
    python tools/faults/fuzz.py                         all targets
    python tools/faults/fuzz.py jsonl csv --jobs 2      these, two at once
        --runs 1000000 --seconds 600 --page docs/results/fuzz.md

Coverage-guided (libFuzzer), seeded with the corpus of bad inputs. A reader may refuse with a `UserError` of one line;
any other exception is a finding, and so is an input that takes more than five seconds, or one of these:

    jsonl, json   a row that is not what a second, plain reading of its line gives; a line that is neither row nor fault
    csv, tsv      a row whose columns are not those of the header
    gz, zst       a row from a file that the compression's own tool calls damaged
    rows          a conversation, prompt, label or ranking that breaks what the stages are promised (data/forms.py)
    chat          a control token that came out of a turn's text
    recipe        a recipe that is not a table of known steps

Each target runs in its own process; libFuzzer's last lines say how many inputs it tried. The page keeps the rows
of targets that are not run this time.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

CORPUS = Path(__file__).parents[2] / "tests" / "bad_inputs" / "files"
TARGETS = ("jsonl", "json", "csv", "tsv", "txt", "gz", "zst", "parquet", "rows", "chat", "recipe")


def main() -> int:
    """Fuzz each target in its own process, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long; 0: when the runs are done")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="targets at once")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--here", action="store_true", help="the one target in this process")
    arguments = parser.parse_args()
    targets = arguments.targets or list(TARGETS)
    if unknown := set(targets) - {*TARGETS}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if arguments.here:
        return fuzz(targets[0], arguments.runs, arguments.seconds, arguments.seed)
    limits = ["--runs", str(arguments.runs), "--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]

    def one(target: str) -> tuple[str, str]:
        words = [sys.executable, __file__, target, "--here", *limits]
        begun = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        tried = re.findall(r"^stat::number_of_executed_units: (\d+)$", done.stdout + done.stderr, re.MULTILINE)
        seconds, findings = time.monotonic() - begun, int(done.returncode != 0)
        row = f"| {target} | {int(tried[-1]) if tried else 0:,} | {seconds:,.0f} | {findings} |"
        print(row, *([done.stderr[-3000:]] if done.returncode else []), sep="\n", flush=True)
        return target, row

    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = dict(pool.map(one, targets))
    if arguments.page:
        write_page(arguments.page, rows)
    return int(any(row.endswith("| 1 |") for row in rows.values()))


def write_page(path: Path, rows: dict[str, str]) -> None:
    """The table, with the rows that stand there already."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    kept = {line.split()[1]: line for line in lines if line.startswith("| ") and line.split()[1] in TARGETS}
    table = [{**kept, **rows}[target] for target in TARGETS if target in {**kept, **rows}]
    corpus = yaml.safe_load((CORPUS.parent / "expected.yaml").read_text("utf-8"))
    refused = sum("says" in case for case in corpus)
    lines = [
        "# Bad input",
        "",
        f"[{len(corpus)} broken or odd files](../../tests/bad_inputs/expected.yaml) are read by the default tests: "
        f"{refused} are refused, each with the line given there; {len(corpus) - refused} are good data that looks bad, "
        "and are read. None is accepted silently as something else. [Broken "
        "models](../../tests/stages/modeling/test_broken_models.py) and [numbers out of "
        "bounds](../../tests/stages/training/test_bounds.py) are refused too.",
        "",
        "## Fuzzing",
        "",
        "Made by `python tools/faults/fuzz.py --page docs/results/fuzz.md` (one target or several: the rows of the "
        "others stay). Inputs are mutations of [the corpus](../../tests/bad_inputs/expected.yaml), guided by what they "
        "reach; a finding is a crash, a hang, a refusal of several lines, or something accepted that isn't so "
        "([which](../../tools/faults/fuzz.py)).",
        "",
        "| target | inputs tried | seconds | findings |",
        "| --- | --: | --: | --: |",
        *table,
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fuzz(target: str, runs: int, seconds: int, seed: int) -> int:
    """libFuzzer on one target; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["gptlife.data", "csv", "json"]):
        check = target_of(target)
    folder = Path(tempfile.mkdtemp(prefix="gptlife-fuzz-"))
    seeds = folder / "seeds"
    seeds.mkdir()
    for path in CORPUS.iterdir():
        if path.stat().st_size < 4096:
            (seeds / path.name).write_bytes(path.read_bytes())
    options = [
        f"-runs={runs}",
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        "-timeout=5",
        "-max_len=2048",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", f"-artifact_prefix={folder}/", str(seeds)], check)
    atheris.Fuzz()
    return 0


def target_of(name: str) -> Callable[[bytes], None]:
    """What is called with each input."""
    from gptlife.data import forms
    from gptlife.data.errors import UserError
    from gptlife.data.readers import Row, read_file

    scratch = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()) / f"gptlife-fuzz-{name}"

    def read(content: bytes, ending: str) -> tuple[list[Row], list[str]]:
        path = scratch.with_suffix(ending)
        path.write_bytes(content)
        faults: list[UserError] = []
        rows = list(read_file(str(path), on_bad=faults.append))
        for fault in faults:
            one_line(fault)
        return rows, [str(fault) for fault in faults]

    def one_line(error: UserError) -> None:
        assert "\n" not in str(error), repr(str(error))
        assert len(str(error)) < 2000, repr(str(error)[:100])

    def refusing(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def called(content: bytes) -> None:
            try:
                check(content)
            except UserError as error:
                one_line(error)

        return called

    def jsonl(content: bytes) -> None:
        rows, faults = read(content, ".jsonl")
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for row in rows:
            line = lines[int(row.place.rpartition(":")[2]) - 1]
            assert json.loads(line.decode("utf-8")) == row.fields, row
        filled = sum(1 for line in lines if not _blank(line))
        assert len(rows) + len(faults) == filled, (len(rows), faults, filled)

    def whole_json(content: bytes) -> None:
        rows, faults = read(content, ".json")
        if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            assert len(rows) + len(faults) == len(json.loads(content.decode("utf-8-sig")))

    def delimited(ending: str) -> Callable[[bytes], None]:
        def check(content: bytes) -> None:
            rows, _ = read(content, ending)
            columns = {tuple(row.fields) for row in rows}
            assert len(columns) <= 1, columns
            assert all(isinstance(cell, str) for row in rows for cell in row.fields.values())

        return check

    def packed(content: bytes) -> None:
        """Half of the inputs are packed here, so that mutations reach what is inside."""
        if content[:1] < b"\x80":
            content = gzip.compress(content[1:], mtime=0)
        rows, _ = read(content, ".jsonl.gz")
        if rows:
            gzip.GzipFile(fileobj=io.BytesIO(content)).read()

    def zstandard_packed(content: bytes) -> None:
        import zstandard

        read(zstandard.compress(content[1:]) if content[:1] < b"\x80" else content, ".jsonl.zst")

    def parquet(content: bytes) -> None:
        read(content, ".parquet")

    def text(content: bytes) -> None:
        rows, faults = read(content, ".txt")
        assert len(rows) + len(faults) == 1
        if rows:
            assert rows[0].fields["text"] == content.decode("utf-8-sig").replace("\r\n", "\n")

    def rows_of(content: bytes) -> None:
        fields = drawn_fields(content)
        for convert in (
            forms.to_text,
            forms.to_prompt,
            forms.to_conversation,
            forms.to_label,
            forms.to_ranking,
            forms.to_choices,
        ):
            try:
                keeps_promise(convert.__name__, convert(Row("x:1", fields), None))
            except UserError as error:
                one_line(error)

    def recipe(content: bytes) -> None:
        from gptlife.pipelines.lifecycle import LIFECYCLE
        from gptlife.pipelines.recipe import load

        path = scratch.with_suffix(".yaml")
        path.write_bytes(content)
        loaded = load(str(path), [], LIFECYCLE)
        assert all(table.step.name for table in loaded.tables)

    checks: dict[str, Callable[[bytes], None]] = {
        "jsonl": jsonl,
        "json": whole_json,
        "csv": delimited(".csv"),
        "tsv": delimited(".tsv"),
        "txt": text,
        "gz": packed,
        "zst": zstandard_packed,
        "parquet": parquet,
        "rows": rows_of,
        "recipe": recipe,
    }
    return refusing(chat() if name == "chat" else checks[name])


def _blank(line: bytes) -> bool:
    """Whether a line holds nothing; one that is not UTF-8 is a fault, not a blank."""
    try:
        return not line.removesuffix(b"\r").decode("utf-8").strip()
    except UnicodeDecodeError:
        return False


def drawn_fields(content: bytes) -> dict[str, Any]:
    """A row of known field names with values of every kind, drawn from the input."""
    import atheris

    from gptlife.data.formats import KNOWN_FIELDS

    draw, names = atheris.FuzzedDataProvider(content), sorted(KNOWN_FIELDS)

    def text() -> str:
        return str(draw.ConsumeUnicodeNoSurrogates(draw.ConsumeIntInRange(0, 12)))

    def turns() -> list[Any]:
        keys = draw.PickValueInList([("role", "content"), ("from", "value")])
        roles = ["user", "assistant", "system", "human", "gpt", "tool"]
        return [
            {keys[0]: draw.PickValueInList(roles), keys[1]: draw.PickValueInList([text(), text(), None, 3])}
            for _ in range(draw.ConsumeIntInRange(0, 5))
        ]

    def numbers() -> list[Any]:
        values = [1, 2, 3, 0, -1, 1.5, True, None, "1"]
        return [draw.PickValueInList(values) for _ in range(draw.ConsumeIntInRange(0, 4))]

    def value() -> Any:
        kinds: list[Callable[[], Any]] = [
            text,
            turns,
            numbers,
            lambda: [text() for _ in range(draw.ConsumeIntInRange(0, 4))],
            lambda: "\n\nHuman: " + text() + "\n\nAssistant: " + text(),
            lambda: draw.PickValueInList([None, 0, 1, 2, 1.5, True, {}, [], float("nan")]),
            lambda: {text(): text()},
        ]
        return draw.PickValueInList(kinds)()

    return {draw.PickValueInList(names): value() for _ in range(draw.ConsumeIntInRange(0, 6))}


def keeps_promise(name: str, form: dict[str, Any]) -> None:
    """What data/forms.py says of each form."""
    if "messages" in form:
        roles = [turn["role"] for turn in form["messages"]]
        spoken = roles[1:] if roles[:1] == ["system"] else roles
        assert spoken == [("user", "assistant")[turn % 2] for turn in range(len(spoken))], roles
        assert roles[-1] == ("assistant" if name == "to_conversation" else "user"), roles
        assert all(turn["content"] == turn["content"].strip() != "" for turn in form["messages"])
    if "ranks" in form:
        assert len(form["ranks"]) == len(form["answers"]) >= 2
        assert all(type(rank) is int and rank >= 1 for rank in form["ranks"])
        assert all(type(answer) is str for answer in form["answers"])
    if "label" in form:
        assert type(form["label"]) is bool
        assert form["answer"] == form["answer"].strip() != ""
    if "choices" in form:
        assert 0 <= form["gold"] < len(form["choices"])
    if name == "to_text":
        assert form["text"].strip()


def chat() -> Callable[[bytes], None]:
    """Any text as a turn: its characters come back, and control tokens are the template's alone."""
    from gptlife.data.tokens import ASSISTANT, END, SPECIALS, USER, encode_conversation, encode_text, train_tokenizer

    tokenizer = train_tokenizer(["A hat and a cat. " * 20], 300, 10_000)
    control = dict(zip(SPECIALS, tokenizer.convert_tokens_to_ids(list(SPECIALS)), strict=True))

    def check(content: bytes) -> None:
        question, _, answer = content.decode("utf-8", errors="ignore").partition("\0")
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        row = encode_conversation(tokenizer, messages)
        tokens, said = row.tokens, row.marks
        begins, speaks, ends = control[USER], control[ASSISTANT], control[END]
        expected = [begins, *encode_text(tokenizer, question), speaks, *encode_text(tokenizer, answer), ends]
        assert tokens == expected, (question, answer)
        assert [token for token in tokens if token in control.values()] == [begins, speaks, ends]
        assert tokenizer.decode(encode_text(tokenizer, question)) == question
        assert sum(said) == len(encode_text(tokenizer, answer)) + 1

    return check


if __name__ == "__main__":
    sys.exit(main())
