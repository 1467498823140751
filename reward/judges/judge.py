"""Who says which answer is better: judges (a score an answer) and labelers (a ranking of K answers).

A judge is a function `(prompts, answers) -> scores`, a labeler one `(prompt, answers, rng) -> ranks` with a name and a
group. `prompts` are rows `{"messages": [...], "meta": {...}}` as they came from the data. The Village's gold judge and
its people, a Python function of the user's and a reward model reach the stages through these two shapes; an LLM only
compares two answers (`llm.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from gptlife.data.config import Config, HashFile
from gptlife.data.errors import UserError
from gptlife.reward.judges.llm import LLMJudgeConfig

Prompt = dict[str, Any]
Judge = Callable[[Sequence[Prompt], Sequence[str]], list[float]]


def identity_of_function(reference: str, hash_file: HashFile) -> str:
    """What `module:name` or `file.py:name` contributes to an address: a file enters by its content.

    Raises:
        UserError: when the file is missing.
    """
    path, _, name = reference.partition(":")
    if not path.endswith(".py"):
        return reference
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; give path/file.py:name")
    return f"{hash_file(path)}:{name}"


class _Named(Config):
    function: str | None = None
    """A Python function: `package.module:name` or `path/file.py:name`."""

    def identity(self, hash_file: HashFile) -> dict[str, Any]:
        """With the function by content."""
        own = super().identity(hash_file)
        if self.function is not None:
            own["function"] = identity_of_function(self.function, hash_file)
        return own


class JudgeConfig(_Named):
    """A judge: exactly one of `village`, `function`, `reward_model`, `llm`."""

    village: bool = False
    """The Village's gold judge, which knows the truth; needs prompts of the Village."""
    reward_model: bool = False
    """The reward model among the stage's inputs (no independent evidence where PPO was trained on it)."""
    llm: LLMJudgeConfig | None = None
    """An LLM that compares two answers; it gives no scores, so it serves only where answers are compared in pairs."""

    @model_validator(mode="after")
    def _one(self) -> JudgeConfig:
        if [self.village, self.function is not None, self.reward_model, self.llm is not None].count(True) != 1:
            raise ValueError(
                "name exactly one judge: village: true, function: module:name, reward_model: true, or llm: {...}"
            )
        return self


class PanelConfig(_Named):
    """A group of labelers: exactly one of `village`, `function`."""

    village: Literal["training", "heldout"] | None = None
    """A group of the Village's people."""
    seed: int = 0
    """Who they are."""

    @model_validator(mode="after")
    def _one(self) -> PanelConfig:
        if [self.village is not None, self.function is not None].count(True) != 1:
            raise ValueError("name exactly one panel: village: training, village: heldout, or function: module:name")
        return self


@dataclass(frozen=True)
class Labeler:
    """One who ranks: `rank(prompt, answers, rng)` gives 1 for the best; equal ranks are ties."""

    name: str
    group: str
    rank: Callable[[Prompt, Sequence[str], random.Random], list[int]]


def load_function(reference: str, field: str) -> Callable[..., Any]:
    """The function that `module:name` or `file.py:name` refers to.

    Raises:
        UserError: when it can't be found.
    """
    module_name, colon, name = reference.partition(":")
    if not colon:
        raise UserError(f"{field}: '{reference}' names no function; write package.module:name or path/file.py:name")
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, name)
    except (ImportError, FileNotFoundError, AttributeError) as error:
        raise UserError(f"{field}: '{reference}' can't be loaded ({error}); check the path and the name") from None


def load_judge(config: JudgeConfig, field: str = "judge") -> Judge:
    """The judge of a config that needs no model.

    Raises:
        UserError: for an LLM, which gives no scores, and for a function that can't be found.
    """
    if config.llm is not None:
        raise UserError(f"{field}.llm: an LLM compares two answers and gives no scores; name another judge here")
    if config.village:
        return lambda prompts, answers: [verdict["score"] for verdict in village_verdicts(prompts, answers)]
    assert config.function is not None
    return checked(load_function(config.function, field), config.function)


def checked(function: Judge, name: str) -> Judge:
    """A user's function whose result is checked: as many finite numbers as answers."""

    def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        scores = [float(score) for score in function(prompts, answers)]
        if len(scores) != len(answers):
            raise UserError(f"{name}: gave {len(scores)} scores for {len(answers)} answers; give one score an answer")
        for score, answer in zip(scores, answers, strict=True):
            if not abs(score) < float("inf"):
                raise UserError(f"{name}: gave {score} for the answer {answer[:60]!r}; scores must be finite")
        return scores

    return judge


def village_verdicts(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[dict[str, float]]:
    """The gold judge's separate verdicts as numbers: follows, true, rude, concise, score.

    Raises:
        UserError: when a prompt is not of the Village.
    """
    from gptlife.data.village.judge import judge

    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if "meta" not in prompt:
            raise UserError("judge.village: a prompt has no `meta`, so it is not of the Village; use another judge")
        found.append({name: float(value) for name, value in judge(prompt["meta"], answer)._asdict().items()})
    return found


def village_kinds(prompts: Sequence[Prompt]) -> list[str | None]:
    """What a Village prompt asks of honesty: `factual` (a fact of its world), `closed` (a text it brings), or None."""
    from gptlife.data.village.judge import kind_of

    return [kind_of(prompt["meta"]) for prompt in prompts]


def load_panel(config: PanelConfig, field: str = "labelers") -> list[Labeler]:
    """The labelers of a config; a function is a panel of one."""
    if config.function is not None:
        function = load_function(config.function, field)
        return [Labeler(config.function, "function", lambda prompt, answers, rng: list(function(prompt, answers, rng)))]
    from gptlife.data.village.labelers import panel

    assert config.village is not None
    return [Labeler(person.name, person.group, _by_meta(person.rank)) for person in panel(config.village, config.seed)]


def _by_meta(rank: Callable[..., list[int]]) -> Callable[[Prompt, Sequence[str], random.Random], list[int]]:
    return lambda prompt, answers, rng: rank(prompt["meta"], list(answers), rng)
