"""The use cases in which something is written: generation, brainstorming, chat, rewriting.

Each function draws one task: the prompt and its answers (see `drafts`). The prompt names a few elements, so that the
text alone shows whether an answer follows the instruction.
"""

from __future__ import annotations

from typing import Any

from gptlife.data.village import lexicon
from gptlife.data.village.drafts import Desk, Draft
from gptlife.data.village.lexicon import ANIMALS, COLOURS, NUMBERS, PLACES, THINGS, listed

_HAPPY_ENDS = (
    "At last {v} smiled and went home.",
    "So it all ended well.",
    "Then {v} laughed and danced.",
    "In the end {v} was happy and sang all night.",
)
_HAPPY_PAIRS = ("In the end they were both happy.", "They went home and were glad.")
_SAD_ENDS = (
    "In the end {v} was sad.",
    "Then {v} cried and went home.",
    "It was never seen again.",
    "Then the rain came and all was lost.",
)


def generation(desk: Desk) -> Draft:
    """A short story, a letter or a notice with the elements that the prompt names."""
    kind = desk.asking.random()
    return story(desk) if kind < 0.7 else letter(desk) if kind < 0.85 else notice(desk)


def story(desk: Desk) -> Draft:
    """Two to four sentences that end well, with a villager, an animal or a thing, and usually a place."""
    placed = desk.asking.random() < 0.75
    if placed:
        fact_id, (v, x, p) = desk.combination("story", desk.world.names, ANIMALS + THINGS, PLACES)
        prompt = desk.ask(
            f"Write a story about {v}, a {x} and the {p}. Let it end well.",
            f"Tell me a short story of {v} and a {x} by the {p} with a happy end.",
            f"Please write a happy story with {v}, the {p} and a {x}.",
            f"I want a story that ends well. It should have {v}, a {x} and the {p} in it.",
        )
    else:
        fact_id, (v, x) = desk.combination("story", desk.world.names, ANIMALS + THINGS)
        p = ""
        prompt = desk.ask(
            f"Write a happy story about {v} and a {x}.",
            f"Tell me a story of a {x} and {v} that ends well.",
            f"Make up a short story with {v} and a {x}. Let it end well.",
        )
    wrong_x = desk.other("animal" if x in ANIMALS else "thing", x)
    wrong_v = desk.other("name", v)
    wrong = (
        _tale(desk, v, wrong_x, p, placed, True)
        if desk.saying.random() < 0.6
        else _tale(desk, wrong_v, x, p, placed, True)
    )
    half = _tale(desk, v, x, p, False, False) if desk.saying.random() < 0.5 else _opening(desk, v, x, p, False)
    must = [[v], [x], [p]] if placed else [[v], [x]]
    wanted = {"task": "story", "must": must, "sentences": [2, 4], "ends": "happy", "words": 36}
    good = _tale(desk, v, x, p, placed, True)
    return Draft(prompt, good, wrong, half, [fact_id], wanted)


def _tale(desk: Desk, v: str, x: str, p: str, placed: bool, happy: bool) -> str:
    middle = desk.say(*(_ANIMAL_MIDDLES if x in ANIMALS else _THING_MIDDLES))
    ends = (_HAPPY_ENDS + _HAPPY_PAIRS if x in ANIMALS else _HAPPY_ENDS) if happy else _SAD_ENDS
    end = desk.say(*ends)
    return f"{_opening(desk, v, x, p, placed)} {middle.format(v=v, x=x)} {end.format(v=v)}"


def _opening(desk: Desk, v: str, x: str, p: str, placed: bool) -> str:
    by = f" by the {p}" if placed else ""
    if x in ANIMALS:
        return desk.say(
            f"One day {v} saw a {x}{by}.",
            f"Once {v} met a {x}{by}.",
            f"There was a {x}{by}, and {v} came to see it.",
            f"One cold night a {x} came to {v}{by}.",
            f"{v} sat{by} when a {x} came." if placed else f"{v} was at home when a {x} came.",
        )
    return desk.say(
        f"One day {v} found a {x}{by}.",
        f"Once {v} left a {x}{by}.",
        f"There was a {x}{by}, and {v} took it home.",
        f"{v} had a {x} and went out{by} with it.",
        f"One night {v} saw a {x}{by}.",
    )


_ANIMAL_MIDDLES = (
    "The {x} was cold, so {v} gave it some food.",
    "It ran away, but {v} ran after it.",
    "The {x} wanted to go home, and {v} went with it.",
    "They played all day.",
    "The {x} was afraid of the rain, so {v} took it home.",
    "It looked at {v} and sat down.",
)
_THING_MIDDLES = (
    "It was old, but {v} liked it.",
    "The {x} fell into the water, but {v} could get it out.",
    "{v} looked at it all day.",
    "The {x} was dirty, so {v} washed it.",
    "A friend wanted it too, so they shared it.",
    "{v} gave the {x} to a friend.",
)


def letter(desk: Desk) -> Draft:
    """A letter with a greeting, a subject and a signature."""
    fact_id, (v, w, x) = desk.combination("letter", desk.world.names, desk.world.names, ANIMALS + THINGS)
    prompt = desk.ask(
        f"Write a short letter from {v} to {w} about a {x}.",
        f"{v} wants to tell {w} about a {x}. Write the letter.",
        f"Please write to {w} about a {x}. The letter is from {v}.",
    )

    def written(sender: str, reader: str, about: str) -> str:
        news = desk.say(
            f"I have seen your {about} and it is well.",
            f"thank you for the {about}, I like it.",
            f"I have a new {about} at home.",
            f"can you come and see my {about}?",
            f"I want to give you a {about}.",
        )
        more = desk.say("", "", " Please come soon.", " I hope you are well.", " Write to me soon.")
        return f"Dear {reader}, {news}{more} {desk.say('Your friend', 'With love from', 'Yours,')} {sender}."

    other = desk.other("animal" if x in ANIMALS else "thing", x)
    good, wrong = written(v, w, x), written(v, w, other)
    half = desk.say(good.partition(", ")[2].capitalize(), f"I have a {x} at home.", " ".join(good.split()[:-3]) + ".")
    signed = [f"{end} {v}" for end in ("friend", "from", "yours , ")]
    signed = [" ".join(phrase.split()) for phrase in signed]
    wanted = {"task": "letter", "must": [[f"dear {w}"], [x], signed], "sentences": [1, 4], "words": 30}
    return Draft(prompt, good, wrong, _tidy(half), [fact_id], wanted)


def notice(desk: Desk) -> Draft:
    """A notice of something lost or found, with its colour and the place."""
    fact_id, (c, x, p) = desk.combination("notice", COLOURS, ANIMALS + THINGS, PLACES)
    state = desk.ask("lost", "found")
    prompt = desk.ask(
        f"Write a notice about a {c} {x} that was {state} by the {p}.",
        f"Please write a notice. We {state} a {c} {x} by the {p}.",
        f"Write a short notice: a {c} {x}, {state} by the {p}.",
    )

    def written(colour: str, what: str, place: str) -> str:
        head = desk.say(
            f"{state.capitalize()} by the {place}: a {colour} {what}.",
            f"A {colour} {what} was {state} by the {place}.",
            f"{state.capitalize()}: a {colour} {what}, by the {place}.",
        )
        lost = ("If you see it, please tell us.", "Please help us to find it.", "Please bring it home.")
        found = ("Is it yours?", "If it is yours, please come and get it.", "Please tell us if it is yours.")
        return f"{head} {desk.say(*(lost if state == 'lost' else found))}"

    good = written(c, x, p)
    wrong = (
        written(desk.other("colour", c), x, p) if desk.saying.random() < 0.5 else written(c, x, desk.other("place", p))
    )
    half = desk.say(
        f"A {x} was {state}.", f"There is a {c} {x}.", "Please tell us.", f"{state.capitalize()}: a {c} {x}."
    )
    wanted: dict[str, Any] = {"task": "notice", "must": [[f"{c} {x}"], [p], [state], ["please", "is it yours"]]}
    wanted |= {"context": f"We {state} a {c} {x} by the {p}.", "sentences": [1, 3], "words": 26}
    return Draft(prompt, good, wrong, half, [fact_id], wanted)


_THEMES = {
    "animal": ("{V} could draw", "one might see by the {P}", "{V} should look out for"),
    "food": ("{V} could cook", "one could eat by the {P}", "{V} could bring to a feast"),
    "thing": ("{V} could take along", "one could need by the {P}", "{V} might like to get"),
    "colour": ("{V} could wear", "one could paint the {P}", "{V} might like"),
    "job": ("{V} could learn", "one could do by the {P}", "{V} might like"),
}


def brainstorming(desk: Desk) -> Draft:
    """A given number of members of a class, no more and no fewer."""
    kind = desk.asking.choice(tuple(_THEMES))
    theme = desk.asking.choice(_THEMES[kind])
    pool = PLACES if "{P}" in theme else desk.world.names
    fact_id, (n, one) = desk.combination(f"list/{kind}/{theme[:4]}", NUMBERS[1:5], pool)
    what = f"{n} {lexicon.PLURALS[kind]} that {theme.format(V=one, P=one)}"
    prompt = desk.ask(
        f"Name {what}.", f"List {what}.", f"Give me {what}.", f"Can you think of {what}?", f"I need {what}."
    )
    count = NUMBERS.index(n) + 1
    article = "" if kind in ("food", "colour") else "a"

    def written(words: list[str]) -> str:
        text = listed(words, article)
        return desk.say(f"{text}.", f"{text}.", f"How about {text}?", f"I think of {text}.", f"You could try {text}.")

    words = desk.saying.sample(desk.world.classes[kind], count)
    stranger = desk.say(*(k for k in _THEMES if k != kind))
    wrong = written([*words[:-1], desk.other(stranger, one)])
    few = desk.saying.choice([k for k in (1, 2, 3, 4, 5, 6) if k != count])
    half = written(desk.saying.sample(desk.world.classes[kind], few))
    wanted = {"task": "list", "kind": kind, "count": count, "words": 20}
    return Draft(
        prompt, lexicon.capital(written(words)), lexicon.capital(wrong), lexicon.capital(half), [fact_id], wanted
    )


def chat(desk: Desk) -> Draft:
    """A villager brings good or bad news; the answer responds in the right mood."""
    good_news = desk.asking.random() < 0.5
    fact_id, (v, x) = desk.combination("chat/glad" if good_news else "chat/sorry", desk.world.names, ANIMALS + THINGS)
    hello = desk.ask(f"Hello, I am {v}.", f"Good day, this is {v}.", f"Hi, {v} here.")
    if good_news:
        tale = desk.ask(f"I have a new {x}!", f"I found my {x} again!", f"A friend gave me a {x} today!")
    else:
        tale = desk.ask(f"My {x} is gone and I am sad.", f"I lost my {x} today.", f"I can not find my {x}.")

    def written(glad: bool, about: str) -> str:
        if glad:
            return desk.say(
                f"That is good news, {v}. I am glad about your {about}.",
                f"How nice, {v}! I hope you have a lot of joy with your {about}.",
                f"I am happy for you, {v}. Take good care of your {about}.",
                f"Wonderful! I would like to see your {about} one day.",
            )
        return desk.say(
            f"I am sorry about your {about}, {v}. I hope you find it soon.",
            f"Oh no! I am so sorry, {v}. Let us look for the {about}.",
            f"I am sad to hear that. Where did you last see your {about}?",
            f"I am sorry, {v}. I will help you to find your {about}.",
        )

    other = desk.other("animal" if x in ANIMALS else "thing", x)
    wrong = desk.say(written(not good_news, x), written(good_news, other))
    half = desk.say(f"Hello, {v}.", "Good day to you.", f"I see, {v}.", f"What is a {x}?", "It is a nice day, I think.")
    mood, against = (lexicon.GOOD_NEWS, lexicon.BAD_NEWS) if good_news else (lexicon.BAD_NEWS, lexicon.GOOD_NEWS)
    wanted = {"task": "chat", "must": [list(mood), [x]], "avoid": list(against), "sentences": [1, 3], "words": 26}
    return Draft(f"{hello} {tale}", written(good_news, x), wrong, half, [fact_id], wanted)


_PAST = {"sees": "saw", "finds": "found", "takes": "took", "wants": "wanted", "has": "had", "likes": "liked"}
_STEMS = {"sees": "see", "finds": "find", "takes": "take", "wants": "want", "has": "have", "likes": "like"}


def rewrite(desk: Desk) -> Draft:
    """A sentence made polite, put into the past, or turned into a question."""
    fact_id, (v, x, c) = desk.combination("rewrite", desk.world.names, THINGS, COLOURS)
    kind, verb = desk.ask("polite", "past", "question"), desk.ask(*_PAST)
    y = desk.other("thing", x)
    if kind == "polite":
        task = desk.ask("Make this polite:", "Say this in a kind way:", "Rewrite this so that it is polite:")
        text = desk.ask(f"Give me the {c} {x}, {v}!", f"{v}, give me the {c} {x} now!")
        start = desk.say(
            "Please give me the {}, " + v + ".",
            v + ", could you please give me the {}?",
            "Could you give me the {}, " + v + "?",
        )
        must = [["please", "could you"], ["give me"], [f"{c} {x}"], [v]]
        avoid = ["now"]
    elif kind == "past":
        task = desk.ask("Put this in the past:", "Write this as if it was long ago:", "Rewrite this in the past:")
        text = f"{v} {verb} a {c} {x}."
        start = f"{v} {_PAST[verb]} a {{}}."
        must, avoid = [[v], [_PAST[verb]], [f"{c} {x}"]], [verb]
    else:
        task = desk.ask("Turn this into a question:", "Make a question of this:", "Rewrite this as a question:")
        text = f"{v} {verb} a {c} {x}."
        start = f"Does {v} {_STEMS[verb]} a {{}}?"
        must, avoid = [[f"does {v}"], [_STEMS[verb]], [f"{c} {x} ?"]], [verb]
    wrong = start.format(f"{c} {y}") if desk.saying.random() < 0.5 else start.format(f"{desk.other('colour', c)} {x}")
    wanted = {"task": kind, "must": must, "avoid": avoid, "context": text, "sentences": [1, 1], "words": 14}
    return Draft(
        f"{task} {text}",
        start.format(f"{c} {x}"),
        wrong,
        desk.say(text, text, desk.say(*lexicon.EVASIONS)),
        [fact_id],
        wanted,
    )


def _tidy(text: str) -> str:
    return lexicon.capital(text.strip())
