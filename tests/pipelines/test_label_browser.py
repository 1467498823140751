"""The labelers' page in a real browser: prompts are ranked by keyboard and by mouse, and the file is read."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlife.pipelines.labeling import session as label
from gptlife.pipelines.labeling.server import LabelServer
from gptlife.pipelines.store import Store

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
assert _spec is not None
assert _spec.loader is not None
browser = importlib.util.module_from_spec(_spec)  # tests are no package, so a neighbour is loaded by its path
_spec.loader.exec_module(browser)

EVIL = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script> & "quoted" </textarea>'
SOURCE = [
    {"prompt": "First?", "answers": ["a1", "a2", "a3", "a4"]},
    {"prompt": EVIL, "answers": [EVIL, ""], "finished": [True, False]},
    {"prompt": "Third?", "chosen": "c1", "rejected": "c2"},
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Fourth?"}],
        "answers": ["d1", "d2"],
    },
]
READY = "!document.querySelector('#work').hidden && !busy"
DONE = "!document.querySelector('#done').hidden"


class Page:
    """A page of the labeling, and its output."""

    def __init__(self, program: Any, server: LabelServer, output: Path) -> None:
        self.program, self.server, self.output = program, server, output

    def open(self, **window: Any) -> None:
        self.program.open(self.server.url, **window)
        self.program.wait(f"session && (({READY}) || {DONE})")

    def press(self, *keys: str) -> None:
        self.program.press(*keys)

    def texts(self) -> list[str]:
        """The answers as they stand on the page."""
        found = self.program.evaluate("cards.map(c => c.querySelector('.said')?.textContent ?? '')")
        assert isinstance(found, list)
        return found

    def lanes(self) -> list[list[str]]:
        """The ranking as it is seen: answers line by line, best first."""
        letters = "lane => [...lane.querySelectorAll('.tile')].map(tile => tile.firstChild.data)"
        lines = self.program.evaluate(f"[...document.querySelectorAll('.lane')].map({letters})")
        return [[self.texts()[ord(letter) - 65] for letter in line] for line in lines]

    def focus(self, text: str) -> None:
        """Go to an answer with the arrow keys."""
        for _ in range(len(self.texts())):
            self.press("ArrowUp")
        for _ in range(self.texts().index(text)):
            self.press("ArrowDown")
        assert self.program.evaluate("document.activeElement.querySelector('.said')?.textContent ?? ''") == text

    def score(self, scores: dict[str, int]) -> None:
        for text, value in scores.items():
            self.focus(text)
            self.press(str(value))

    def go_on(self, key: str = "Enter") -> None:
        """Save or skip, and wait for the next prompt or the end."""
        before = self.program.evaluate("prompt.key")
        self.press(key)
        self.program.wait(f"!busy && (!prompt || prompt.key !== {json.dumps(before)})")

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]

    def see(self, selector: str) -> str:
        return str(self.program.evaluate(f"document.querySelector('{selector}').textContent"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests; a test that leaves a script error or a breach of the page's policy fails."""
    program = browser.find()
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    with browser.Browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def page(chromium: Any, tmp_path: Path) -> Iterator[Callable[[], Page]]:
    """`page()`: the page of a new server on SOURCE, which writes out.jsonl."""
    (tmp_path / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SOURCE), encoding="utf-8")
    servers = []

    def start() -> Page:
        session, _ = label.start(str(tmp_path / "source.jsonl"), tmp_path / "out.jsonl", "Ida", Store(tmp_path))
        server = LabelServer(session, port=0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        opened = Page(chromium, server, tmp_path / "out.jsonl")
        opened.open()
        return opened

    chromium.problems.clear()
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    assert chromium.problems == []


def ranks(row: dict[str, Any]) -> dict[str, int]:
    return dict(zip(row["answers"], row["ranks"], strict=True))


def test_a_session_by_keyboard_alone(page):
    first = page()
    assert first.see("#count") == "1 of 4"
    # Scores make the ranking, equal ones a tie; half steps part and pass.
    first.score({"a1": 3, "a2": 6, "a3": 3})
    assert first.lanes() == [["a2"], sorted(["a1", "a3"], key=first.texts().index)]
    first.press("Enter")  # a4 has no score yet: nothing is saved, and the focus is on it
    assert "No score yet" in first.see("#status")
    assert first.texts()[first.program.evaluate("current")] == "a4"
    first.press("5")
    assert [sorted(lane) for lane in first.lanes()] == [["a2"], ["a4"], ["a1", "a3"]]
    first.focus("a3")
    first.press("ArrowLeft")  # out of its tie
    assert first.lanes() == [["a2"], ["a4"], ["a3"], ["a1"]]
    first.press("ArrowLeft", "ArrowLeft")  # ties with a4, passes it
    assert first.lanes() == [["a2"], ["a3"], ["a4"], ["a1"]]
    assert "with a lower score" in first.see("#doubt")
    first.press("ArrowRight")
    assert [sorted(lane) for lane in first.lanes()] == [["a2"], ["a3", "a4"], ["a1"]]
    first.press("h", "o", "s", "s")  # s set and taken back
    first.press("w")
    first.program.write("a note, 7 h u p")
    first.press("Escape")
    first.go_on()

    (row,) = first.rows()
    assert ranks(row) == {"a1": 3, "a2": 1, "a3": 2, "a4": 2}
    assert row["likert"] == [3, 6, 3, 5]
    assert row["flags"] == [[], [], ["hallucination", "opinion"], []]
    assert (row["note"], row["labeler"], row["group"]) == ("a note, 7 h u p", "Ida", "people")
    assert 0 < row["seconds"] < 60

    # Hostile text is text.
    assert first.see("#prompt .said") == EVIL
    assert sorted(first.texts()) == ["", EVIL]
    assert first.program.evaluate("window.hacked === undefined && !document.querySelector('main img, main script')")
    assert [first.see(".card .empty"), first.see(".card .empty + .empty")] == [
        "(nothing)",
        "(cut off at the length limit)",
    ]
    first.go_on("u")
    assert first.see("#count") == "3 of 4"

    # Another start, where it was left; p goes back through the skipped one to the first, which is changed.
    second = page()
    assert second.see("#count") == "3 of 4"
    second.go_on("p")
    second.go_on("p")
    assert [sorted(lane) for lane in second.lanes()] == [["a2"], ["a3", "a4"], ["a1"]]
    assert second.program.evaluate("document.querySelector('#note').value") == "a note, 7 h u p"
    second.score({"a1": 7})
    second.press("r")  # by score again
    second.go_on()
    assert [ranks(row) for row in second.rows()] == [{"a1": 1, "a2": 2, "a3": 4, "a4": 3}]

    # To the end, by the third prompt.
    assert second.see("#count") == "3 of 4"
    second.score({"c1": 2, "c2": 2})
    second.focus("c1")
    second.press("ArrowLeft")  # with nothing above: out of the tie, and no further
    assert second.lanes() == [["c1"], ["c2"]]
    second.press("ArrowLeft")
    assert second.lanes() == [["c1"], ["c2"]]
    second.press("ArrowRight")
    second.go_on()
    second.score({"d1": 1, "d2": 7})
    second.go_on()
    second.program.wait(DONE)
    assert second.see("#sum") == "3 ranked, 1 skipped. Thank you, Ida."
    assert [ranks(row) for row in second.rows()[1:]] == [{"c1": 1, "c2": 1}, {"d1": 2, "d2": 1}]
    second.press("p")
    second.program.wait(READY)
    assert sorted(second.texts()) == ["d1", "d2"]


def test_the_keys_are_shown_and_do_nothing_meanwhile(page):
    opened = page()
    opened.press("?")
    assert opened.program.evaluate("document.querySelector('#keys').open")
    assert "Expresses moral judgment" in opened.see("#keys")
    opened.press("7", "u", "h")
    opened.press("Escape")
    opened.program.wait("!document.querySelector('#keys').open")
    assert opened.program.evaluate(
        "number === 0 && work.scores.every(s => s === null) && work.flags.every(f => !f.size)"
    )
    opened.press("7")
    assert opened.program.evaluate("work.scores[0]") == 7


def test_a_reload_keeps_what_was_entered(page):
    opened = page()
    opened.score({"a2": 4})
    opened.press("v", "w")
    opened.program.write("half")
    opened.open()
    assert opened.lanes() == [["a2"]]
    assert opened.program.evaluate("document.querySelector('#note').value") == "half"
    assert opened.program.evaluate("work.flags.map(f => [...f]).flat()") == ["violent"]
    assert not opened.output.exists()
    opened.go_on("u")
    opened.go_on("p")  # a skip takes the draft away, and keeps the note
    assert opened.lanes() == []
    assert opened.program.evaluate("document.querySelector('#note').value") == "half"


def test_by_mouse(page):
    opened = page()
    program = opened.program
    for text, value in {"a1": 2, "a2": 6, "a3": 4, "a4": 1}.items():
        card = f".card:nth-child({opened.texts().index(text) + 1})"
        program.evaluate(f"document.querySelector('{card}').scrollIntoView()")
        program.drag(program.centre(f"{card} .likert button:nth-of-type({value})"))
    assert opened.lanes() == [["a2"], ["a3"], ["a1"], ["a4"]]

    def drag(lane: int, target: str) -> None:
        start, end = program.centre(f".lane:nth-of-type({2 * lane}) .tile"), program.centre(target)
        program.drag(start, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), end)

    drag(4, ".lane:nth-of-type(2)")  # a4 onto the first line
    assert [sorted(lane) for lane in opened.lanes()] == [["a2", "a4"], ["a3"], ["a1"]]
    drag(3, ".gap:nth-of-type(3)")  # a1 between the first two
    assert [sorted(lane) for lane in opened.lanes()] == [["a2", "a4"], ["a1"], ["a3"]]
    drag(3, ".gap:nth-of-type(1)")  # a3 to the top
    assert [sorted(lane) for lane in opened.lanes()] == [["a3"], ["a2", "a4"], ["a1"]]
    program.drag(program.centre("#better"))  # a3 is chosen and can't get better
    program.drag(program.centre("#worse"))
    assert [sorted(lane) for lane in opened.lanes()] == [["a2", "a3", "a4"], ["a1"]]
    program.drag(program.centre("#save"))
    program.wait("number === 1")
    assert [ranks(row) for row in opened.rows()] == [{"a1": 2, "a2": 1, "a3": 1, "a4": 1}]


def test_a_server_that_is_gone_is_said_and_nothing_is_lost(page):
    opened = page()
    opened.score({"a1": 1, "a2": 2, "a3": 3, "a4": 4})
    opened.server.shutdown()
    opened.server.server_close()
    opened.press("Enter")
    opened.program.wait("!document.querySelector('#alarm').hidden")
    assert opened.see("#alarm").startswith("Not done: The server does not answer. Start the same command again")
    assert opened.lanes() == [["a4"], ["a3"], ["a2"], ["a1"]]
    assert opened.program.evaluate("number") == 0
    opened.program.problems.clear()  # the browser's own line about the connection


@pytest.mark.parametrize("window", [{"width": 390, "height": 844, "phone": True}, {"width": 1280, "height": 900}])
def test_nothing_is_wider_than_the_window(page, window):
    opened = page()
    opened.open(**window)
    opened.press("7", "ArrowDown", "3", "i", "c", "d")
    assert opened.program.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = "[...document.querySelectorAll('main button')].filter(b => b.offsetParent && b.offsetHeight < 24).length"
    assert opened.program.evaluate(small) == 0
