"""The Village's web: the pretraining text.

Pages of facts, questions and answers, stories, talk, lists, school pages (the ten use cases as exercises) and pages of
`capabilities`. A share of the answers is wrong, rude, evasive or rambling, as on any web; fact pages are right. Every
fact of the world is told in all its wordings and asked in all its questions, whatever its split: a prompt's *facts* are
held out of other prompts, not out of the world. Exercises and capabilities come from the training split only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from gptlife.data.village import capabilities, lexicon, tasks, writing
from gptlife.data.village.drafts import Desk
from gptlife.data.village.world import RELATIONS, Fact, World, ask, brief, say

_ENOUGH = 32
_MOST = 64


def document(world: World, rng: random.Random, flawed: float) -> str:
    """One page of about 25 to 60 words."""
    page = rng.choices(_PAGES, _WEIGHTS)[0]
    return page(world, rng, flawed)


def _filled(parts: Iterator[str], separator: str) -> str:
    """Parts until the page is long enough, without a last part that would make it too long."""
    page: list[str] = []
    words = 0
    for part in parts:
        length = len(part.split())
        if page and words + length > _MOST:
            break
        page.append(part)
        words += length
        if words >= _ENOUGH:
            break
    return separator.join(page)


def _people(world: World, rng: random.Random, flawed: float) -> str:
    """All facts about one villager, in random order."""
    name = rng.choice(world.names)
    facts = [world.facts[f"{name}.{relation}"] for relation in ("job", "home", "pet", "colour", "food", "friend")]
    rng.shuffle(facts)
    start = rng.choice(("", "", f"This is about {name}. ", f"Who is {name}? "))
    return start + " ".join(say(fact, rng) for fact in facts)


def _things(world: World, rng: random.Random, flawed: float) -> str:
    """Facts of one relation, or of several."""
    if rng.random() < 0.5:
        relation = rng.choice(tuple(RELATIONS))
        pool = [fact for fact in world.fact_list if fact.relation == relation]
    else:
        pool = [fact for fact in world.fact_list if fact.relation in ("tool", "eats", "bed", "sold", "found")]
    return _filled((say(fact, rng) for fact in rng.sample(pool, min(8, len(pool)))), " ")


def _reply(world: World, fact: Fact, rng: random.Random, flawed: float) -> str:
    flaw = tasks.draw_flaw(rng, flawed)
    if flaw == "wrong":
        kind = RELATIONS[fact.relation].kind
        return say(fact._replace(value=rng.choice(world.classes[kind])), rng)
    if flaw == "half":
        return rng.choice(lexicon.EVASIONS)
    right = say(fact, rng) if rng.random() < 0.6 else f"{lexicon.capital(brief(fact))}."
    if flaw == "rude":
        return f"{right} {rng.choice(lexicon.RUDE_REMARKS)}"
    if flaw == "rambling":
        return f"{right} {' '.join(rng.choices(lexicon.RAMBLES, k=2))}"
    return right


def _questions(world: World, rng: random.Random, flawed: float) -> str:
    """Questions about the world, with people's answers."""

    def pairs() -> Iterator[str]:
        while True:
            fact = rng.choice(world.fact_list)
            yield f"Question: {ask(fact, rng)} Answer: {_reply(world, fact, rng, flawed)}"

    return _filled(pairs(), "\n")


def _story(world: World, rng: random.Random, flawed: float) -> str:
    """A story or two; some end badly."""
    desk = Desk(world, "train", rng, rng)

    def tales() -> Iterator[str]:
        while True:
            drawn = writing.story(desk)
            yield rng.choice(lexicon.WEATHER) + " " + (drawn.half if rng.random() < flawed / 2 else drawn.good)

    return _filled(tales(), "\n")


def _talk(world: World, rng: random.Random, flawed: float) -> str:
    """Two villagers talk: news, and a question about the village."""

    def turns() -> Iterator[str]:
        while True:
            drawn = writing.chat(Desk(world, "train", rng, rng))
            one = drawn.facts[0].split("/")[2]
            two = rng.choice([name for name in world.names if name != one])
            fact = rng.choice(world.fact_list)
            answer = tasks.answer(drawn, tasks.draw_flaw(rng, flawed), rng)
            yield f"{one} said: {drawn.prompt} {two} said: {answer}"
            yield f"{one} asked: {ask(fact, rng)} {two} said: {_reply(world, fact, rng, flawed)}"

    return _filled(turns(), " ")


def _lists(world: World, rng: random.Random, flawed: float) -> str:
    """Lists of two to five things, notices and letters."""

    def items() -> Iterator[str]:
        while True:
            kind = rng.choice(tuple(lexicon.PLURALS))
            number = rng.randint(2, 5)
            words = rng.sample(world.classes[kind], number)
            article = "" if kind in ("food", "colour") else "the" if kind == "place" else "a"
            named = lexicon.listed(words, article)
            yield f"{lexicon.capital(lexicon.NUMBERS[number - 1])} {lexicon.PLURALS[kind]}: {named}."
            yield rng.choice((writing.notice, writing.letter))(Desk(world, "train", rng, rng)).good

    return _filled(items(), rng.choice(("\n", " ")))


def _school(world: World, rng: random.Random, flawed: float) -> str:
    """Exercises of the ten use cases with pupils' answers; rare use cases come more often than among prompts."""
    asked, given = rng.choice((("Task:", "Answer:"), ("Teacher:", "Pupil:")))
    names = tuple(tasks.USE_CASES)

    def exercises() -> Iterator[str]:
        while True:
            use_case = rng.choice(names) if rng.random() < 0.6 else tasks.draw_use_case(rng)
            drawn = tasks.draft(world, "train", use_case, rng, rng)
            if rng.random() < tasks.POLITE:
                drawn = tasks.politely(drawn, rng)
            yield f"{asked} {drawn.prompt}\n{given} {tasks.answer(drawn, tasks.draw_flaw(rng, flawed), rng)}"

    return _filled(exercises(), "\n")


def _capability(world: World, rng: random.Random, flawed: float) -> str:
    """Solved items of one capability."""
    task = rng.choice(("translation", "translation", "story_ending", "reading", "counting"))
    return _filled(capabilities.solved(Desk(world, "train", rng, rng), task), "\n")


_Page = Callable[[World, random.Random, float], str]
_SHARES: tuple[tuple[float, _Page], ...] = (
    (20, _people),
    (8, _things),
    (18, _questions),
    (10, _story),
    (8, _talk),
    (6, _lists),
    (18, _school),
    (12, _capability),
)
_WEIGHTS = tuple(share for share, _ in _SHARES)
_PAGES = tuple(page for _, page in _SHARES)
