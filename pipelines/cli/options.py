"""Arguments and options that several commands share, and how they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name (see `gptlife recipes`) or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="step.field=value, seed=3, vars.name=value, step=null (leave it out)."),
]
StoreDir = Annotated[Path, typer.Option("--store", help="Directory of all outputs.")]
Target = Annotated[str, typer.Argument(help="An address, a directory, or a recipe that was run (recipe:step).")]
Jobs = Annotated[
    int,
    typer.Option(
        min=1, help="Steps to run in parallel; each gets a share of the cores, which can change results bitwise."
    ),
]
Until = Annotated[str | None, typer.Option(help="Make this step and the steps that it depends on.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
HERE = Path("store")


def console() -> Console:
    """The console for tables; piped output is wide enough that no address is cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def plain(text: str) -> Any:
    """Text whose [brackets] are printed as they are; rich would read them as markup."""
    from rich.text import Text

    return Text(text)
