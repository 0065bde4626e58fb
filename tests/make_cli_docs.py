"""Write docs/cli.md from the commands' own help: `python -m tests.make_cli_docs`.

The texts are those that --help shows; the layout is ours, so that neither the terminal's width nor Typer's taste in
tables decides what the file looks like.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """\
# The command line

What `holitom COMMAND --help` says. This file is written by `make docs`.

Every option with a variable takes its value from there when it is not given, else from `config.toml` in the user's
configuration directory (`holitom doctor` names it), where the keys are the options of `ask` and `batch` without their
dashes: `retain-ratio = 0.2`. An option beats the variable, the variable beats the file.

Exit codes: 0 fine, 1 it failed, 2 wrong usage, 3 a batch or an evaluation with failed items, or a chat
with a failed line that was piped, 130 interrupted.
"""


def main() -> None:
    """Write the file."""
    TARGET.write_text(text(), encoding="utf-8")


def text() -> str:
    """The whole file."""
    from holitom_cli.cli.app import app

    group: Any = typer.main.get_command(app)
    parts = [HEAD, *(line for name, command in group.commands.items() for line in _command(name, command))]
    return "\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## holitom {name}\n"
    yield inspect.cleandoc(command.help) + "\n"
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    pieces = [item.metavar if item.required else f"[{item.metavar}]" for item in arguments]
    yield " ".join(["    holitom", name, "[OPTIONS]", *pieces]) + "\n"
    yield from _table(["argument", ""], [[f"`{item.metavar}`", item.help] for item in arguments])
    panels: dict[str, list[list[str]]] = {}
    for option in command.params:
        if option.param_type_name == "option":
            panels.setdefault(option.rich_help_panel or "Options", []).append(_option(option))
    for panel, rows in panels.items():
        yield from _table([panel.lower(), "", "default", "variable"], rows)


def _option(option: Any) -> list[str]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    default = "" if option.default is None or option.is_flag else f"{option.default}"
    if isinstance(option.show_default, str):
        default = option.show_default
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    variable = ", ".join(f"`{name}`" for name in variables)
    return [names + value, option.help, default, variable]


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    if rows:
        lines = [head, ["---"] * len(head), *rows]
        yield "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
