"""holitom pull: get a checkpoint before it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk, write
from holitom_cli.cli.options import command


@command()
def pull(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id.", show_default=False)],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.")] = False,
) -> None:
    """Download a checkpoint, after saying what it takes. Prints where it is."""
    source = session.fetch(model, revision, Talk(), yes=yes)
    write(f"{source.path}\n")
