"""The world: the same in every process, complete, and with facts in one split each."""

import subprocess
import sys

import pytest

from gptlife.data.village.lexicon import CLASSES, TONGUE, capital, listed
from gptlife.data.village.world import MAX_VILLAGERS, RELATIONS, SPLITS, World, brief

FACTS_OF_A_VILLAGER = 6
# 16 tools, 14 animals with food and bed, 12 places with something sold and something found.
OTHER_FACTS = 16 + 2 * 14 + 2 * 12


@pytest.mark.parametrize("villagers", [12, 48, 100, MAX_VILLAGERS])
def test_every_villager_has_every_fact(villagers: int) -> None:
    world = World(3, villagers)
    assert len(set(world.names)) == villagers
    assert len(world.facts) == FACTS_OF_A_VILLAGER * villagers + OTHER_FACTS
    for fact in world.fact_list:
        assert fact.value in world.classes[RELATIONS[fact.relation].kind]
        assert fact.value != fact.subject


def test_worlds_of_two_seeds_differ() -> None:
    one, two = World(0), World(1)
    differing = sum(one.facts[key] != two.facts[key] for key in one.facts)
    assert differing > len(one.facts) / 2
    assert one.tongue != two.tongue


def test_the_world_does_not_depend_on_the_process() -> None:
    program = (
        "from gptlife.data.village.world import World; w = World(5); "
        "print([f.value for f in w.fact_list], w.tongue, w.split_of('story/Anna/fox/mill'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "Anna" in outputs.pop()


def test_splits_have_their_shares() -> None:
    world = World(0)
    ids = [f"story/{i}" for i in range(20000)]
    for split, percent in SPLITS.items():
        share = sum(world.split_of(one) == split for one in ids) / len(ids)
        assert share == pytest.approx(percent / 100, abs=0.01)
    assert sum(len(world.facts_of(split)) for split in SPLITS) == len(world.facts)


def test_no_value_can_be_guessed_by_its_frequency() -> None:
    world = World(0, 48)
    for relation, most in (("job", 48 / 16), ("home", 48 / 12), ("food", 48 / 12), ("friend", 1)):
        values = [fact.value for fact in world.fact_list if fact.relation == relation]
        assert max(values.count(value) for value in values) <= most


def test_the_old_tongue_puts_adjectives_last() -> None:
    world = World(0)
    assert world.translate("red", "hat") == f"{world.tongue['hat']} {world.tongue['red']}"
    assert len(set(world.tongue.values())) == len(world.tongue) == 40


def test_words_belong_to_one_class_and_fit_the_article() -> None:
    words = [word for pool in CLASSES.values() for word in pool]
    assert len(words) == len(set(words))
    assert not [word for word in words if word[0] in "aeiou" and word != "one" and word != "eight"]
    assert len(TONGUE) == 40


def test_phrases() -> None:
    assert listed(["cat", "dog", "cow"], "a") == "a cat, a dog and a cow"
    assert listed(["rice"]) == "rice"
    assert capital("by the mill") == "By the mill"
    fact = next(fact for fact in World(0).fact_list if fact.relation == "home")
    assert brief(fact) == f"by the {fact.value}"
