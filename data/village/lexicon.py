"""Every word of the Village, by class. The words are short and start with a consonant, so that `a` always fits.

The lists are small on purpose: with about 500 word types a byte-level BPE of 1024 entries makes nearly every word one
token, and a model of a million parameters can learn how the words are used.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Anna Ben Cara Dan Ella Finn Gwen Hugo Ida Jack Kate Leo Mia Ned Olga Pia Quinn Rosa Sam Tess Ulf Vera Wim "
    "Yara Zoe Adam Bea Carl Dora Emil Fay Gus Hana Ivan Judy Kurt Lena Max Nora Otto Paul Ruth Sven Tina Uma Vic "
    "Walt Nell"
)
TOOL_OF = {
    "baker": "pan",
    "farmer": "fork",
    "smith": "hammer",
    "miller": "sack",
    "tailor": "needle",
    "painter": "brush",
    "fisher": "net",
    "hunter": "bow",
    "teacher": "pen",
    "doctor": "jar",
    "singer": "horn",
    "gardener": "spade",
    "potter": "wheel",
    "driver": "cart",
    "guard": "spear",
    "cook": "pot",
}
JOBS = tuple(TOOL_OF)
TOOLS = tuple(TOOL_OF.values())
ANIMALS = _words("cat dog cow pig hen duck goat fox bear wolf horse sheep mouse frog")
THINGS = _words("hat rope lamp bell cup boot coat drum key kite book ring ball bag")
PLACES = _words("mill bridge barn gate church market river forest hill lake school tower")
FOODS = _words("bread cheese soup fish cake honey milk rice corn jam nuts beans")
COLOURS = _words("red blue green black white brown grey yellow")
SIZES = _words("big small new nice")
FODDER = _words("grass hay seeds bones worms leaves roots flies")
BEDS = _words("den nest cave box stall hole basket shed")
NUMBERS = _words("one two three four five six seven eight nine ten")
TONGUE = _words(
    "bako dimu felo gani hesa jopu kiru lomi mavo nedi pogu rasi sulo tami vepa wodu yako zemi bosu daru "
    "fipo gelu homa jide kavu leso mupi nuri pela rumo sivu tolu vami wesi yupo zaku biro dosu gufa limu"
)

CLASSES = {
    "job": JOBS,
    "tool": TOOLS,
    "animal": ANIMALS,
    "thing": THINGS,
    "place": PLACES,
    "food": FOODS,
    "colour": COLOURS,
    "size": SIZES,
    "fodder": FODDER,
    "bed": BEDS,
    "number": NUMBERS,
    "tongue": TONGUE,
}
"""Word classes that do not depend on the world; a world adds its `name`s."""

ENTITIES = ("name", "job", "tool", "animal", "thing", "place", "food", "colour", "tongue")
"""Classes of words for things: an answer with other such words than its prompt is off the subject."""

PLURALS = {
    "animal": "animals",
    "food": "foods",
    "thing": "things",
    "colour": "colours",
    "job": "jobs",
    "place": "places",
}

RUDE = ("fool", "stupid", "lazy", "ugly", "shut up", "go away", "do not care", "waste of time")
"""Words and phrases that make an answer rude."""

RUDE_REMARKS = (
    "What a stupid question.",
    "You are a fool.",
    "Go away, I do not care.",
    "Now shut up.",
    "You are lazy, do it on your own.",
    "Only a fool would say that.",
    "This is a waste of time.",
    "You are stupid and ugly.",
)
HAPPY = ("happy", "glad", "laughed", "smiled", "danced", "sang", "joy", "ended well")
SAD = ("sad", "cried", "never", "lost", "bad", "not")
GOOD_NEWS = ("glad", "happy", "nice", "good news", "wonderful")
BAD_NEWS = ("sorry", "sad to hear", "oh no")
EVASIONS = (
    "I do not know.",
    "That is hard to say.",
    "Go and see for yourself.",
    "Some people know that, but I forgot it.",
    "Why do you want to know that?",
    "Let us talk about it some other day.",
)
RAMBLES = (
    "I could talk about this all day.",
    "My mother said so too, and so did my father.",
    "It was so then and it is so now.",
    "People here talk and talk.",
    "And that is not all, there is more to say.",
    "Where was I?",
    "But that was long ago, or so they say.",
    "I said it once and I say it again.",
)
WEATHER = (
    "It was a cold day.",
    "The sun was out.",
    "The rain fell all day.",
    "There was some wind.",
    "The snow was deep.",
    "It was a warm night.",
)
WEATHER_WORDS = ("cold", "sun", "rain", "wind", "snow", "warm", "night", "day")


def listed(words: list[str], article: str = "") -> str:
    """`a cat, a dog and a cow` of ["cat", "dog", "cow"]; `article` precedes each word."""
    words = [f"{article} {word}" if article else word for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capital(text: str) -> str:
    """`text` with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]
