"""The command line: `gptlife plan | run | sweep | show | verify | report | recipes | chat | compare | label | data`.

Every command is a few lines over the modules beside it. Nothing here imports torch before a model must speak.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.tree import Tree

from gptlife.data.errors import UserError
from gptlife.data.yaml_tables import read_yaml
from gptlife.pipelines import cli_talk
from gptlife.pipelines.cli_options import HERE, Jobs, Overrides, RecipeName, StoreDir, Target, console, plain

if TYPE_CHECKING:
    from gptlife.pipelines.lifecycle import Step
    from gptlife.pipelines.planner import Planned
    from gptlife.pipelines.recipe import Recipe
    from gptlife.pipelines.store import Store

app = typer.Typer(
    help="The full life of a GPT: text, tokenizer, pretraining, SFT, comparisons, reward model, PPO, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: what the user can mend is one line on stderr and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that has no such letter shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        print(f"gptlife: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("gptlife: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _lifecycle() -> tuple[Step, ...]:
    from gptlife.pipelines.lifecycle import LIFECYCLE

    return LIFECYCLE


def _plan(source: str, overrides: list[str] | None, store_dir: Path) -> tuple[Recipe, list[Planned], Store]:
    from gptlife.pipelines import planner, recipe
    from gptlife.pipelines.store import Store

    store = Store(store_dir)
    loaded = recipe.load(source, overrides or [], _lifecycle())
    return loaded, planner.plan(loaded, store), store


@app.command()
def plan(recipe: RecipeName, overrides: Overrides = None, store: StoreDir = HERE) -> None:
    """Show what a recipe would do: the address of every step, and whether it is there. Runs nothing."""
    _, planned, _ = _plan(recipe, overrides, store)
    table = Table("step", "address", "state", "launcher", box=None, pad_edge=False)
    for step in planned:
        launcher = f"adopted: {step.adopted}" if step.adopted else " ".join(step.launcher)
        table.add_row(step.name, step.address, step.state, launcher)
    console().print(table)


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    store: StoreDir = HERE,
    until: Annotated[str | None, typer.Option(help="Make this step, and what it rests on.")] = None,
    fresh: Annotated[
        list[str] | None, typer.Option(help="Remove this step's output and make it again (repeatable; `all`).")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes; <store>/reports/ otherwise.")] = None,
    jobs: Jobs = 1,
) -> None:
    """Run a recipe: every step whose output is not there yet, then the report. Run it again to resume."""
    from gptlife.pipelines import runner

    loaded, planned, opened = _plan(recipe, overrides, store)
    raise typer.Exit(runner.run(loaded, planned, opened, until=until, fresh=fresh or [], report=report, jobs=jobs))


@app.command()
def sweep(
    recipe: RecipeName,
    arguments: Annotated[
        list[str],
        typer.Argument(help="field=value,value,...: ppo.kl_coef=0,0.02,0.1 seed=0,1,2; single values as in `run`."),
    ],
    store: StoreDir = HERE,
    until: Annotated[str | None, typer.Option(help="Make this step, and what it rests on.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help=r"A column: evaluation.win_rates\[ppo,sft].rate (repeatable).")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of table and plot.")] = None,
    jobs: Jobs = 1,
) -> None:
    """Run a recipe over a grid of values; one table and one plot. What combinations share is made once."""
    from gptlife.pipelines.store import Store
    from gptlife.pipelines.sweep import grid

    opened = Store(store)
    planned = grid.plan(recipe, arguments, opened, _lifecycle(), until)
    code = grid.run(planned, opened, console(), metrics=metric or [], output=output, jobs=jobs)
    raise typer.Exit(code)


@app.command()
def report(
    recipe: RecipeName,
    overrides: Overrides = None,
    store: StoreDir = HERE,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page to write.")] = None,
) -> None:
    """Write a recipe's report again. Without overrides those of its last run hold."""
    from gptlife.pipelines.report import page
    from gptlife.pipelines.store import Store

    if not overrides and (last := Store(store).last_run(Path(recipe).stem)):
        recipe, overrides = last["recipe"], last["overrides"]
    loaded, planned, opened = _plan(recipe, overrides, store)
    path = output or opened.root / "reports" / f"{loaded.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(page.write(planned, path, loaded.name))


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from gptlife.pipelines.recipe import shipped

    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name, line in shipped().items():
        table.add_row(name, line)
    console().print(table)


@app.command()
def show(target: Target, store: StoreDir = HERE) -> None:
    """Show a finished output: how it was made, from what, and its metrics."""
    from gptlife.pipelines.store import Store
    from gptlife.stages.runtime import artifact
    from gptlife.stages.runtime.files import read_json

    opened = Store(store)
    path = opened.find(target)
    if not artifact.is_complete(path):
        raise UserError(f"{path}: no finished output of gptlife (it has no {artifact.MANIFEST}); try another directory")
    artifact.verify(path, (artifact.METRICS, artifact.STAGE_FILE))
    manifest = read_json(path / artifact.MANIFEST)
    out = console()
    out.print(f"[bold]{manifest['address']}[/bold]  {path}", soft_wrap=True)
    out.print(_pairs({k: v for k, v in manifest.items() if k not in ("identity", "files", "inputs", "address")}))
    out.print("\nmade from", style="bold")
    out.print(_lineage(path, manifest, opened))
    for title, name, read in (
        ("config", artifact.STAGE_FILE, read_yaml),
        ("metrics", artifact.METRICS, read_json),
    ):
        if (path / name).is_file():
            out.print(f"\n{title}", style="bold")
            noted = ("identity", "inputs", "input_addresses", "output", "stage", "version")
            out.print(_pairs({k: v for k, v in read(path / name).items() if title != "config" or k not in noted}))


@app.command()
def verify(
    targets: Annotated[list[str] | None, typer.Argument(help="As in `show`; none: all of the store.")] = None,
    store: StoreDir = HERE,
) -> None:
    """Compare finished outputs with their manifests, byte for byte; exit code 1 where one is damaged."""
    from gptlife.pipelines.store import Store
    from gptlife.stages.runtime import artifact

    opened, code = Store(store), 0
    paths = [opened.find(target) for target in targets] if targets else opened.artefacts()
    if not paths:
        raise UserError(f"{opened.root}: no finished output; start with: gptlife run RECIPE")
    for path in paths:
        try:
            artifact.verify(path)
            print(f"{path.name}: good", flush=True)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            code = 1
    raise typer.Exit(code)


def _pairs(values: dict[str, Any]) -> Table:
    """A table of names and values."""
    table = Table.grid(padding=(0, 2))
    for name, value in _flat(values):
        table.add_row(plain(f"  {name}"), plain(value))
    return table


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and printable values of everything inside a table; what is None is left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    elif isinstance(value, float):
        yield name, f"{value:.6g}"
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield name, text if len(text) <= 120 else f"{text[:117]}..."


def _lineage(path: Path, manifest: dict[str, Any], store: Store) -> Tree:
    """The output and, below it, what it was made from, down to the text."""
    from gptlife.stages.runtime import artifact
    from gptlife.stages.runtime.files import read_json

    tree = Tree(manifest["address"])
    for name, address in manifest["inputs"].items():
        beside = next((p for p in (path.parent / address, store.path(address)) if artifact.is_complete(p)), None)
        if beside is None:
            tree.add(f"{name}: {address} (not in this store)")
        else:
            branch = _lineage(beside, read_json(beside / artifact.MANIFEST), store)
            branch.label = f"{name}: {branch.label}"
            tree.children.append(branch)
    return tree


app.add_typer(cli_talk.app)

if __name__ == "__main__":
    main()
