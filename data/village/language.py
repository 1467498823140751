"""Is it the village's language? Trigrams of word classes, as a check of what an answer is made of.

Texts are cut into sentences; words that the world varies (names, animals, places, ...) are replaced by their class.
An answer's sentences may hold only trigrams that people have used in answers to the same kind of task. That catches
babble, lists of everything, cut-off words and foreign characters; it does not catch sense, which is the rest of the
judge's work.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

from gptlife.data.village import lexicon, tasks
from gptlife.data.village.world import RELATIONS, World, world_of

Trigram = tuple[str, str, str]
_TOKEN = re.compile(r"[a-z]+|'s\b|[.,!?:;]|\S")
_ENDS = frozenset(".!?")
_START, _END = "<s>", "</s>"


def tokens_of(text: str) -> list[str]:
    """Lower-case words and single signs: `Anna's cat.` -> anna, 's, cat, `.`"""
    return _TOKEN.findall(text.lower())


def sentences_of(tokens: list[str]) -> list[list[str]]:
    """The tokens cut after each `.`, `!` or `?`; signs alone are no sentence of their own."""
    found: list[list[str]] = [[]]
    for token in tokens:
        if token in _ENDS and not found[-1] and len(found) > 1:
            found[-2].append(token)
            continue
        found[-1].append(token)
        if token in _ENDS:
            found.append([])
    return [sentence for sentence in found if sentence]


def words_in(tokens: Iterable[str]) -> list[str]:
    """The tokens that are words."""
    return [token for token in tokens if token.isalpha()]


@lru_cache(maxsize=8)
def classes_of(world: World) -> dict[str, str]:
    """Lower-case word -> class, for all words that the world varies."""
    return {word.lower(): kind for kind, words in world.classes.items() for word in words}


def trigrams(tokens: list[str], classes: dict[str, str]) -> Iterator[Trigram]:
    """Trigrams of each sentence, padded at both ends, with classes for words."""
    for sentence in sentences_of(tokens):
        shape = [_START, *(f"<{classes[t]}>" if t in classes else t for t in sentence), _END]
        yield from zip(shape, shape[1:], shape[2:], strict=False)


def fluency(text: str, task: str, world: World) -> float:
    """Share of the text's trigrams that people use in answers to such a task, in [0, 1]; 0 for no words."""
    tokens = tokens_of(text)
    if not words_in(tokens):
        return 0.0
    known = _known()[task]
    found = [trigram in known for trigram in trigrams(tokens, classes_of(world))]
    return sum(found) / len(found)


@lru_cache(maxsize=1)
def _known() -> dict[str, set[Trigram]]:
    """Task -> trigrams of many answers to it, of every kind. By task, since `Happy.` sums up no story."""
    world = world_of(0, 48)
    classes = classes_of(world)
    rng = random.Random("village/language")
    said: dict[str, list[str]] = defaultdict(list)
    for use_case in tasks.USE_CASES:
        for _ in range(2000 if use_case == "generation" else 600):
            drawn = tasks.draft(world, "train", use_case, rng, rng)
            said[drawn.wanted["task"]] += [drawn.good, drawn.wrong, drawn.half]
    for form in RELATIONS.values():
        subject, value = world.classes[form.subject][0], world.classes[form.kind][1]
        said["fact"] += [says.format(s=subject, v=value) for says in form.says]
    remarks = (*lexicon.RUDE_REMARKS, *lexicon.RAMBLES, *lexicon.EVASIONS, *tasks.COURTESIES)
    return {
        task: {trigram for text in (*texts, *remarks) for trigram in trigrams(tokens_of(text), classes)}
        for task, texts in said.items()
    }
