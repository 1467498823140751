"""The commands that look at finished outputs: `gptlife show | verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.tree import Tree

from gptlife.data.errors import UserError
from gptlife.pipelines.cli.options import HERE, StoreDir, Target, console, plain

if TYPE_CHECKING:
    from gptlife.pipelines.store import Store

app = typer.Typer()


@app.command()
def show(target: Target, store: StoreDir = HERE) -> None:
    """Show a finished output: how it was made, from what, and its metrics."""
    from gptlife.data.yaml_tables import read_yaml
    from gptlife.pipelines.outputs import NOTES
    from gptlife.pipelines.store import Store
    from gptlife.stages.runtime import artifact, files

    opened = Store(store)
    path = opened.find(target)
    if not artifact.is_complete(path):
        raise UserError(f"{path}: not a finished output of gptlife (no {artifact.MANIFEST}); try another directory")
    artifact.verify(path, (artifact.METRICS, artifact.STAGE_FILE))
    manifest = files.read_json(path / artifact.MANIFEST)
    out = console()
    out.print(f"[bold]{manifest['address']}[/bold]  {path}", soft_wrap=True)
    out.print(_pairs({k: v for k, v in manifest.items() if k not in ("identity", "files", "inputs", "address")}))
    out.print("\nmade from", style="bold")
    out.print(_lineage(path, manifest, opened))
    for title, name, read, hidden in (
        ("config", artifact.STAGE_FILE, read_yaml, NOTES),
        ("metrics", artifact.METRICS, files.read_json, ()),
    ):
        if (path / name).is_file():
            out.print(f"\n{title}", style="bold")
            out.print(_pairs({key: value for key, value in read(path / name).items() if key not in hidden}))


@app.command()
def verify(
    targets: Annotated[list[str] | None, typer.Argument(help="As in `show`; none: all of the store.")] = None,
    store: StoreDir = HERE,
) -> None:
    """Compare finished outputs with their manifests, byte for byte; exit code 1 where one is damaged."""
    from gptlife.pipelines.store import Store
    from gptlife.stages.runtime import artifact

    opened, code = Store(store), 0
    paths = [opened.find(target) for target in targets] if targets else opened.outputs()
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
    """Dotted names and printable values of everything inside a table; None is left out."""
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
    from gptlife.stages.runtime import artifact, files

    tree = Tree(manifest["address"])
    for name, address in manifest["inputs"].items():
        beside = next((p for p in (path.parent / address, store.path(address)) if artifact.is_complete(p)), None)
        if beside is None:
            tree.add(f"{name}: {address} (not in this store)")
        else:
            branch = _lineage(beside, files.read_json(beside / artifact.MANIFEST), store)
            branch.label = f"{name}: {branch.label}"
            tree.children.append(branch)
    return tree
