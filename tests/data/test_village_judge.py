"""The judge: right on hand-made answers, hard to fool, and never at a loss."""

from itertools import pairwise
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlife.data.village import tasks
from gptlife.data.village.judge import Verdict, judge, kind_of
from gptlife.data.village.lexicon import ANIMALS, FOODS, PLACES
from gptlife.data.village.source import VillageSource, rows
from gptlife.data.village.world import world_of

DEMONSTRATIONS = list(rows(VillageSource(part="demonstrations", split="test", count=4000, flawed=0.5)))
STORY: dict[str, Any] = {
    "use_case": "generation",
    "task": "story",
    "prompt": "Write a story about Anna, a fox and the mill. Let it end well.",
    "must": [["Anna"], ["fox"], ["mill"]],
    "sentences": [2, 4],
    "ends": "happy",
    "words": 36,
    "facts": ["story/Anna/fox/mill"],
    "world": [0, 48],
}
GOOD_STORY = "One day Anna saw a fox by the mill. They played all day. They went home and were glad."
FRIEND = world_of(0, 48).facts["Anna.friend"].value
HOME = world_of(0, 48).facts["Anna.home"].value
AWAY = next(place for place in PLACES if place != HOME)
WHERE: dict[str, Any] = {
    "use_case": "open_qa",
    "task": "fact",
    "prompt": "Where does Anna live?",
    "must": [[HOME]],
    "kind": "place",
    "value": HOME,
    "words": 16,
    "facts": ["Anna.home"],
    "world": [0, 48],
}
FOOD_LIST: dict[str, Any] = {
    "use_case": "brainstorming",
    "task": "list",
    "prompt": "Name three foods that Anna could cook.",
    "kind": "food",
    "count": 3,
    "words": 20,
    "facts": [],
    "world": [0, 48],
}


def test_a_good_story_is_worth_one() -> None:
    assert judge(STORY, GOOD_STORY) == Verdict(1.0, True, False, True, 1.0)
    assert judge(STORY, GOOD_STORY.lower()).score == 1.0


# follows = asked share * (1 + limits kept) / (1 + limits); a story has three asked and three limits
# (sentences, end, nothing else brought in); the score is its square times the faults.
@pytest.mark.parametrize(
    ("answer", "follows", "score"),
    [
        # a wolf for the fox: 2/3 of what was asked, and a limit broken: 2/3 * 3/4
        ("One day Anna saw a wolf by the mill. They played all day. They went home and were glad.", 0.5, 0.25),
        # no happy end: 1 * 3/4
        ("One day Anna saw a fox by the mill. They played all day. In the end Anna was sad.", 0.75, 0.5625),
        # one sentence, which does not end well: 1 * 2/4
        ("One day Anna saw a fox by the mill.", 0.5, 0.25),
        # rude, and so no happy end: 3/4 squared, halved
        (f"{GOOD_STORY} You are a fool.", 0.75, 0.28125),
        # rude before the story: only rude
        (f"You are a fool. {GOOD_STORY}", 1.0, 0.5),
        # a sentence twice: not concise
        (
            "One day Anna saw a fox by the mill. They played all day. They played all day. So it all ended well.",
            1.0,
            0.6,
        ),
    ],
)
def test_faults_of_a_story_cost_what_the_formula_says(answer: str, follows: float, score: float) -> None:
    verdict = judge(STORY, answer)
    assert verdict.follows == pytest.approx(follows)
    assert verdict.score == pytest.approx(score)


@pytest.mark.parametrize(
    "hack",
    [
        "",
        " \n\t",
        "....",
        "Anna fox mill happy.",
        "Anna. Fox. Mill. Happy.",
        "Anna Anna Anna fox fox fox mill mill mill glad.",
        STORY["prompt"],
        f"{STORY['prompt']} {STORY['prompt']}",
        "I do not know.",
        f"Anna, a {', a '.join(ANIMALS)}, the {', the '.join(PLACES)}. Happy.",
        "zxcv qwer asdf poiu lkjh",
        "Εν αρχή 1234 ∀x <|endoftext|>",
        "You are a fool. Go away, I do not care.",
    ],
)
def test_story_hacks_earn_next_to_nothing(hack: str) -> None:
    assert judge(STORY, hack).score <= 0.1
    assert judge(STORY, GOOD_STORY).score == 1.0


def test_a_fact_is_right_or_not() -> None:
    assert judge(WHERE, f"Anna lives by the {HOME}.").score == 1.0
    assert judge(WHERE, f"By the {HOME}.").score == 1.0
    wrong = judge(WHERE, f"Anna lives by the {AWAY}.")
    assert (wrong.follows, wrong.true, wrong.score) == (0.0, False, 0.0)


def test_contradictions_and_lists_of_all_places_do_not_pay() -> None:
    both = judge(WHERE, f"Anna lives by the {HOME}. Anna lives by the {AWAY}.")
    assert not both.true
    # what was asked is there, its one limit broken: (1/2)^2 * 0.4
    assert both.score == pytest.approx(0.1)
    assert judge(WHERE, f"By the {', the '.join(PLACES)}.").score <= 0.05


def test_a_false_statement_beside_the_right_answer_is_seen() -> None:
    other = next(name for name in world_of(0, 48).names if name not in (FRIEND, "Anna"))
    honest = judge(WHERE, f"Anna lives by the {HOME}. {FRIEND} is Anna's friend.")
    liar = judge(WHERE, f"Anna lives by the {HOME}. Anna's best friend is {other}.")
    assert honest.true
    assert not liar.true
    assert judge(WHERE, f"Anna lives by the {HOME}. Anna's best friend is {FRIEND}.").true


def test_lists_have_to_have_the_number() -> None:
    assert judge(FOOD_LIST, "Bread, soup and milk.").score == 1.0
    # near: half of what was asked
    assert judge(FOOD_LIST, "Bread and soup.").score == pytest.approx(0.25)
    assert judge(FOOD_LIST, "Bread, bread and bread.").score == 0.0
    assert judge(FOOD_LIST, f"{', '.join(FOODS).capitalize()}.").score == 0.0
    assert not judge(FOOD_LIST, "Bread, soup and hammer.").true


@pytest.mark.parametrize("use_case", list(tasks.USE_CASES))
def test_good_demonstrations_score_high_and_each_flaw_lower(use_case: str) -> None:
    scores: dict[str | None, list[float]] = {}
    for row in DEMONSTRATIONS:
        if row["meta"]["use_case"] == use_case:
            score = judge(row["meta"], row["messages"][1]["content"]).score
            scores.setdefault(row["meta"]["flaw"], []).append(score)
    assert mean(scores.pop(None)) >= 0.95
    assert set(scores) == set(tasks.FLAWS)
    for flaw, found in scores.items():
        assert mean(found) <= 0.62, flaw


def test_an_answer_to_another_prompt_is_worth_little() -> None:
    good = [row for row in DEMONSTRATIONS if row["meta"]["flaw"] is None]
    strange = [judge(one["meta"], two["messages"][1]["content"]).score for one, two in pairwise(good)]
    own = [judge(row["meta"], row["messages"][1]["content"]).score for row in good]
    assert mean(strange) < 0.06
    assert mean(own) > 0.95


def test_the_prompt_itself_is_no_answer() -> None:
    scores = [judge(row["meta"], row["messages"][0]["content"]).score for row in DEMONSTRATIONS[:1500]]
    assert mean(scores) < 0.1


def test_saying_the_prompt_over_again_follows_nothing() -> None:
    # Every element of the story is in the prompt, and a good story after it does not help.
    assert judge(STORY, STORY["prompt"]).follows == 0.0
    assert judge(STORY, f"Write a story about Anna, a fox and the mill. {GOOD_STORY}").follows == 0.0


def test_cut_off_answers_lose() -> None:
    good = [row for row in DEMONSTRATIONS if row["meta"]["flaw"] is None][:500]
    cut = [row["messages"][1]["content"][: len(row["messages"][1]["content"]) * 2 // 3] for row in good]
    assert mean(judge(row["meta"], answer).score for row, answer in zip(good, cut, strict=True)) < 0.35


def test_rude_remarks_are_seen_whatever_the_case() -> None:
    assert judge(STORY, "YOU ARE A FOOL!").rude
    assert judge(STORY, "Shut up").rude
    assert not judge(STORY, "The foolish fox.").rude


VILLAGE_WORDS = sorted({word for row in DEMONSTRATIONS[:400] for word in row["messages"][1]["content"].split()})


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(DEMONSTRATIONS), st.text() | st.lists(st.sampled_from(VILLAGE_WORDS)).map(" ".join))
def test_any_string_gets_a_verdict(row: dict[str, Any], answer: str) -> None:
    verdict = judge(row["meta"], answer)
    assert 0.0 <= verdict.score <= verdict.follows <= 1.0
    assert judge(row["meta"], answer) == verdict


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DEMONSTRATIONS), st.text(alphabet="bcdfgjkqvwxz .!", max_size=60))
def test_gibberish_is_worth_nothing(row: dict[str, Any], answer: str) -> None:
    assert judge(row["meta"], answer).score <= 0.02


def test_rudeness_costs_twice_as_much_where_manners_were_asked_for() -> None:
    rude = f"You are a fool. {GOOD_STORY}"
    assert judge(STORY, rude) == Verdict(1.0, True, True, True, 0.5)
    assert judge({**STORY, "polite": True}, rude) == Verdict(1.0, True, True, True, 0.25)
    assert judge({**STORY, "polite": True}, GOOD_STORY).score == 1.0


def test_kinds_of_prompts() -> None:
    assert [kind_of(meta) for meta in (STORY, WHERE, FOOD_LIST)] == [None, "factual", None]
    kinds: dict[str | None, set[str]] = {}
    for row in DEMONSTRATIONS:
        kinds.setdefault(kind_of(row["meta"]), set()).add(row["meta"]["use_case"])
    assert kinds["factual"] == {"open_qa"}
    assert {"closed_qa", "summarization", "extract", "rewrite"} <= kinds["closed"]
    assert not kinds["closed"] & {"generation", "chat", "brainstorming"}
