"""All commands in one Typer app."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from holitom_cli import __version__
from holitom_cli.cli.ask import ask
from holitom_cli.cli.batch import batch
from holitom_cli.cli.bench import bench
from holitom_cli.cli.cache import cache
from holitom_cli.cli.chat import chat
from holitom_cli.cli.compare import compare
from holitom_cli.cli.config import defaults
from holitom_cli.cli.demo import demo
from holitom_cli.cli.doctor import doctor
from holitom_cli.cli.eval import evaluate
from holitom_cli.cli.failure import errors_in_a_sentence
from holitom_cli.cli.guard import closed_pipe_is_fine
from holitom_cli.cli.methods import methods
from holitom_cli.cli.pull import pull
from holitom_cli.cli.serve import serve

app = typer.Typer(
    name="holitom",
    help="Ask questions about video files with a token-compressed LLaVA-OneVision on your own GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# From the user's config file; a broken one leaves the other commands alone.
TAKE_DEFAULTS = ("ask", "chat", "serve", "compare", "batch", "eval")
for _command in (demo, ask, chat, serve, compare, batch):
    app.command()(_command)
app.command("eval")(evaluate)
for _command in (bench, methods, doctor, pull, cache):
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"holitom {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    if context.invoked_subcommand in TAKE_DEFAULTS:
        context.default_map = {context.invoked_subcommand: defaults()}


def run() -> None:
    """Parse the command line, run a command and exit."""
    flags = set(sys.argv[1:])
    with closed_pipe_is_fine(), errors_in_a_sentence(debug="--debug" in flags, as_json="--json" in flags):
        raise SystemExit(app(prog_name="holitom", standalone_mode=False))
