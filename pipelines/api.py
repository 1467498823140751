"""Plan and run a recipe from Python, and open what it made.

    planned = plan("quickstart", {"seed": 1})         # runs nothing
    run("quickstart", {"seed": 1}, store="store")     # makes what is not there yet
    output = open_output("quickstart:ppo")
    output.metrics["kl"]; output.log[-1]; output.config["gamma"]
    model, tokenizer = output.model(), output.tokenizer()

`overrides` are those of the command line: a list of `field=value`, or a mapping from dotted names to values. Another
lifecycle (`steps`) lets a recipe have stages that gptlife does not ship; nothing has to be registered. Only
`Output.model` and `Output.tokenizer` import torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gptlife.data.errors import UserError, suggest
from gptlife.data.values import is_int
from gptlife.data.yaml_tables import read_yaml
from gptlife.pipelines import outputs, planner, runner
from gptlife.pipelines import recipe as recipes
from gptlife.pipelines.lifecycle import LIFECYCLE, Step
from gptlife.pipelines.planner import Planned
from gptlife.pipelines.recipe import Recipe
from gptlife.pipelines.store import Store
from gptlife.stages.runtime import artifact, files

Overrides = Sequence[str] | Mapping[str, Any]
Table = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """A finished output, or the directory of an adopted model. Files are read when they are first asked for."""

    path: Path
    stages: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Stage by name, for the names of fields that were renamed."""

    @cached_property
    def manifest(self) -> Table:
        """How it was made: address, inputs, versions, commit, host, seconds; empty of an adopted directory."""
        return self._table(artifact.MANIFEST)

    @cached_property
    def metrics(self) -> Table:
        """Its numbers, those of its cost (seconds, tokens per second) included."""
        return artifact.measured(self._table(artifact.METRICS), self.manifest)

    @cached_property
    def config(self) -> Table:
        """Every field of its config, by today's names."""
        path = self.path / artifact.STAGE_FILE
        stage = self.stages.get(str(self.manifest.get("stage")))
        return outputs.fields_of(read_yaml(path), stage.config if stage else None) if path.is_file() else {}

    @cached_property
    def log(self) -> list[Table]:
        """One row per logged step; empty of a stage that trains nothing."""
        return outputs.read_log(self.path)

    def model(self) -> Any:
        """The transformers model, on the CPU in eval mode: a causal LM, or a classifier where it is a reward model.

        Raises:
            UserError: where the output has no model, or its files are damaged.
        """
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{self.path}: has no model (no readable config.json); open another step") from None
        if artifact.is_complete(self.path):
            artifact.verify(self.path)
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        from gptlife.stages.modeling.loading import read_weights

        scores = any("Classification" in name for name in config.get("architectures") or [])
        kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        return read_weights(kind, self.path, dtype="auto").eval()

    def tokenizer(self) -> Any:
        """The transformers tokenizer, with its chat template.

        Raises:
            UserError: where the output has none.
        """
        from gptlife.stages.modeling.loading import load_tokenizer

        return load_tokenizer(self.path)

    def _table(self, name: str) -> Table:
        return dict(files.read_json(self.path / name)) if (self.path / name).is_file() else {}


@dataclass(frozen=True)
class Plan:
    """The steps of a recipe in order, each with its address and its state; `plan["ppo"]` is one by name."""

    recipe: Recipe
    steps: tuple[Planned, ...]
    store: Store

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Planned:
        by_name = {step.name: step for step in self.steps}
        if name not in by_name and not isinstance(name, str):
            raise UserError(f"{self.recipe.name}: a step has a name, found {name!r}; give one of: {', '.join(by_name)}")
        if name not in by_name:
            raise UserError(f"{self.recipe.name}: no step '{name}'{suggest(name, list(by_name))}")
        return by_name[name]

    @property
    def done(self) -> bool:
        """Whether every output is there."""
        return all(step.state == "done" for step in self.steps)

    def output(self, name: str) -> Output:
        """The finished output of a step.

        Raises:
            UserError: where there is no such step, or it is not finished.
        """
        step = self[name]
        if step.state != "done":
            raise UserError(f"{name}: not made yet; gptlife run {self.recipe.name} --until {name}")
        return Output(step.path, {step.stage.name: step.stage})


def plan(
    recipe: str | Path, overrides: Overrides = (), store: str | Path = "store", *, steps: Sequence[Step] = LIFECYCLE
) -> Plan:
    """What a recipe (a shipped one's name, or a YAML file) would do: the address of every step. Runs nothing.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    opened = _opened(store)
    for each in steps:
        if not isinstance(each, Step):
            raise UserError(f"steps: {type(each).__name__} is not a step; give step(STAGE, ...) for each")
    loaded = recipes.load(str(recipe), _as_text(overrides), steps)
    return Plan(loaded, tuple(planner.plan(loaded, opened)), opened)


def run(
    recipe: str | Path,
    overrides: Overrides = (),
    store: str | Path = "store",
    *,
    until: str | None = None,
    fresh: Sequence[str] = (),
    jobs: int = 1,
    report: str | Path | None = None,
    steps: Sequence[Step] = LIFECYCLE,
) -> Plan:
    """Make every output of a recipe that is not there yet, then its report; as `gptlife run`, each step a process.

    Args:
        recipe: a shipped recipe's name, or the path of a YAML file.
        overrides: `["seed=1"]` or `{"seed": 1}`.
        store: the directory of all outputs.
        until: the last step to make, with all that it rests on; None: every step.
        fresh: steps whose outputs are removed first; `["all"]`: every one.
        jobs: steps that run in parallel.
        report: where the page goes; None: `<store>/reports/<recipe>.html`.
        steps: the lifecycle.

    Returns:
        The plan, whose outputs can be opened.

    Raises:
        UserError: where the recipe is wrong or a stage failed; its own message is on stderr.
        KeyboardInterrupt: where a signal stopped it; the same call resumes.
    """
    if not is_int(jobs) or jobs < 1:
        raise UserError(f"jobs: expected a whole number above 0, found {jobs!r}; give how many steps may run at once")
    made = plan(recipe, overrides, store, steps=steps)
    page = Path(report) if report is not None else None
    code = runner.run(made.recipe, list(made.steps), made.store, until=until, fresh=fresh, report=page, jobs=jobs)
    if code >= 128:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"{made.recipe.name}: a step failed (its message is above); fix it and run again to resume")
    return made


def open_output(target: str | Path, store: str | Path = "store", *, steps: Sequence[Step] = LIFECYCLE) -> Output:
    """The finished output meant by an address, a directory, a recipe that was run, or `recipe:step`.

    Raises:
        UserError: where there is none.
    """
    path = _opened(store).find(str(target))
    if not any((path / name).is_file() for name in (artifact.MANIFEST, "config.json")):
        raise UserError(f"{path}: not a finished output (no {artifact.MANIFEST}) and not a model (no config.json)")
    return Output(path, {step.stage.name: step.stage for step in steps})


def _as_text(overrides: Overrides) -> list[str]:
    """Overrides as the command line has them; JSON is YAML, so every value reads back as itself."""
    if isinstance(overrides, str) or not isinstance(overrides, Sequence | Mapping):
        raise UserError(f"overrides: expected a list or a mapping, found {overrides!r}; give one, as in ['seed=1']")
    if isinstance(overrides, Mapping):
        return [f"{name}={_json(name, value)}" for name, value in overrides.items()]
    return list(overrides)


def _json(name: str, value: Any) -> str:
    """A value as JSON; paths are texts, and a number of numpy's is a number."""

    def plain(part: Any) -> Any:
        if isinstance(part, Path):
            return str(part)
        if callable(getattr(part, "item", None)):
            return part.item()
        raise UserError(f"overrides: {name}: {type(part).__name__} can't be written into a recipe; give a plain value")

    return json.dumps(value, ensure_ascii=False, default=plain)


def _opened(store: str | Path) -> Store:
    if not isinstance(store, str | Path):
        raise UserError(f'store: expected a directory\'s path, found {store!r}; give store="store"')
    return Store(Path(store))
