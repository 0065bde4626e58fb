"""All commands in one Typer app."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holitom_cli import __version__
from holitom_cli.cli.config import defaults
from holitom_cli.cli.failure import errors_in_a_sentence
from holitom_cli.cli.guard import closed_pipe_is_fine

if TYPE_CHECKING:
    app: typer.Typer  # made when it is first asked for, see __getattr__

# Each in a module of its name, by the function of this name; in the order in which --help shows them.
_COMMANDS = {
    "demo": "demo",
    "ask": "ask",
    "chat": "chat",
    "serve": "serve",
    "compare": "compare",
    "batch": "batch",
    "eval": "evaluate",
    "bench": "bench",
    "methods": "methods",
    "doctor": "doctor",
    "pull": "pull",
    "cache": "cache",
}
# From the user's config file; a broken one leaves the other commands alone.
TAKE_DEFAULTS = ("ask", "chat", "serve", "compare", "batch", "eval")


def build(names: Iterable[str]) -> typer.Typer:
    """An app with these commands: a question that a server answers does not wait for the modules of the others."""
    made = typer.Typer(
        name="holitom",
        help="Ask questions about video files with a token-compressed LLaVA-OneVision on your own GPU.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(options)
    for name in names:
        made.command(name)(getattr(import_module(f"holitom_cli.cli.{name}"), _COMMANDS[name]))
    return made


def __getattr__(name: str) -> Any:
    """`app`, with all commands."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault("app", build(_COMMANDS))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"holitom {__version__}")
        raise typer.Exit


def options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    if context.invoked_subcommand in TAKE_DEFAULTS:
        context.default_map = {context.invoked_subcommand: defaults()}


def _needed(named: list[str]) -> Iterable[str]:
    """The commands that have to be there for a command line that begins so."""
    if named == ["--version"]:
        return ()
    return named if {*named} & {*_COMMANDS} else _COMMANDS


def run() -> None:
    """Parse the command line, run a command and exit."""
    flags = set(sys.argv[1:])
    with closed_pipe_is_fine(), errors_in_a_sentence(debug="--debug" in flags, as_json="--json" in flags):
        named = sys.argv[1:2]
        commands = build(_needed(named))
        if named != ["ask"]:  # it goes on to import torch, or is done before
            gc.enable()
        raise SystemExit(commands(prog_name="holitom", standalone_mode=False))
