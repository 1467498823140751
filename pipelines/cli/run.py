"""The commands that plan and run recipes: `gptlife plan | run | sweep | report | recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gptlife.pipelines.cli.options import HERE, Jobs, Overrides, RecipeName, StoreDir, Until, console

if TYPE_CHECKING:
    from gptlife.pipelines.api import Plan
    from gptlife.pipelines.lifecycle import Step

app = typer.Typer()


def lifecycle() -> tuple[Step, ...]:
    """The steps that recipes consist of; tests replace them by toys."""
    from gptlife.pipelines.lifecycle import LIFECYCLE

    return LIFECYCLE


def _plan(recipe: str, overrides: list[str] | None, store: Path) -> Plan:
    from gptlife.pipelines import api

    return api.plan(recipe, overrides or [], store, steps=lifecycle())


@app.command()
def plan(recipe: RecipeName, overrides: Overrides = None, store: StoreDir = HERE) -> None:
    """Show what a recipe would do: the address of every step, and whether it is done. Runs nothing."""
    table = Table("step", "address", "state", "launcher", box=None, pad_edge=False)
    for step in _plan(recipe, overrides, store):
        launcher = f"adopted: {step.adopted}" if step.adopted else " ".join(step.launcher)
        table.add_row(step.name, step.address, step.state, launcher)
    console().print(table)


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    store: StoreDir = HERE,
    until: Until = None,
    fresh: Annotated[
        list[str] | None, typer.Option(help="Remove this step's output and make it again (repeatable; `all`).")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes; <store>/reports/ otherwise.")] = None,
    jobs: Jobs = 1,
) -> None:
    """Run every step of a recipe that is not done yet, then write the report. Run it again to resume."""
    from gptlife.pipelines import runner

    made = _plan(recipe, overrides, store)
    code = runner.run(
        made.recipe, list(made.steps), made.store, until=until, fresh=fresh or [], report=report, jobs=jobs
    )
    raise typer.Exit(code)


@app.command()
def sweep(
    recipe: RecipeName,
    arguments: Annotated[
        list[str],
        typer.Argument(help="field=value,value,...: ppo.kl_coef=0,0.02,0.1 seed=0,1,2; single values as in `run`."),
    ],
    store: StoreDir = HERE,
    until: Until = None,
    metric: Annotated[
        list[str] | None, typer.Option(help=r"A column: evaluation.win_rates\[ppo,sft].rate (repeatable).")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of table and plot.")] = None,
    jobs: Jobs = 1,
) -> None:
    """Run a recipe over a grid of values; one table and one plot. What combinations share is made once."""
    from gptlife.pipelines.store import Store
    from gptlife.pipelines.sweep import grid
    from gptlife.pipelines.sweep import run as running

    opened = Store(store)
    planned = grid.plan(recipe, arguments, opened, lifecycle(), until)
    code = running.run(planned, opened, console(), metrics=metric or [], output=output, jobs=jobs)
    raise typer.Exit(code)


@app.command()
def report(
    recipe: RecipeName,
    overrides: Overrides = None,
    store: StoreDir = HERE,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page to write.")] = None,
) -> None:
    """Write a recipe's report again; without overrides, with those of its last run."""
    from gptlife.pipelines.report import page
    from gptlife.pipelines.store import Store

    if not overrides and (last := Store(store).last_run(Path(recipe).stem)):
        recipe, overrides = last["recipe"], last["overrides"]
    made = _plan(recipe, overrides, store)
    path = output or made.store.root / "reports" / f"{made.recipe.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(page.write(list(made.steps), path, made.recipe.name))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from gptlife.pipelines.recipe import shipped

    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name, line in shipped().items():
        table.add_row(name, line)
    console().print(table)
