"""All commands in one Typer app."""

from __future__ import annotations

from typing import Annotated

import typer

from holitom_cli import __version__
from holitom_cli.cli.ask import ask
from holitom_cli.cli.batch import batch
from holitom_cli.cli.config import defaults
from holitom_cli.cli.doctor import doctor
from holitom_cli.cli.methods import methods
from holitom_cli.cli.options import errors_in_a_sentence
from holitom_cli.cli.pull import pull

app = typer.Typer(
    name="holitom",
    help="Ask questions about video files with a token-compressed LLaVA-OneVision on your own GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (ask, batch, methods, doctor, pull):
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"holitom {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # its callback does the work
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


def run() -> None:
    """Parse the command line and run a command."""
    try:
        with errors_in_a_sentence():
            chosen = defaults()
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from None
    app(prog_name="holitom", default_map=chosen)
