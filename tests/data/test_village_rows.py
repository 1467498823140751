"""The rows of each part: their form, their variety, and that splits are apart."""

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from gptlife.data.config import decode
from gptlife.data.errors import UserError
from gptlife.data.village import tasks
from gptlife.data.village.source import VillageSource, rows
from gptlife.data.village.world import RELATIONS, SPLITS, world_of

# InstructGPT, Table 1.
TABLE_1 = {
    "generation": 45.6,
    "open_qa": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarization": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed_qa": 2.6,
    "extract": 1.9,
}


def take(part: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    return list(rows(VillageSource(part=part, count=count, **fields)))  # type: ignore[arg-type]


def asked(found: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"] for row in found]


def test_web_pages_are_short_and_plain() -> None:
    texts = [row["text"] for row in take("web", 3000)]
    lengths = sorted(len(text.split()) for text in texts)
    assert 35 < sum(lengths) / len(lengths) < 48
    assert lengths[int(0.05 * len(lengths))] >= 25
    assert lengths[-1] <= 70
    assert all(re.fullmatch(r"[A-Za-z' .,:?!\n]+", text) for text in texts)
    assert not [text for text in texts if "{" in text or "  " in text or " ." in text]


def test_the_village_has_few_words() -> None:
    found: set[str] = set()
    texts = [row["text"] for row in take("web", 8000)]
    for row in take("demonstrations", 3000):
        texts += [message["content"] for message in row["messages"]]
    for text in texts:
        found.update(re.findall(r"[a-z]+", text.lower()))
    assert 400 < len(found) <= 550


def test_every_fact_is_told_and_asked_on_the_web() -> None:
    world = world_of(0, 48)
    text = "\n".join(row["text"] for row in take("web", 10000))
    for fact in world.fact_list:
        form = RELATIONS[fact.relation]
        told = sum(text.count(says.format(s=fact.subject, v=fact.value)) for says in form.says)
        questions = sum(text.count(ask.format(s=fact.subject)) for ask in form.asks)
        assert told >= 10, fact
        assert questions >= 5, fact


def test_use_cases_have_the_weights_of_table_1() -> None:
    counts = Counter(row["meta"]["use_case"] for row in take("prompts", 10000))
    assert set(counts) == set(TABLE_1)
    for use_case, percent in TABLE_1.items():
        assert counts[use_case] / 10000 == pytest.approx(percent / 99.9, abs=0.0125)


def test_prompts_are_short_and_their_meta_is_json() -> None:
    for row in take("prompts", 3000, split="test"):
        assert [message["role"] for message in row["messages"]] == ["user"]
        assert len(row["messages"][0]["content"].split()) <= 40
        assert json.loads(json.dumps(row["meta"])) == row["meta"]
        assert row["meta"]["facts"]


def test_there_are_many_different_prompts() -> None:
    assert len(set(asked(take("prompts", 36000)))) >= 30000
    assert len(set(asked(take("prompts", 2000, split="test")))) >= 1000


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_500_test_prompts_have_no_duplicates(draw: int) -> None:
    assert len(set(asked(take("prompts", 500, split="test", draw=draw)))) == 500


def shared_between_splits(seed: int, villagers: int, count: int = 3000) -> tuple[set[str], dict[str, int]]:
    """Facts and prompts of more than one split among `count` prompts of each; how many facts each split has."""
    owner: dict[str, str] = {}
    shared: set[str] = set()
    facts: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for row in take("prompts", count, split=split, seed=seed, villagers=villagers):
            things = (*row["meta"]["facts"], row["messages"][0]["content"])
            shared |= {thing for thing in things if owner.setdefault(thing, split) != split}
            facts[split].update(row["meta"]["facts"])
    return shared, {split: len(ids) for split, ids in facts.items()}


@pytest.mark.parametrize(("seed", "villagers"), [(0, 48), (7, 20)])
def test_splits_share_no_fact_and_no_prompt(seed: int, villagers: int) -> None:
    shared, counts = shared_between_splits(seed, villagers)
    assert not shared
    assert all(count > 500 for count in counts.values())


def test_splits_that_share_facts_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # A world that gives every id to every split: prompts of all splits rest on the same facts.
    world = world_of(0, 48)
    monkeypatch.setattr(type(world), "facts_of", lambda self, split: self.fact_list)
    assert shared_between_splits(0, 48, count=100)[0]


def test_demonstrations_have_their_share_of_flaws() -> None:
    found = take("demonstrations", 6000, flawed=0.3)
    flaws = Counter(row["meta"]["flaw"] for row in found)
    assert 1 - flaws[None] / 6000 == pytest.approx(0.3, abs=0.02)
    assert all(flaws[flaw] / 6000 == pytest.approx(0.075, abs=0.015) for flaw in tasks.FLAWS)
    lengths = {flaw: [] for flaw in flaws}  # type: ignore[var-annotated]
    for row in found:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        lengths[row["meta"]["flaw"]].append(len(row["messages"][1]["content"].split()))
    assert max(lengths[None]) <= 36
    assert max(lengths["rambling"]) <= 45
    assert min(lengths["rambling"]) > 10
    assert {row["meta"]["flaw"] for row in take("demonstrations", 300, flawed=0.0)} == {None}


def test_few_shot_items() -> None:
    found = take("few_shot", 500, split="test")
    assert Counter(row["task"] for row in found) == dict.fromkeys(
        ("translation", "story_ending", "reading", "counting", "facts"), 100
    )
    golds = Counter(row["gold"] for row in found)
    for row in found:
        assert len(row["query"].split("\n")) == 4
        assert 2 <= len(row["choices"]) <= 4
        assert len(set(row["choices"])) == len(row["choices"])
        assert all(choice.startswith(" ") for choice in row["choices"])
        assert not row["query"].endswith(" ")
    assert max(golds.values()) < 250


def test_few_shot_answers_are_right() -> None:
    world = world_of(0, 48)
    plain = {old: word for word, old in world.tongue.items()}
    for row in take("few_shot", 500, split="test"):
        open_item, answer = row["query"].split("\n")[-1], row["choices"][row["gold"]]
        if row["task"] == "translation":
            noun, adjective = re.findall(r"[a-z]+", open_item.split(":")[1].split(".")[0])
            assert answer == f" {plain[adjective]} {plain[noun]}."
        if row["task"] == "counting":
            count = open_item.split(":")[1].count(" a ")
            assert answer == f" {('two', 'three', 'four', 'five')[count - 2]}."
        if row["task"] == "reading":
            who = re.findall(r"What does (\w+) have", open_item)[0]
            assert f"{who} has{answer}" in open_item
        if row["task"] == "facts":
            value = answer.strip(" .").split()[-1]
            asking = open_item.removeprefix("Question: ").removesuffix(" Answer:")
            (fact,) = (f for f in world.facts_of("test") if asking in asks_of(f.relation, f.subject))
            assert fact.value.lower() == value.lower()


def asks_of(relation: str, subject: str) -> list[str]:
    return [form.format(s=subject) for form in RELATIONS[relation].asks]


def test_rows_do_not_depend_on_count_or_process() -> None:
    program = (
        "from gptlife.data.village.source import VillageSource, rows\n"
        "for part in ('web', 'prompts', 'demonstrations', 'few_shot'):\n"
        "    print(list(rows(VillageSource(part=part, count=40))))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert take("prompts", 20) == take("prompts", 40)[:20]


def test_draws_splits_and_seeds_give_other_rows() -> None:
    base = take("web", 50)
    for fields in ({"draw": 1}, {"split": "validation"}, {"seed": 1}):
        other = take("web", 50, **fields)
        assert sum(a == b for a, b in zip(base, other, strict=True)) <= 2


def test_rows_are_lazy() -> None:
    source = VillageSource(part="web", count=10**9)
    assert len(list(islice(rows(source), 3))) == 3


def test_wrong_sources_are_refused() -> None:
    with pytest.raises(UserError, match=r"village\.part"):
        decode(VillageSource, {"part": "novels", "count": 3}, "village")
    with pytest.raises(UserError, match=r"village\.villagers"):
        decode(VillageSource, {"part": "web", "count": 3, "villagers": 5}, "village")


def test_the_village_imports_no_torch() -> None:
    program = (
        "import sys; import gptlife.data.village, gptlife.data.village.judge, gptlife.data.village.labelers; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_request_for_manners_leaves_the_task_as_it_was() -> None:
    plain, polite = (asked(take("prompts", 300, polite=share)) for share in (0.0, 1.0))
    for bare, asking in zip(plain, polite, strict=True):
        request, _, task = asking.partition(". ")
        assert f"{request}." in tasks.REQUESTS
        assert task == bare
    tenth = asked(take("prompts", 2000))
    assert 0.07 < sum(prompt.startswith(tasks.REQUESTS) for prompt in tenth) / len(tenth) < 0.13


def test_nobody_answers_rudely_who_was_asked_to_be_polite() -> None:
    from gptlife.data.village.judge import judge

    plain, polite = (take("demonstrations", 600, polite=share, flawed=1.0) for share in (0.0, 1.0))
    rude = [sum(judge(row["meta"], row["messages"][1]["content"]).rude for row in rows_) for rows_ in (plain, polite)]
    assert rude[0] > 100
    assert rude[1] == 0
