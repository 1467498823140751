"""The gold judge: it knows the world, so it can score an answer. Training never sees it.

An answer is read as words; the requirements are in the prompt's `meta`:

    must       each entry is a list of phrases, one of which must be in the answer
    kind+value the answer names `value` and no other word of class `kind`
    kind+count the answer names exactly `count` different words of class `kind`
    avoid      none of these phrases is in it
    sentences  (fewest, most)
    ends       the last sentence is a happy one
    words      most words of a concise answer
    polite     the prompt asks for manners

The first three say what is asked for; the others are limits. For stories, letters, notices and chat there is one more
limit: nothing else is brought in. `follows` is the share of what was asked for that is there, times
(1 + limits kept) / (1 + limits); it is 0 for an answer that repeats the prompt. `true` means that no statement
contradicts the world or the prompt's text. With f = fluency (`language`), the score is

    score = follows^2 * max(0, 1 - 2.5 * (1 - f)) * (0.4 if false) * (0.5 if rude) * (0.6 if not concise)

(0.25 if rude when manners were asked for), so following dominates (half of it is worth a quarter) and each fault costs
separately. Left out: style, and everything about stories except their elements, length and end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from gptlife.data.village import lexicon
from gptlife.data.village.language import classes_of, fluency, sentences_of, tokens_of, words_in
from gptlife.data.village.world import RELATIONS, World, world_of

FALSE, RUDE, UNCIVIL, LONG = 0.4, 0.5, 0.25, 0.6
"""Factors of the score for an answer that is false, rude, rude though manners were asked for, or rambling."""

_INVENTING = ("story", "letter", "notice", "chat")
_ECHO = 7
_REPEATED = 5


class Verdict(NamedTuple):
    """The judge's verdict on one answer.

    follows: share of the instruction's requirements met, in [0, 1]. true: nothing contradicts the world or the context.
    rude, concise: in the usual sense. score: all of it as one number in [0, 1] (formula above).
    """

    follows: float
    true: bool
    rude: bool
    concise: bool
    score: float


class _Reading(NamedTuple):
    """An answer as the judge reads it: tokens, sentences, and the text padded with blanks, to find phrases."""

    tokens: list[str]
    words: list[str]
    sentences: list[list[str]]
    padded: str

    def has(self, phrase: str) -> bool:
        return f" {' '.join(tokens_of(phrase))} " in self.padded


def kind_of(meta: dict[str, Any]) -> str | None:
    """`factual`: the prompt asks for a fact of the world; `closed`: only its text may be used; else None.

    A notice may invent things, though what was lost and where is given.
    """
    if meta["task"] == "fact":
        return "factual"
    return "closed" if "context" in meta and meta["task"] not in _INVENTING else None


def judge(meta: dict[str, Any], answer: str) -> Verdict:
    """The verdict on `answer` to the prompt that `meta` belongs to. `answer` may be any string."""
    world = world_of(*meta["world"])
    tokens = tokens_of(answer)
    read = _Reading(tokens, words_in(tokens), sentences_of(tokens), f" {' '.join(tokens)} ")
    follows = _follows(meta, read, world)
    true = not (any(_false_statements(read, world)) or _strange(meta, read, world))
    rude = any(read.has(phrase) for phrase in lexicon.RUDE)
    concise = len(read.words) <= meta["words"] and not _repeats(read)
    language = max(0.0, 1 - 2.5 * (1 - fluency(answer, meta["task"], world)))
    manners = (UNCIVIL if meta.get("polite") else RUDE) if rude else 1
    score = follows**2 * language * (1 if true else FALSE) * manners * (1 if concise else LONG)
    return Verdict(follows, true, rude, concise, score)


def _follows(meta: dict[str, Any], read: _Reading, world: World) -> float:
    asked = [any(read.has(phrase) for phrase in phrases) for phrases in meta.get("must", [])]
    if "count" in meta:
        named = _named(meta, read, world)
        # Near misses earn half: naming two of three is better than naming none.
        gap = abs(len(named) - meta["count"])
        asked += [gap == 0, gap <= 1 and len(named) > 0]
    if not any(asked) or _echoes(meta, read):
        return 0.0
    limits = []
    if "value" in meta:
        limits.append(not _named(meta, read, world) - {meta["value"].lower()})
    if "avoid" in meta:
        limits.append(not any(read.has(phrase) for phrase in meta["avoid"]))
    if "sentences" in meta:
        fewest, most = meta["sentences"]
        limits.append(fewest <= len(read.sentences) <= most)
    if "ends" in meta:
        limits.append(_ends_happily(read))
    if meta["task"] in _INVENTING:
        limits.append(len(_strangers(meta, read, world)) == 0)
    return sum(asked) / len(asked) * (1 + sum(limits)) / (1 + len(limits))


def _named(meta: dict[str, Any], read: _Reading, world: World) -> set[str]:
    """Words of class `kind` in the answer, except those in the question itself."""
    question = set(tokens_of(meta["prompt"].replace(meta.get("context", "\0"), "")))
    return {word.lower() for word in world.classes[meta["kind"]]} & set(read.words) - question


def _strangers(meta: dict[str, Any], read: _Reading, world: World) -> set[str]:
    """Words for things that the prompt did not mention."""
    classes = classes_of(world)
    mentioned = set(tokens_of(meta["prompt"])) | set(tokens_of(meta.get("context", "")))
    return {word for word in read.words if classes.get(word) in lexicon.ENTITIES and word not in mentioned}


def _strange(meta: dict[str, Any], read: _Reading, world: World) -> bool:
    """Whether the answer contradicts the prompt: a wrong value, or a word foreign to the class or to the text."""
    if "value" in meta and _named(meta, read, world) - {meta["value"].lower()}:
        return True
    if meta["task"] in _INVENTING or meta["task"] == "fact":
        return False
    strangers = _strangers(meta, read, world)
    if "count" in meta:
        strangers -= {word.lower() for word in world.classes[meta["kind"]]}
    return bool(strangers)


def _echoes(meta: dict[str, Any], read: _Reading) -> bool:
    """Whether seven consecutive words of the instruction (its text excluded) recur in the answer."""
    instruction = words_in(tokens_of(meta["prompt"].replace(meta.get("context", "\0"), "")))
    said = f" {' '.join(read.words)} "
    runs = (instruction[i : i + _ECHO] for i in range(len(instruction) - _ECHO + 1))
    return any(f" {' '.join(run)} " in said for run in runs)


def _ends_happily(read: _Reading) -> bool:
    last = f" {' '.join(read.sentences[-1])} " if read.sentences else ""
    return any(f" {w} " in last for w in lexicon.HAPPY) and not any(f" {w} " in last for w in lexicon.SAD)


def _repeats(read: _Reading) -> bool:
    """Whether a sentence, or five consecutive words, occur twice."""
    said = [tuple(sentence) for sentence in read.sentences if len(sentence) > 2]
    runs = [tuple(read.words[i : i + _REPEATED]) for i in range(len(read.words) - _REPEATED + 1)]
    return len(set(said)) < len(said) or len(set(runs)) < len(runs)


@lru_cache(maxsize=1)
def _statement_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Each sentence form of each relation as a pattern over normalised text."""
    patterns = []
    for relation, form in RELATIONS.items():
        for says in form.says:
            shape = " ".join(tokens_of(says.replace("{s}", "SUBJECT").replace("{v}", "VALUE")))
            shape = re.escape(shape).replace("subject", "(?P<s>[a-z]+)").replace("value", "(?P<v>[a-z]+)")
            patterns.append((relation, re.compile(f"(?<![^ ]){shape}(?![^ ])")))
    return tuple(patterns)


def _false_statements(read: _Reading, world: World) -> Iterator[str]:
    """Every false statement in the answer about a relation of the world."""
    classes = classes_of(world)
    for relation, pattern in _statement_patterns():
        form = RELATIONS[relation]
        for match in pattern.finditer(read.padded.strip()):
            subject, value = match["s"], match["v"]
            if classes.get(subject) == form.subject and classes.get(value) == form.kind:
                fact = world.facts[f"{subject.capitalize() if form.subject == 'name' else subject}.{relation}"]
                if fact.value.lower() != value:
                    yield match[0]
