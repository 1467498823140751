"""The command line: `gptlife plan | run | sweep | report | recipes | show | verify | chat | compare | label | data`.

Every command is a few lines over the modules that do the work. None of them imports torch before a model must answer.
"""

from __future__ import annotations

import io
import sys

import typer

from gptlife.data.errors import UserError
from gptlife.pipelines.cli import look, run, talk

app = typer.Typer(
    help="The full life of a GPT: text, tokenizer, pretraining, SFT, comparisons, reward model, PPO, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (run, look, talk):
    app.add_typer(part.app)


def main() -> None:
    """Entry point: an error that the user can fix is one line on stderr and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that the terminal cannot print is shown as its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        print(f"gptlife: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("gptlife: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
