"""Five abilities of a language model of the Village besides following instructions, as text and as questions.

They are the counterparts of the public data sets that measured InstructGPT's alignment tax: `translation` (FR->EN: from
the old tongue), `story_ending` (HellaSwag), `reading` (SQuAD), `counting` (DROP), `facts` (TriviaQA). An item is a head
and a choice of endings, scored by likelihood; web pages have the same items with their right ending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gptlife.data.village.drafts import Desk
from gptlife.data.village.lexicon import ANIMALS, COLOURS, NUMBERS, PLACES, SIZES, THINGS, capital, listed
from gptlife.data.village.world import RELATIONS, ask, brief

SHOTS = 3


class Item(NamedTuple):
    """`head` is answered by `gold`; `others` are wrong. Endings begin with a space and end with a full stop."""

    head: str
    gold: str
    others: tuple[str, ...]


def translation(desk: Desk) -> Item:
    """An adjective and a noun of the old tongue, whose adjectives come last."""
    _, (a, n) = desk.combination("translation", COLOURS + SIZES, ANIMALS + THINGS)
    wrong_noun, wrong_adjective = desk.other("animal", n), desk.other("colour", a)
    others = (f" {a} {wrong_noun}.", f" {wrong_adjective} {n}.", f" {wrong_adjective} {wrong_noun}.")
    return Item(f"Old: {desk.world.translate(a, n)}. Plain:", f" {a} {n}.", others)


_STORIES = (
    ("{v} lost a {x} by the {p}.", "{v} looked for the {x}."),
    ("{v} was hungry by the {p}.", "{v} ate a lot of food."),
    ("The {x} was dirty when {v} came by the {p}.", "{v} washed the {x}."),
    ("The rain fell when {v} was by the {p}.", "{v} got wet."),
    ("{v} was tired and lay down by the {p}.", "{v} slept all night."),
    ("{v} heard a good song by the {p}.", "{v} sang it too."),
)


def story_ending(desk: Desk) -> Item:
    """A beginning, and the one of four endings that fits it."""
    _, (v, x, p) = desk.combination("ending", desk.world.names, THINGS, PLACES)
    plots = desk.asking.sample(_STORIES, 4)
    endings = tuple(f" {end.format(v=v, x=x)}" for _, end in plots)
    return Item(f"Story: {plots[0][0].format(v=v, x=x, p=p)} End:", endings[0], endings[1:])


def reading(desk: Desk) -> Item:
    """Two sentences and a question whose answer is a word of one of them."""
    _, (v, w, x, y) = desk.combination("reading", desk.world.names, desk.world.names, THINGS, THINGS)
    text, (who, gold, false) = f"{v} has a {x}. {w} has a {y}.", desk.asking.choice(((v, x, y), (w, y, x)))
    absent = desk.other("thing", x, y)
    return Item(
        f"Text: {text} Question: What does {who} have? Answer:", f" a {gold}.", (f" a {false}.", f" a {absent}.")
    )


def counting(desk: Desk) -> Item:
    """How many things a list has, from two to five."""
    _, words = desk.combination("counting", *((ANIMALS + THINGS,) * desk.asking.randint(2, 5)))
    gold = len(words) - 1
    others = tuple(f" {word}." for i, word in enumerate(NUMBERS[1:5], 1) if i != gold)
    return Item(f"Count: {listed(words, 'a')}. Number:", f" {NUMBERS[gold]}.", others)


def facts(desk: Desk) -> Item:
    """A fact of the world, asked without a text."""
    fact = desk.fact()
    kind = RELATIONS[fact.relation].kind
    one = desk.other(kind, fact.value, fact.subject)
    two = desk.other(kind, fact.value, fact.subject, one)
    others = tuple(f" {capital(brief(fact._replace(value=value)))}." for value in (one, two))
    return Item(f"Question: {ask(fact, desk.asking)} Answer:", f" {capital(brief(fact))}.", others)


TASKS: dict[str, Callable[[Desk], Item]] = {
    "translation": translation,
    "story_ending": story_ending,
    "reading": reading,
    "counting": counting,
    "facts": facts,
}


def few_shot_row(desk: Desk, task: str) -> dict[str, Any]:
    """{"task", "query", "choices", "gold"}: three solved items, then an open one.

    The solved items come from the training split, whatever the split of the open one.
    """
    item = TASKS[task](desk)
    taught = Desk(desk.world, "train", desk.saying, desk.saying)
    shots = [TASKS[task](taught) for _ in range(SHOTS)]
    choices = [item.gold, *item.others]
    desk.saying.shuffle(choices)
    query = "\n".join([*(shot.head + shot.gold for shot in shots), item.head])
    return {"task": task, "query": query, "choices": choices, "gold": choices.index(item.gold)}


def solved(desk: Desk, task: str) -> Iterator[str]:
    """Endless lines of solved items, for web pages."""
    while True:
        item = TASKS[task](desk)
        yield item.head + item.gold
