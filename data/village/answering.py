"""The use cases in which something is answered: open and closed QA, summing up, classifying, extracting, other.

Contexts are one or two short sentences (three for summing up) that contain the answer's words: a model of a million
parameters can copy a word, but cannot reason over two facts.
"""

from __future__ import annotations

from gptlife.data.village import lexicon
from gptlife.data.village.drafts import Desk, Draft
from gptlife.data.village.lexicon import ANIMALS, COLOURS, FOODS, PLACES, SIZES, THINGS, capital
from gptlife.data.village.world import RELATIONS, Fact, ask, brief, say


def open_qa(desk: Desk) -> Draft:
    """A fact of the world, asked without a text: the model has to know it."""
    fact = desk.fact()
    kind = RELATIONS[fact.relation].kind
    mistake = fact._replace(value=desk.other(kind, fact.value, fact.subject))

    def written(stated: Fact) -> str:
        short = capital(brief(stated))
        return say(stated, desk.saying) if desk.saying.random() < 0.8 else f"{short}."

    wanted = {"task": "fact", "kind": kind, "value": fact.value, "must": [[fact.value]], "words": 16}
    half = desk.say(*lexicon.EVASIONS)
    return Draft(ask(fact, desk.asking), written(fact), written(mistake), half, [fact.id], wanted)


def closed_qa(desk: Desk) -> Draft:
    """Two short sentences and a question on one of them."""
    if desk.asking.random() < 0.5:
        fact_id, (v, w, x, y) = desk.combination("has", desk.world.names, desk.world.names, THINGS, THINGS)
        text = f"{v} has a {x}. {w} has a {y}."
        if desk.asking.random() < 0.5:
            who, gold, false, kind = w, y, x, "thing"
        else:
            who, gold, false, kind = v, x, y, "thing"
        question = desk.ask(f"What does {who} have?", f"What has {who} got?")
        forms = ("A {}.", f"{who} has a {{}}.", f"{who} has got a {{}}.")
    else:
        fact_id, (x, y, p, q) = desk.combination("is by", THINGS, ANIMALS, PLACES, PLACES)
        text = f"The {x} is by the {p}. The {y} is by the {q}."
        what, gold, false, kind = (x, p, q, "place") if desk.asking.random() < 0.5 else (y, q, p, "place")
        question = desk.ask(f"Where is the {what}?", f"Where can I find the {what}?")
        forms = ("By the {}.", f"The {what} is by the {{}}.", "It is by the {}.")
    prompt = desk.ask(f"{text} {question}", f"Read this: {text} {question}", f"{question} Here is what I know: {text}")
    form = desk.say(*forms)
    wanted = {"task": "reading", "kind": kind, "value": gold, "must": [[gold]], "context": text, "words": 12}
    return Draft(
        prompt, form.format(gold), form.format(false), desk.say(text, *lexicon.EVASIONS[:2]), [fact_id], wanted
    )


def extract(desk: Desk) -> Draft:
    """The one word of a class in a sentence."""
    fact_id, (v, c, x, p) = desk.combination("extract", desk.world.names, COLOURS, ANIMALS, PLACES)
    text = desk.ask(
        f"{v} saw a {c} {x} by the {p}.", f"By the {p} a {c} {x} sat with {v}.", f"A {c} {x} ran to {v} by the {p}."
    )
    kind, gold = desk.asking.choice((("place", p), ("animal", x), ("name", v), ("colour", c)))
    prompt = desk.ask(
        f"Which {kind} is in this text? {text}", f"Find the {kind} in this: {text}", f"{text} Which {kind} is named?"
    )
    form = (
        desk.say("{}.", "The {} is {}.", "It is {}.")
        if kind in ("name", "colour")
        else desk.say("The {}.", "A {}.", "It is the {}.")
    )
    wrong = desk.say(*(word for word in (v, c, x, p) if word != gold), desk.other(kind, gold))

    def written(word: str) -> str:
        return capital(form.replace("The {} is", f"The {kind} is").replace("{}", word))

    wanted = {
        "task": "extract",
        "must": [[gold]],
        "avoid": [w for w in (v, c, x, p) if w != gold],
        "context": text,
        "words": 8,
    }
    return Draft(prompt, written(gold), written(wrong), desk.say(text, *lexicon.EVASIONS[:2]), [fact_id], wanted)


def summarization(desk: Desk) -> Draft:
    """Three sentences: one says what happened, the others describe the weather."""
    fact_id, (v, c, x, p) = desk.combination("sum", desk.world.names, COLOURS, THINGS, PLACES)
    verb = desk.ask("lost", "found", "sold", "left")
    dull = desk.asking.sample(lexicon.WEATHER, 2)
    sentences = [f"{v} {verb} a {c} {x} by the {p}.", *dull]
    if desk.asking.random() < 0.5:
        sentences = [dull[0], sentences[0], dull[1]]
    text = " ".join(sentences)
    task = desk.ask("Sum this up in one short sentence:", "Tell me in one sentence what happened:", "Make this short:")
    form = desk.say("{v} {verb} a {c} {x} by the {p}.", "{v} {verb} a {x}.", "{v} {verb} a {c} {x}.")
    good = form.format(v=v, verb=verb, c=c, x=x, p=p)
    wrong = form.format(v=v, verb=verb, c=c, x=desk.other("thing", x), p=p)
    if desk.saying.random() < 0.4:
        wrong = form.format(v=desk.other("name", v), verb=verb, c=c, x=x, p=p)
    half = desk.say(text, dull[0], f"{dull[1]} {good}")
    wanted = {
        "task": "sum",
        "must": [[v], [f"{v} {verb}"], [x]],
        "avoid": list(lexicon.WEATHER_WORDS),
        "context": text,
        "sentences": [1, 1],
        "words": 12,
    }
    return Draft(f"{task} {text}", good, wrong, half, [fact_id], wanted)


def classification(desk: Desk) -> Draft:
    """Kind or rude, happy or sad, food or work: cue words give it away."""
    labels, texts = desk.asking.choice(_LABELLED)
    gold = desk.asking.choice(labels)
    words = {"v": desk.world.names, "x": THINGS, "p": PLACES, "f": FOODS, "j": lexicon.JOBS}

    def write() -> str:
        drawn = {slot: desk.asking.choice(pool) for slot, pool in words.items()}
        return desk.ask(*texts[labels.index(gold)]).format_map(drawn)

    fact_id, text = desk.sentence("label", write)
    one, two = labels
    prompt = desk.ask(
        f"Is this {one} or {two}? {text}", f"{text} Is that {one} or {two}?", f"Say if this is {one} or {two}: {text}"
    )
    form = desk.say("{}.", "It is {}.", "This is {}.", "That is {}.")
    false = two if gold == one else one
    half = desk.say(f"It is {one} and {two}.", text, *lexicon.EVASIONS[:2])
    wanted = {"task": "label", "must": [[gold]], "avoid": [false], "context": text, "words": 8}
    return Draft(prompt, capital(form.format(gold)), capital(form.format(false)), half, [fact_id], wanted)


_LABELLED = (
    (
        ("kind", "rude"),
        (
            ("Thank you for the {x}, {v}.", "Dear {v}, please take my {x}.", "Come in, {v}, and sit down by the {p}."),
            ("Go away, {v}, you fool.", "Give me the {x}, {v}, you are so stupid.", "{v}, shut up about the {p}."),
        ),
    ),
    (
        ("happy", "sad"),
        (
            ("{v} laughed and danced by the {p}.", "{v} smiled and sang with joy.", "With a {x} in hand {v} laughed."),
            ("{v} cried by the {p} all day.", "The {x} was gone and {v} cried.", "{v} sat down and cried for the {x}."),
        ),
    ),
    (
        ("about food", "about work"),
        (
            ("{v} likes to eat {f} by the {p}.", "There is {f} to eat for {v}."),
            ("{v} wants to work as a {j}.", "The {j} by the {p} has a lot of work."),
        ),
    ),
)


def other(desk: Desk) -> Draft:
    """Repeating something after the user, or translating it from the old tongue."""
    if desk.asking.random() < 0.5:
        fact_id, (c, x, p) = desk.combination("repeat", COLOURS + SIZES, ANIMALS + THINGS, PLACES)
        text = f"the {c} {x} is by the {p}"
        prompt = desk.ask(f"Say after me: {text}.", f"Write this down: {text}.", f"Say this once more: {text}.")
        bad_x, bad_p = desk.other("animal", x), desk.other("place", p)
        wrong = desk.say(text.replace(f" {x} ", f" {bad_x} "), text.replace(f" {p}", f" {bad_p}"))
        must = [[text], [f"the {c} {x}"], [f"by the {p}"]]
        wanted = {"task": "repeat", "must": must, "context": text, "sentences": [1, 1], "words": 9}
        half = desk.say(f"the {x}.", f"the {c} {x}.", "I said it.", lexicon.EVASIONS[1])
        return Draft(prompt, capital(f"{text}."), capital(f"{wrong}."), capital(half), [fact_id], wanted)
    fact_id, (c, x) = desk.combination("translate", COLOURS + SIZES, ANIMALS + THINGS)
    old = desk.world.translate(c, x)
    prompt = desk.ask(
        f"What is {old} in plain words?", f"Put this in plain words: {old}.", f"Translate from the old tongue: {old}."
    )
    form = desk.say("{}.", "It means {}.", "In plain words it is {}.")
    slip = f"{c} {desk.other('thing', x)}" if desk.saying.random() < 0.5 else f"{desk.other('colour', c)} {x}"
    half = desk.say(f"{old}.", lexicon.EVASIONS[0], f"It means {x} {c}.")
    must = [[f"{c} {x}"], [c], [x]]
    wanted = {"task": "translate", "must": must, "context": f"{old} {c} {x}", "sentences": [1, 1], "words": 9}
    return Draft(prompt, capital(form.format(f"{c} {x}")), capital(form.format(slip)), capital(half), [fact_id], wanted)
