"""The steps of one recipe, in an order in which each comes after what it reads.

A table is named after a step of the lifecycle, or it is a step of the recipe's own: then it says like which one.

    ppo_plain: {like: ppo, pretraining: null}                     # a branch: the same fields but for these
    pretrain_small: {like: pretrain, architecture.fields.hidden_size: 64}        # a dotted name goes inside
    comparisons_2: {like: comparisons, inputs: {policy: ppo}}     # another round: what it reads instead
    evaluation: {inputs: {plain: ppo_plain, ppo: null}}           # one more input, and one less

Fields beside `like` replace the other step's, `inputs` changes its wiring, and both can be chained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptlife.data.errors import UserError, suggest
from gptlife.data.yaml_tables import copied, put

if TYPE_CHECKING:
    from gptlife.pipelines.lifecycle import Step

LIKE, INPUTS = "like", "inputs"


def chain(tables: Mapping[str, Any], steps: Sequence[Step], where: str) -> list[tuple[Step, Any]]:
    """Every step that has a table, wired, with its fields (`like` and `inputs` taken out).

    Raises:
        UserError: for a step that is unknown, an input that the stage does not take, or steps that read each other.
    """
    defaults = {step.name: step for step in steps}
    found: dict[str, tuple[Step, Any]] = {}
    for name in [*(name for name in defaults if name in tables), *(name for name in tables if name not in defaults)]:
        if tables[name] is not None:
            found[name] = _resolved(name, tables, defaults, where, ())
    for step, _ in found.values():
        _refuse_bad_inputs(step, tables, defaults, where)
    return _ordered(found, where)


def _resolved(
    name: str, tables: Mapping[str, Any], defaults: Mapping[str, Step], where: str, via: tuple[str, ...]
) -> tuple[Step, Any]:
    """A step and its own fields laid over those of the step that it is like."""
    place, table = f"{where}: {name}", tables.get(name)
    if not isinstance(table, dict):
        if name in defaults and table is None:  # left out itself, but a fine pattern
            return defaults[name], {}
        raise UserError(f"{place}: expected a table of fields, found {table!r}")
    if LIKE not in table and name not in defaults:
        raise UserError(f"{place}: is no step of the lifecycle, and does not say which one it is `like`")
    own, fields = dict(table), dict[str, Any]()
    pattern = own.pop(LIKE, None)
    if pattern is None:
        step = defaults[name]
    else:
        if pattern in (*via, name):
            raise UserError(f"{place}.like: goes round in a circle ({' -> '.join([*via, name, pattern])})")
        if not isinstance(pattern, str) or (pattern not in defaults and pattern not in tables):
            hint = suggest(str(pattern), [*defaults, *tables])
            raise UserError(f"{place}.like: no step '{pattern}'{hint}")
        step, fields = _resolved(pattern, tables, defaults, where, (*via, name))
        step, fields = replace(step, name=name), {} if "adopt" in {**fields, **own} else copied(fields)
    inputs = own.pop(INPUTS, None) or {}
    if not isinstance(inputs, dict):
        raise UserError(f"{place}.inputs: expected a table input: step, found {inputs!r}")
    wired = {key: value for key, value in {**step.inputs, **inputs}.items() if value is not None}
    for field, value in own.items():
        put(fields, str(field), value, f"{place}.{field}")
    # What a recipe wires to an open stage is meant to be there.
    return replace(step, inputs=wired, droppable=step.droppable - ({*inputs} - {*step.stage.optional})), fields


def _refuse_bad_inputs(step: Step, tables: Mapping[str, Any], defaults: Mapping[str, Step], where: str) -> None:
    for name, upstream in step.inputs.items():
        place = f"{where}: {step.name}.inputs.{name}"
        if not step.stage.takes(str(name)):
            known = [*step.stage.inputs, *step.stage.optional]
            raise UserError(f"{place}: {step.stage.name} has no such input{suggest(str(name), known)}")
        if upstream not in tables and upstream not in defaults:
            raise UserError(f"{place}: no step '{upstream}'{suggest(str(upstream), [*tables, *defaults])}")


def _ordered(found: dict[str, tuple[Step, Any]], where: str) -> list[tuple[Step, Any]]:
    """Steps after what they read; otherwise in the order they came."""
    placed: dict[str, tuple[Step, Any]] = {}
    while len(placed) < len(found):
        ready = next(
            (
                name
                for name, (step, _) in found.items()
                if name not in placed and all(up in placed or up not in found for up in step.inputs.values())
            ),
            None,
        )
        if ready is None:
            left = [name for name in found if name not in placed]
            raise UserError(f"{where}: {', '.join(left)} read each other's outputs; mend their `inputs`")
        placed[ready] = found[ready]
    return list(placed.values())
