"""The steps of one recipe, in an order in which each comes after what it reads.

A table is named after a step of the lifecycle, or it adds a step and says which one that is `like`.

    ppo_plain: {like: ppo, pretraining: null}                     # a branch: the same fields except these
    pretrain_small: {like: pretrain, architecture.fields.hidden_size: 64}        # a dotted name goes inside
    comparisons_2: {like: comparisons, inputs: {policy: ppo}}     # another round, with another input
    evaluation: {inputs: {plain: ppo_plain, ppo: null}}           # one input more, one less

Fields besides `like` replace the other step's, `inputs` changes its wiring, and a step can be `like` one that is `like`
a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from gptlife.data.errors import UserError, suggest
from gptlife.data.yaml_tables import copied, put
from gptlife.pipelines.lifecycle import Step

LIKE, INPUTS = "like", "inputs"


def chain(tables: Mapping[str, Any], steps: Sequence[Step], where: str) -> list[tuple[Step, Any]]:
    """Every step that has a table, wired, with its fields (`like` and `inputs` taken out).

    Raises:
        UserError: for a step that is unknown, an input that the stage does not take, or steps that read each other.
    """
    defaults = {step.name: step for step in steps}
    resolved: dict[str, tuple[Step, Any]] = {}
    for name in [*(name for name in defaults if name in tables), *(name for name in tables if name not in defaults)]:
        if tables[name] is not None:
            resolved[name] = _resolved(name, tables, defaults, where, ())
    for step, _ in resolved.values():
        _refuse_bad_inputs(step, tables, defaults, where)
    return _ordered(resolved, where)


def _resolved(
    name: str, tables: Mapping[str, Any], defaults: Mapping[str, Step], where: str, via: tuple[str, ...]
) -> tuple[Step, Any]:
    """A step, and its fields laid over those of the step that it is `like`."""
    here, table = f"{where}: {name}", tables.get(name)
    if not isinstance(table, dict):
        if name in defaults and table is None:  # left out of the chain, but others may be like it
            return defaults[name], {}
        raise UserError(f"{here}: expected a table of fields, found {table!r}")
    if LIKE not in table and name not in defaults:
        raise UserError(f"{here}: not a step of the lifecycle; say which one it is `like`")
    changes, fields = dict(table), dict[str, Any]()
    pattern = changes.pop(LIKE, None)
    if pattern is None:
        step = defaults[name]
    else:
        if pattern in (*via, name):
            raise UserError(f"{here}.like: circular ({' -> '.join([*via, name, pattern])})")
        if not isinstance(pattern, str) or (pattern not in defaults and pattern not in tables):
            hint = suggest(str(pattern), [*defaults, *tables])
            raise UserError(f"{here}.like: no step '{pattern}'{hint}")
        step, fields = _resolved(pattern, tables, defaults, where, (*via, name))
        if name in defaults and defaults[name].stage is not step.stage:
            raise UserError(
                f"{here}.like: '{name}' is a stage, and '{pattern}' is of another ({step.stage.name}); "
                "give the step a name of its own"
            )
        step, fields = replace(step, name=name), {} if "adopt" in {**fields, **changes} else copied(fields)
    inputs = changes.pop(INPUTS, None) or {}
    if not isinstance(inputs, dict):
        raise UserError(f"{here}.inputs: expected a table input: step, found {inputs!r}")
    wired = {key: value for key, value in {**step.inputs, **inputs}.items() if value is not None}
    for field, value in changes.items():
        put(fields, str(field), value, f"{here}.{field}")
    # What a recipe wires to an open stage is meant to be there.
    return replace(step, inputs=wired, droppable=step.droppable - ({*inputs} - {*step.stage.optional})), fields


def _refuse_bad_inputs(step: Step, tables: Mapping[str, Any], defaults: Mapping[str, Step], where: str) -> None:
    for name, upstream in step.inputs.items():
        here = f"{where}: {step.name}.inputs.{name}"
        if not step.stage.takes(str(name)):
            takes = [*step.stage.inputs, *step.stage.optional]
            raise UserError(f"{here}: {step.stage.name} has no such input{suggest(str(name), takes)}")
        if upstream not in tables and upstream not in defaults:
            raise UserError(f"{here}: no step '{upstream}'{suggest(str(upstream), [*tables, *defaults])}")


def _ordered(steps: dict[str, tuple[Step, Any]], where: str) -> list[tuple[Step, Any]]:
    """Steps after what they read; of those that could come next, the one that was given first."""
    rank = {name: index for index, name in enumerate(steps)}
    reads = {name: [up for up in step.inputs.values() if up in steps] for name, (step, _) in steps.items()}
    sorter = TopologicalSorter(reads)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise UserError(f"{where}: steps read each other's outputs ({circle}); fix their `inputs`") from None
    ordered: list[tuple[Step, Any]] = []
    ready: set[str] = set()
    while sorter.is_active():
        ready.update(sorter.get_ready())
        name = min(ready, key=rank.__getitem__)
        ready.remove(name)
        sorter.done(name)
        ordered.append(steps[name])
    return ordered
