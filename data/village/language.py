"""Fluency: whether an answer is in the Village's language, by trigrams of word classes.

Texts are cut into sentences; words that the world varies (names, animals, places, ...) are replaced by their class.
Fluency is the share of an answer's trigrams that people have used in answers to the same kind of task. It catches
babble, lists of everything, cut-off words and foreign characters. It does not check meaning, which is the rest of the
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
    """Lower-case words and single punctuation marks: `Anna's cat.` -> anna, 's, cat, `.`"""
    return _TOKEN.findall(text.lower())


def sentences_of(tokens: list[str]) -> list[list[str]]:
    """The tokens cut after each `.`, `!` or `?`; further marks belong to the sentence before them."""
    sentences: list[list[str]] = [[]]
    for token in tokens:
        if token in _ENDS and not sentences[-1] and len(sentences) > 1:
            sentences[-2].append(token)
            continue
        sentences[-1].append(token)
        if token in _ENDS:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


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
    """Share of the text's trigrams that people use in answers to such a task, in [0, 1]; 0 without words."""
    tokens = tokens_of(text)
    if not words_in(tokens):
        return 0.0
    used = _used_trigrams()[task]
    fluent = [trigram in used for trigram in trigrams(tokens, classes_of(world))]
    return sum(fluent) / len(fluent)


@lru_cache(maxsize=1)
def _used_trigrams() -> dict[str, set[Trigram]]:
    """Task -> trigrams of many answers to it, of every kind. By task, because `Happy.` is not a summary."""
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
