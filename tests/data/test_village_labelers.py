"""The labelers: two groups, their agreement, and ranks that are ranks."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlife.data.village.labelers import Group, agreement, panel
from gptlife.data.village.world import world_of

META = {
    "use_case": "brainstorming",
    "task": "list",
    "prompt": "Name three foods that Anna could cook.",
    "kind": "food",
    "count": 3,
    "words": 20,
    "facts": [],
    "world": [0, 48],
}
GOOD, HALF, BAD = "Bread, soup and milk.", "Bread and soup.", "You are a fool."


@pytest.mark.parametrize(("group", "paper"), [("training", 0.726), ("heldout", 0.773)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_group_agrees_as_the_paper_says(group: Group, paper: float, seed: int) -> None:
    found = agreement(panel(group, seed), world_of(0, 48), prompts=2500, seed=seed)
    assert found.agreement == pytest.approx(paper, abs=0.015)
    assert found.tied < 0.1
    assert found.agreement < found.ceiling < 0.95


@pytest.mark.parametrize(("group", "paper"), [("training", 0.726), ("heldout", 0.773)])
def test_with_other_noise_they_would_not(group: Group, paper: float) -> None:
    careful = [replace(labeler, noise=labeler.noise / 2) for labeler in panel(group, 0)]
    assert agreement(careful, world_of(0, 48), prompts=800, seed=0).agreement > paper + 0.05


def test_panels() -> None:
    training, heldout = panel("training", 0), panel("heldout", 0)
    assert (len(training), len(heldout)) == (8, 5)
    assert not {labeler.name for labeler in training} & {labeler.name for labeler in heldout}
    assert panel("training", 0) == training != panel("training", 1)


def test_a_labeler_without_noise_ranks_as_the_judge_does() -> None:
    labeler = replace(panel("training", 0)[0], noise=0.0)
    assert labeler.rank(META, [BAD, GOOD, HALF], random.Random(0)) == [3, 1, 2]


def test_near_equal_answers_share_a_rank() -> None:
    labeler = replace(panel("training", 0)[0], noise=0.0, length=0.0)
    answers = [GOOD, "Milk, soup and bread.", HALF, HALF]
    assert labeler.rank(META, answers, random.Random(0)) == [1, 1, 3, 3]


def test_taste_decides_between_equal_answers() -> None:
    plain = replace(panel("training", 0)[0], noise=0.0, length=0.0, warmth=0.0, politeness=0.0)
    polite = replace(plain, politeness=0.2)
    answers = [GOOD, f"{GOOD} I hope that helps."]
    assert plain.rank(META, answers, random.Random(0)) == [1, 1]
    assert polite.rank(META, answers, random.Random(0)) == [2, 1]


@given(st.lists(st.sampled_from([GOOD, HALF, BAD, "", "Rice."]), min_size=1, max_size=9), st.integers(0, 7))
def test_ranks_are_competition_ranks(answers: list[str], who: int) -> None:
    ranks = panel("training", 0)[who].rank(META, answers, random.Random(who))
    # 1 = best; as many answers stand before a rank as its number says
    assert all(sum(other < rank for other in ranks) == rank - 1 for rank in ranks)
    assert all(ranks[i] == ranks[j] for i in range(len(answers)) for j in range(i) if answers[i] == answers[j])
