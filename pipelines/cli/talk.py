"""The commands for talking to models and looking at data: `gptlife chat | compare | label | data check`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gptlife.data.errors import UserError
from gptlife.pipelines.cli.options import HERE, MaxTokens, Seed, StoreDir, Target, Temperature, console, plain

app = typer.Typer()
data_app = typer.Typer(help="Check data before it is used.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def chat(
    target: Target,
    store: StoreDir = HERE,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 200,
    seed: Seed = 0,
) -> None:
    """Talk to a finished model; /reset starts a new conversation, /quit ends."""
    from gptlife.pipelines.store import Store
    from gptlife.stages.generation import chat as talking

    path = Store(store).find(target, talking.is_language_model)
    speaker = talking.load(path)
    print(f"{path.name} (/reset, /quit)", file=sys.stderr)
    talking.talk(speaker, _typed(), print, talking.Sampling(temperature, max_tokens, seed))


def _typed() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


@app.command()
def compare(
    a: Target,
    b: Target,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts: .txt (one per line) or any known format.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="One prompt (repeatable).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Use at most this many prompts of the file.")] = 10,
    store: StoreDir = HERE,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 200,
    seed: Seed = 0,
) -> None:
    """Two models' answers to the same prompts, side by side."""
    from gptlife.pipelines.store import Store
    from gptlife.stages.generation import chat as talking

    asked = [[{"role": "user", "content": text}] for text in prompt or []]
    if prompts is not None:
        asked += talking.read_prompts(prompts, limit)
    if not asked:
        raise UserError("compare: no prompts; give --prompt TEXT or --prompts FILE")
    opened = Store(store)
    paths = [opened.find(target, talking.is_language_model) for target in (a, b)]
    table = Table("prompt", *(path.name for path in paths), show_lines=True)
    sampling = talking.Sampling(temperature, max_tokens, seed)
    for text, answers in talking.compare([talking.load(path) for path in paths], asked, sampling):
        table.add_row(*(plain(cell) for cell in (text, *answers)))
    console().print(table)


@app.command()
def label(
    source: Annotated[
        str,
        typer.Argument(
            help="An output of comparisons (address, directory, recipe:step), or a file of prompts and answers."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The rankings (.jsonl), as reward_model reads them.")],
    labeler: Annotated[str, typer.Option(help="Name of the person who ranks; several may share the file.")] = "labeler",
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many prompts, from the first.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order in which answers are shown.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any free port.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to serve on; this machine's network address lets a phone in (unencrypted).")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the page's address.")] = False,
    store: StoreDir = HERE,
) -> None:
    """Rank answers yourself on a local page; writes the file that reward_model reads. Run it again to continue."""
    from gptlife.pipelines.labeling import session as labeling
    from gptlife.pipelines.labeling.server import LabelServer, serve
    from gptlife.pipelines.store import Store

    session, problems = labeling.start(source, output, labeler, Store(store), limit=limit, seed=seed)
    if problems:
        print(f"{len(problems)} rows are left out; the first: {problems[0]}", file=sys.stderr)
    serve(LabelServer(session, host, port), browser=not no_browser)


@data_app.command("check")
def data_check(
    file: Annotated[str, typer.Argument(help="A data file (or a quoted glob).")],
    tokenizer: Annotated[str | None, typer.Option(help="Directory of a tokenizer: lengths in its tokens.")] = None,
) -> None:
    """Format, row count, lengths, duplicates and every problem of a data file, with line numbers.

    The exit code is 1 if a row can't be used.
    """
    from gptlife.data.check import check, render

    result = check(file, tokenizer)
    print(render(result))
    raise typer.Exit(1 if result.problems else 0)
