"""`gptlife label` over HTTP: what the page is given, what is written and refused; a reward model trained from it."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gptlife.data.errors import UserError
from gptlife.data.forms import rankings
from gptlife.data.sources import Source
from gptlife.pipelines.labeling import session as label
from gptlife.pipelines.labeling.file import LabelFile
from gptlife.pipelines.labeling.server import MAX_BODY, LabelServer
from gptlife.pipelines.store import Store

ASKED = [{"role": "user", "content": "Where is Ulf?"}]
SOURCE = [
    {"messages": ASKED, "answers": ["home", "away", "lost"], "finished": [True, True, False], "meta": {"case": 7}},
    {"prompt": "Who?", "chosen": "Ida", "rejected": "Bo"},
    {"prompt": "When?", "answers": ["now", "then", "never", "once"], "ranks": [1, 2, 3, 4], "labeler": "Alma"},
]


class Reply(NamedTuple):
    status: int
    text: str
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Client:
    """Requests to a server, with its own token unless another path is given."""

    def __init__(self, server: LabelServer) -> None:
        self.server, self.base = server, f"/{server.token}/"

    def __call__(self, method: str, path: str, body: str | bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return Reply(answer.status, answer.read().decode(), answer.headers)
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        reply = self("GET", self.base + path)
        assert reply.status == 200, reply.text
        return reply.json

    def post(self, sent: Any) -> Reply:
        return self("POST", f"{self.base}submit", json.dumps(sent), Content_Type="application/json")

    def rank(self, number: int, opinion: dict[str, tuple[int, int, list[str]]], **more: Any) -> Reply:
        """Hand in (rank, likert, flags) by the answer's text, in the order in which the page shows the answers."""
        prompt = self.get(f"prompt/{number}")
        said = [opinion[answer["text"]] for answer in prompt["answers"]]
        ranks, likert, flags = (list(values) for values in zip(*said, strict=True))
        common = {"key": prompt["key"], "note": "", "seconds": 2.0}
        return self.post({**common, "ranks": ranks, "likert": likert, "flags": flags, **more})

    def skip(self, number: int) -> Reply:
        return self.post({"key": self.get(f"prompt/{number}")["key"], "note": "what?", "seconds": 1, "skip": True})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source.jsonl", SOURCE)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def serve(source: Path, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """`serve(labeler)`: a client of a new server on the source; all of them write out.jsonl."""
    running: list[tuple[LabelServer, threading.Thread]] = []

    def start(labeler: str = "Ida", **more: Any) -> Client:
        session, _ = label.start(str(source), tmp_path / "out.jsonl", labeler, Store(tmp_path / "store"), **more)
        server = LabelServer(session, port=0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((server, thread))
        return Client(server)

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


HOME = {"home": (1, 6, []), "away": (2, 4, ["opinion", "hallucination"]), "lost": (2, 1, ["sexual"])}
WHO = {"Ida": (2, 3, []), "Bo": (1, 7, ["satisfies_constraint"])}
CYCLES = 5
"""A seed with which Ida sees prompts 0 and 2 in orders that are not their own inverse."""
WHEN = {"now": (3, 1, []), "then": (1, 7, []), "never": (1, 7, []), "once": (2, 2, [])}


def test_a_ranking_is_written_as_reward_model_reads_it(serve, tmp_path):
    client = serve(seed=CYCLES)
    assert client.rank(0, HOME, note=" a note ", seconds=12.34).json == {"state": "ranked", "left": 2}
    (row,) = read(tmp_path / "out.jsonl")
    shown, key = row.pop("shown"), row.pop("key")
    assert shown == [1, 2, 0]
    assert row == {
        "messages": ASKED,
        "answers": ["home", "away", "lost"],
        "finished": [True, True, False],
        "meta": {"case": 7},
        "ranks": [1, 2, 2],
        "likert": [6, 4, 1],
        "flags": [[], ["hallucination", "opinion"], ["sexual"]],
        "labeler": "Ida",
        "group": "people",
        "note": "a note",
        "seconds": 12.3,
    }
    prompt = client.get("prompt/0")
    assert prompt["key"] == key
    assert [answer["text"] for answer in prompt["answers"]] == [row["answers"][place] for place in shown]


def test_the_formats_read_equal_ranks(serve, tmp_path):
    client = serve(seed=CYCLES)
    for number, opinion in enumerate((HOME, WHO, WHEN)):
        assert client.rank(number, opinion).status == 200
    found = rankings([Source(path=str(tmp_path / "out.jsonl"))])
    assert [dict(zip(row["answers"], row["ranks"], strict=True)) for row in found] == [
        {text: opinion[text][0] for text in opinion} for opinion in (HOME, WHO, WHEN)
    ]
    assert [(row["group"], row["labeler"]) for row in found] == [("people", "Ida")] * 3
    assert found[0]["meta"] == {"case": 7}
    assert [text for text, ended in zip(found[0]["answers"], found[0]["finished"], strict=True) if not ended] == [
        "lost"
    ]


def test_ranks_with_gaps_become_dense(serve, tmp_path):
    # 2, 2, 4 of 4 answers and 3: three levels.
    serve().rank(2, {"now": (4, 1, []), "then": (2, 5, []), "never": (2, 5, []), "once": (3, 2, [])})
    assert read(tmp_path / "out.jsonl")[0]["ranks"] == [3, 1, 1, 2]


def test_the_page_is_not_told_where_an_answer_comes_from(serve):
    prompt = serve().get("prompt/2")
    assert set(prompt) == {"key", "state", "messages", "answers", "saved", "note"}
    assert prompt["saved"] is None  # the ranks in the source are another labeler's
    assert sorted(answer["text"] for answer in prompt["answers"]) == ["never", "now", "once", "then"]
    assert all(set(answer) == {"text", "finished"} for answer in prompt["answers"])


def top_counts(order: Callable[[label.Prompt], list[int]], prompts: list[label.Prompt]) -> list[int]:
    return [sum(order(prompt)[0] == place for prompt in prompts) for place in range(3)]


def test_position_tells_nothing(tmp_path):
    rows = [{"prompt": f"Is it {number}?", "answers": ["yes", "no", "maybe"]} for number in range(300)]
    prompts, _ = label.load(str(write(tmp_path / "many.jsonl", rows)))
    one, other = (label.Labeling(prompts, tmp_path / "out.jsonl", name) for name in ("Ida", "Bo"))
    # 300 draws of probability 1/3: mean 100, standard deviation 8.2; four of them are 33.
    assert all(67 <= count <= 133 for count in top_counts(one.order, prompts))
    assert not all(67 <= count <= 133 for count in top_counts(lambda prompt: [0, 1, 2], prompts))
    same = sum(one.order(prompt) == other.order(prompt) for prompt in prompts)  # probability 1/6: 50, deviation 6.5
    assert 24 <= same <= 76
    again = label.Labeling(prompts, tmp_path / "out.jsonl", "Ida")
    assert all(again.order(prompt) == one.order(prompt) for prompt in prompts)


def test_a_new_start_goes_on_where_one_left_off(serve, tmp_path):
    serve().rank(1, WHO, note="first")
    client = serve()
    assert client.get("session")["states"] == ["open", "ranked", "open"]
    prompt = client.get("prompt/1")
    texts = [answer["text"] for answer in prompt["answers"]]
    assert prompt["saved"] == {
        "ranks": [WHO[text][0] for text in texts],
        "likert": [WHO[text][1] for text in texts],
        "flags": [WHO[text][2] for text in texts],
    }
    assert prompt["note"] == "first"


def test_an_edited_ranking_replaces_the_old_in_its_place(serve, tmp_path):
    client = serve()
    client.rank(0, HOME, seconds=10)
    client.rank(1, WHO)
    before = read(tmp_path / "out.jsonl")
    changed = {"home": (2, 2, []), "away": (1, 5, []), "lost": (3, 1, [])}
    assert client.rank(0, changed, seconds=5).json == {"state": "ranked", "left": 1}
    after = read(tmp_path / "out.jsonl")
    assert [row["ranks"] for row in after] == [[2, 1, 3], [2, 1]]
    assert after[1] == before[1]
    assert after[0]["seconds"] == 15
    assert not list(tmp_path.glob(".*.new"))


def test_a_skip_stays_out_of_the_file_and_gives_way_to_a_ranking(serve, tmp_path):
    client = serve()
    client.rank(0, HOME)
    assert client.skip(0).json == {"state": "skipped", "left": 2}
    assert client.skip(1).json == {"state": "skipped", "left": 1}
    assert read(tmp_path / "out.jsonl") == []
    assert [row["note"] for row in read(tmp_path / "out.jsonl.skipped")] == ["what?", "what?"]
    client = serve()
    assert client.get("session")["states"] == ["skipped", "skipped", "open"]
    assert client.get("prompt/1")["note"] == "what?"
    assert client.rank(1, WHO).json == {"state": "ranked", "left": 1}
    assert [row["answers"] for row in read(tmp_path / "out.jsonl")] == [["Ida", "Bo"]]
    assert [row["messages"] for row in read(tmp_path / "out.jsonl.skipped")] == [ASKED]


def test_two_labelers_have_their_own_rows_in_one_file(serve, tmp_path):
    ida, bo = serve("Ida"), serve("Bo")
    for client in (ida, bo):
        client.rank(0, HOME)
    assert bo.get("session")["states"] == ["ranked", "open", "open"]
    bo.rank(1, WHO)
    ida.rank(0, {"home": (3, 1, []), "away": (2, 2, []), "lost": (1, 3, [])})
    assert ida.get("session")["states"] == ["ranked", "open", "open"]
    assert [(row["labeler"], row["ranks"]) for row in read(tmp_path / "out.jsonl")] == [
        ("Ida", [3, 2, 1]),
        ("Bo", [1, 2, 2]),
        ("Bo", [2, 1]),
    ]


def test_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "out.jsonl"

    def work(labeler: str) -> None:
        file = LabelFile(path, labeler)
        for turn in (1, 2):  # each row is appended, then edited
            for number in range(15):
                file.put({"messages": [], "labeler": labeler, "key": f"{number:04}", "turn": turn})
        file.drop("0003")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("Ida", "Bo", "Eva")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted((row["labeler"], row["key"], row["turn"]) for row in read(path))
    assert found == sorted((name, f"{n:04}", 2) for name in ("Ida", "Bo", "Eva") for n in range(15) if n != 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ranks": [1, 2]}, "ranks: must be a list of 3"),
        ({"ranks": [0, 1, 2]}, "ranks: must be whole numbers from 1 to 3, found 0"),
        ({"ranks": [1, 2, 4]}, "ranks: must be whole numbers from 1 to 3, found 4"),
        ({"ranks": [1, True, 2]}, "ranks: must be whole numbers from 1 to 3, found True"),
        ({"likert": [1, 7, 8]}, "likert: must be whole numbers from 1 to 7, found 8"),
        ({"likert": [1, 7, None]}, "likert: must be whole numbers from 1 to 7, found None"),
        ({"flags": [[], [], ["nonsense"]]}, "flags: must be lists of marks, found ['nonsense']"),
        ({"flags": [[], [], [[]]]}, "flags: must be lists of marks"),
        ({"flags": "sexual"}, "flags: must be a list of 3"),
        ({"note": 5}, "note: must be text"),
        ({"note": "x" * 5001}, "note: must be text of at most 5000"),
        ({"note": "\ud800"}, "note: must be text"),
        ({"seconds": -1}, "seconds: must be a time"),
        ({"seconds": float("nan")}, "seconds: must be a time"),
        ({"seconds": "1"}, "seconds: must be a time"),
        ({"key": "0123456789abcdef"}, "key: '0123456789abcdef' is not a prompt of this session"),
        ({"key": []}, "key: [] is not a prompt"),
        ({"extra": 1}, "submission: must be an object of"),
        ({"skip": True}, "submission: must be an object of"),
    ],
)
def test_a_bad_submission_is_one_line_and_changes_nothing(serve, tmp_path, change, named):
    client = serve()
    refused = client.rank(0, HOME, **change)
    assert refused.status == 400
    assert refused.text.startswith(named)
    assert refused.text.count("\n") == 1
    assert client.get("session")["states"] == ["open"] * 3
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(serve, body):
    client = serve()
    refused = client("POST", f"{client.base}submit", body, Content_Type="application/json")
    assert (refused.status, refused.text.count("\n")) == (400, 1)


def test_only_who_knows_the_token_may_look_or_write(serve, tmp_path):
    client = serve()
    assert client("GET", client.base).status == 200
    other = "/" + "x" * len(client.server.token) + "/"
    for method, path in (
        ("GET", "/"),
        ("GET", other),
        ("GET", f"{other}session"),
        ("POST", f"{other}submit"),
        ("GET", "//"),
    ):
        refused = client(method, path, "{}" if method == "POST" else None, Content_Type="application/json")
        assert refused.status == 403
        assert refused.text == "wrong or old address; open the one that `gptlife label` printed last\n"
        assert client.server.token not in refused.text
    assert serve().server.token != client.server.token
    assert len(client.server.token) >= 20


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 403) for name in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "[bad", "")),
        *((name, 200) for name in ("localhost:1", "127.0.0.1", "[::1]:80")),
    ],
)
def test_a_name_that_is_not_the_servers_is_refused(serve, host, status):
    client = serve()
    assert client("GET", f"{client.base}session", Host=host).status == status


def test_posts_of_other_sites_and_of_forms_are_refused(serve):
    client = serve()
    path, own = f"{client.base}submit", f"127.0.0.1:{client.server.server_port}"
    sent = json.dumps({"key": client.get("prompt/0")["key"], "note": "", "seconds": 1, "skip": True})
    as_json = {"Content_Type": "application/json"}
    assert client("POST", path, sent, Origin="http://evil.example", **as_json).status == 403
    assert client("POST", path, sent, Origin="null", **as_json).status == 403
    assert client("POST", path, sent, Content_Type="text/plain").status == 415
    assert client("POST", path, sent).status == 415
    assert client.get("session")["states"][0] == "open"
    assert client("POST", path, sent, Origin=f"http://{own}", **as_json).status == 200
    assert client.get("session")["states"][0] == "skipped"


def test_sizes_and_methods_are_bounded(serve):
    client = serve()
    path, as_json = f"{client.base}submit", {"Content_Type": "application/json"}
    assert client("POST", path, " " * (MAX_BODY + 1), **as_json).status == 413
    assert client("POST", path, " ", Content_Length="-1", **as_json).status == 411
    for method, unknown in (("GET", "other"), ("GET", "prompt/x"), ("GET", "../../etc/passwd"), ("POST", "session")):
        assert client(method, client.base + unknown, "" if method == "POST" else None).status == 404
    assert client("GET", f"{client.base}prompt/3").status == 400
    put = client("PUT", path, "{}")
    assert (put.status, put.text) == (501, "Unsupported method ('PUT')\n")


def test_the_page_may_run_only_its_own_script_and_reach_only_its_server(serve):
    client = serve()
    page = client("GET", client.base)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert (page.headers["Cache-Control"], page.headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?:", page.text)


@pytest.mark.parametrize("before", [[], [HOME]], ids=["new", "edited"])
def test_a_full_disk_is_said_and_leaves_the_file_as_it_was(serve, tmp_path, monkeypatch, before):
    client = serve()
    for opinion in before:
        client.rank(0, opinion)
    path = tmp_path / "out.jsonl"
    held = path.read_bytes() if before else b""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    changed = {"home": (3, 1, []), "away": (2, 2, []), "lost": (1, 3, [])}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused = client.rank(0, changed)
    assert refused.status == 500
    assert refused.text == "out.jsonl: can't be written (No space left on device); make room, then save again\n"
    assert path.read_bytes() == held
    assert not (tmp_path / ".out.jsonl.new").exists()
    assert client.get("session")["states"][0] == ("ranked" if before else "open")
    assert client.rank(0, changed).status == 200
    assert [row["ranks"] for row in read(path)] == [[3, 2, 1]]


def test_a_line_cut_off_by_a_crash_is_removed(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = b'{"messages": [], "labeler": "Ida", "key": "a"}\n'
    for torn in (b"{", b'{"messages": [{"ro', b'{"messages": "\xc3'):
        path.write_bytes(whole + torn)
        assert list(LabelFile(path, "Ida").rows) == ["a"]
        assert path.read_bytes() == whole


def test_what_others_wrote_is_kept_byte_by_byte(tmp_path):
    path = tmp_path / "out.jsonl"
    foreign = '{"prompt":"é\\u2028", "chosen" : "b\u2028", "rejected":"c"}\n\n'.encode()
    path.write_bytes(foreign + b'{"messages": [], "labeler": "Ida", "key": "a"}')  # no newline at the end
    file = LabelFile(path, "Ida")
    file.put({"messages": [], "labeler": "Ida", "key": "b"})
    file.put({"messages": [], "labeler": "Ida", "key": "a", "note": "new"})
    own = b'{"messages": [], "labeler": "Ida", "key": '
    assert path.read_bytes() == foreign + own + b'"a", "note": "new"}\n' + own + b'"b"}\n'


@pytest.mark.parametrize("content", [b"hello", b"hello\n", b"[1]\n{}\n", b'{"a": 1}\n\xff\n'])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"out\.jsonl:[12]: not a valid row \(.*\); fix or remove the line$"):
        LabelFile(path, "Ida")
    assert path.read_bytes() == content


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real.jsonl").touch()
    (tmp_path / "out.jsonl").symlink_to("real.jsonl")
    file = LabelFile(tmp_path / "out.jsonl", "Ida")
    for note in ("1", "2"):
        file.put({"messages": [], "labeler": "Ida", "key": "a", "note": note})
    assert (tmp_path / "out.jsonl").is_symlink()
    assert [row["note"] for row in read(tmp_path / "real.jsonl")] == ["2"]


def test_a_row_edited_by_hand_is_asked_again(serve, tmp_path):
    client = serve()
    client.rank(0, HOME)
    (row,) = read(tmp_path / "out.jsonl")
    write(tmp_path / "out.jsonl", [{name: value for name, value in row.items() if name != "likert"}])
    prompt = serve().get("prompt/0")
    assert (prompt["state"], prompt["saved"]) == ("ranked", None)


def test_equal_prompts_count_once_and_bad_rows_are_left_out(tmp_path):
    rows = [
        SOURCE[0],
        {"text": "no prompt"},
        {**SOURCE[0], "labeler": "Bo", "ranks": [1, 2, 3]},  # as held-out comparisons are: ranked by two groups
        {"prompt": "Alone?", "answers": ["yes"]},
        {"prompt": "Why?", "completions": ["so", "else"], "scores": [1.0, 2.0]},
        {"messages": [*ASKED, {"role": "assistant", "content": "here"}], "answers": ["a", "b"]},
    ]
    path = write(tmp_path / "mixed.jsonl", rows)
    prompts, problems = label.load(str(path))
    assert [prompt.fields["answers"] for prompt in prompts] == [["home", "away", "lost"], ["so", "else"]]
    assert [problem.split(": ", 1)[0] for problem in problems] == [f"{path}:{line}" for line in (2, 4, 6)]
    assert "no answers to rank (fields: text)" in problems[0]
    assert "a ranking needs at least 2" in problems[1]
    assert [prompt.fields["answers"] for prompt in label.load(str(path), limit=1)[0]] == [["home", "away", "lost"]]
    with pytest.raises(UserError, match="no answers to rank"):
        label.load(str(write(tmp_path / "none.jsonl", rows[1:2])))


def test_comparisons_are_a_source(tiny, tmp_path):
    written = read(tiny.comparisons / "train.jsonl")
    session, problems = label.start(str(tiny.comparisons), tmp_path / "out.jsonl", "Ida", Store(tmp_path / "store"))
    assert problems == []
    unlike = {json.dumps([row["messages"], row["answers"]]) for row in written}
    assert len(session.prompts) == len(unlike)
    assert all(set(prompt.fields) == {"messages", "answers", "finished"} for prompt in session.prompts)


def test_a_reward_model_is_trained_from_the_file(tiny, tmp_path, run):
    """The labeler ranks as tests/conftest.py's `rank` does: the more letters e the better."""
    from gptlife.stages import reward_model

    session, _ = label.start(str(tiny.comparisons), tmp_path / "out.jsonl", "Ida", Store(tmp_path / "store"))
    for number in range(len(session.prompts)):
        prompt = session.show(number)
        counts = [answer["text"].count("e") for answer in prompt["answers"]]
        ranks = [1 + sum(other > count for other in set(counts)) for count in counts]
        opinions = {"ranks": ranks, "likert": [4] * len(ranks), "flags": [[]] * len(ranks)}
        session.submit({"key": prompt["key"], "note": "", "seconds": 1, **opinions})
    rows = read(tmp_path / "out.jsonl")
    turned = [{**row, "ranks": [1 + len(row["ranks"]) - rank for rank in row["ranks"]]} for row in rows]
    held_out = read(tiny.comparisons / "validation.jsonl")
    fields = {"learning_rate": 4e-3, "batch_size": 4, "epochs": 3}
    fields["validation"] = str(write(tmp_path / "held_out.jsonl", [{**row, "group": "people"} for row in held_out]))
    found = [
        run(reward_model.STAGE, {**fields, "data": str(path)}, tmp_path / f"rm-{path.stem}", base=tiny.sft)
        for path in (tmp_path / "out.jsonl", write(tmp_path / "turned.jsonl", turned))
    ]
    untied = sum(len(set(row["ranks"])) > 1 for row in read(tiny.comparisons / "train.jsonl"))
    assert [metrics["rankings"] for metrics in found] == [untied, untied]
    assert found[0]["validation_accuracy_people"] > 0.7
    assert found[1]["validation_accuracy_people"] < 0.4


def test_the_command_ends_with_how_far_one_came(gptlife, folder, monkeypatch):
    write(folder / "source.jsonl", SOURCE)

    def interrupted(self: LabelServer) -> None:
        self.labeling.submit({"key": self.labeling.prompts[1].key, "note": "", "seconds": 1, "ranks": [1, 2],
                              "likert": [1, 2], "flags": [[], []]})  # fmt: skip
        raise KeyboardInterrupt

    monkeypatch.setattr(LabelServer, "serve_forever", interrupted)
    ended = gptlife("label", "source.jsonl", "-o", "out.jsonl", "--port", "0", "--no-browser")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "labeler: 3 of 3 prompts to rank, into out.jsonl"
    assert re.fullmatch(r"open http://127\.0\.0\.1:\d+/[\w-]{20,}/   \(Ctrl-C to stop\)", lines[1])
    assert lines[-1] == "1 ranked, 2 left; run the same command again to continue"
    monkeypatch.setattr(LabelServer, "serve_forever", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    again = gptlife("label", "source.jsonl", "-o", "out.jsonl", "--port", "0", "--no-browser", "--limit", "2")
    assert again.out.splitlines()[0] == "labeler: 1 of 2 prompts to rank, into out.jsonl"


def test_the_browser_is_opened_unless_told_not_to(gptlife, folder, monkeypatch):
    import webbrowser

    write(folder / "source.jsonl", SOURCE)
    opened = threading.Event()
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.set())
    monkeypatch.setattr(LabelServer, "serve_forever", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    words = ("label", "source.jsonl", "-o", "out.jsonl", "--port", "0")
    assert gptlife(*words, "--no-browser").code == 0
    assert not opened.wait(0.1)
    assert gptlife(*words).code == 0
    assert opened.wait(5)


def test_what_can_be_fixed_is_one_line(gptlife, folder):
    write(folder / "source.jsonl", SOURCE)
    (folder / "empty").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, message in (
            (("source.jsonl", "-o", "source.jsonl"), "source.jsonl: this is the source; give another --output"),
            (("source.jsonl", "-o", "out.csv"), "out.csv: rankings are written as .jsonl; give --output a name"),
            (("source.jsonl", "-o", "o.jsonl", "--labeler", " "), "--labeler: ' ' is not a valid name; give 1 to 60"),
            (("gone.jsonl", "-o", "out.jsonl"), "gone.jsonl: no such file; correct the path"),
            (("gone", "-o", "out.jsonl"), "gone: not a directory, an address or a recipe that was run in"),
            (("empty", "-o", "out.jsonl"), f"{folder}/empty: no comparisons (no train.jsonl); give an output of"),
            (("source.jsonl", "-o", "out.jsonl", "--port", str(port)),
             f"127.0.0.1:{port}: can't listen there (Address already in use); give another --port or --host"),
        ):  # fmt: skip
            refused = gptlife("label", *words, "--no-browser")
            assert (refused.code, refused.out) == (2, "")
            assert refused.err.startswith(f"gptlife: {message}")
            assert refused.err.count("\n") == 1


def test_ctrl_c_in_a_terminal(source, tmp_path):
    command = [sys.executable, "-m", "gptlife.pipelines.cli", "label", str(source), "-o", "out.jsonl", "--no-browser"]
    process = subprocess.Popen(
        [*command, "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert "open http://127.0.0.1:" in first[1]
    assert (process.returncode, err) == (0, "")
    assert out.strip() == "0 ranked, 3 left; run the same command again to continue"
