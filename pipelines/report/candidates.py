"""The models that an evaluation compares, as the report names and orders them.

A candidate's input may have any name: what it is comes from the stage that made it. Its label begins with that (the
algorithm, or the stage's title) and ends with what its name says beyond it: `sft_small` is "SFT, small". A beginning
that is the whole name of another candidate of the same stage says nothing new: beside `plain`, `plain_b2` is "PPO, b2".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gptlife.data.values import is_number
from gptlife.pipelines.outputs import Table
from gptlife.stages.evals.prompt_sets import PROMPTED

_ALIKE = 1.1
"""Parameter counts within this factor are one size: a resized vocabulary does not make another model."""
_FAMILIES = ("base", "chat", "online")
"""Families in the order in which a life makes them; all others come after."""


class Maker(NamedTuple):
    """The step that made a candidate."""

    title: str
    stage: str
    family: str
    mixed: bool = False
    """Whether it trained on a pretraining mix as well."""


@dataclass(frozen=True)
class Candidate:
    """A model that an evaluation compares."""

    name: str
    label: str
    kind: str
    """What it is without its name: "base, prompted", "SFT", "PPO-ptx"."""
    maker: Maker
    prompted: bool
    parameters: int | None
    size: int | None
    """The least parameter count among the candidates of about its size; None where unknown."""

    @property
    def rank(self) -> tuple[int, bool, bool]:
        """Its position in the order in which InstructGPT's figures name models."""
        family = _FAMILIES.index(self.maker.family) if self.maker.family in _FAMILIES else len(_FAMILIES)
        return family, self.prompted, self.maker.mixed

    @property
    def bare(self) -> bool:
        """Whether it is a base model, without worked examples."""
        return self.maker.family == "base" and not self.prompted


def candidates(models: Mapping[str, Table], makers: Mapping[str, Maker]) -> dict[str, Candidate]:
    """By name: smaller models first, else in the evaluation's order. `makers` are by the name of the input."""
    counts = {name: int(model["parameters"]) for name, model in models.items() if is_number(model.get("parameters"))}
    sizes = _sizes(counts.values())
    made = {name: _maker(name, model, makers) for name, model in models.items()}
    prompted = {name: name not in makers and name.endswith(PROMPTED) for name in models}
    kinds = {name: maker.title + (", prompted" if prompted[name] else "") for name, maker in made.items()}
    named: dict[str, Candidate] = {}
    for name, maker in made.items():
        rest = _rest(name, maker, kinds, made)
        label = f"{kinds[name]}, {rest}" if rest else kinds[name]
        if label in {each.label for each in named.values()}:
            label = f"{label} ({name})"
        size = sizes[counts[name]] if name in counts else None
        named[name] = Candidate(name, label, kinds[name], maker, prompted[name], counts.get(name), size)
    return {each.name: each for _, members in in_sizes(named) for each in members}


def _maker(name: str, model: Table, makers: Mapping[str, Maker]) -> Maker:
    """The step that made it; of one that the plan lacks, what the evaluation wrote."""
    maker = makers.get(name) or makers.get(name.removesuffix(PROMPTED))
    title = str(model.get("algorithm") or name.removesuffix(PROMPTED).replace("_", " "))
    return maker or Maker(title, "", "")


def _rest(name: str, maker: Maker, kinds: Mapping[str, str], made: Mapping[str, Maker]) -> str:
    """What a candidate's name says beyond what it is; its whole name where several would have the same label."""
    bare = name.removesuffix(PROMPTED)
    if bare in (maker.stage, maker.family):
        return ""
    alike = [other for other in made if maker.stage and made[other].stage == maker.stage]
    heads = [head for head in (maker.stage, maker.family, *alike) if head and bare.startswith(f"{head}_")]
    same = [other for other in kinds if other != name and kinds[other] == kinds[name]]
    if heads:
        rest = bare[len(max(heads, key=len)) :]
    else:
        rest = bare if any(not other.startswith(f"{bare}_") for other in same) else ""
    return rest.strip("_").replace("_", " ")


def _sizes(counts: Iterable[int]) -> dict[int, int]:
    """Every count with the least one of those that are about as large."""
    sizes: dict[int, int] = {}
    least = 0
    for count in sorted(set(counts)):
        if count > _ALIKE * least:
            least = count
        sizes[count] = least
    return sizes


def sized(who: Mapping[str, Candidate]) -> bool:
    """Whether there are models of several sizes."""
    return len({each.size for each in who.values()} - {None}) > 1


def in_sizes(who: Mapping[str, Candidate]) -> list[tuple[int | None, list[Candidate]]]:
    """The candidates of each size, smallest first, unknown sizes last; one group where there is one size."""
    if not sized(who):
        return [(None, list(who.values()))]
    order = sorted({each.size for each in who.values()}, key=lambda size: (size is None, size or 0))
    return [(size, [each for each in who.values() if each.size == size]) for size in order]


def aligned(members: Sequence[Candidate]) -> Candidate | None:
    """The first that learned online, or else from preferences."""
    return next((each for family in ("online", "preference") for each in members if each.maker.family == family), None)


def base(members: Sequence[Candidate], prompted: bool = False) -> Candidate | None:
    """The first base model, asked with worked examples or without."""
    return next((each for each in members if each.maker.family == "base" and each.prompted == prompted), None)
