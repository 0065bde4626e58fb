"""Errors as people and programs read them: a sentence, a hint and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from holitom_cli.cli.console import Talk, write_json
from holitom_cli.cli.guard import INTERRUPTED
from holitom_cli.errors import HolitomError, UsageError, in_a_sentence
from holitom_cli.report.record import error_document

# Typer exports one kind of its usage errors; the class of all of them moved between its versions.
_NotUnderstood: Any = typer.BadParameter.__base__


@contextmanager
def errors_in_a_sentence(*, debug: bool = False, as_json: bool = False) -> Iterator[None]:
    """Exit with the error's code after telling it; `debug` shows its traceback first."""
    try:
        yield
    except BrokenPipeError:
        raise
    except typer.Abort:  # Ctrl-C or the end of stdin, while a question waits for its answer
        raise SystemExit(INTERRUPTED) from None
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        _tell(_not_understood(error) if isinstance(error, _NotUnderstood) else in_a_sentence(error), as_json=as_json)


def _tell(error: HolitomError, *, as_json: bool) -> NoReturn:
    try:
        if as_json:
            write_json(error_document(error))
    except OSError:  # stdout itself is what failed
        as_json = False
    if not as_json:
        from holitom_cli.report.terminal import error_line

        Talk().insist(error_line(error))
    raise SystemExit(error.exit_code)


def _not_understood(error: Any) -> UsageError:
    """What Typer found wrong with the command line, the environment or the config file."""
    from holitom_cli.cli.config import config_file

    message = error.format_message().rstrip(".")
    context, parameter = error.ctx, getattr(error, "param", None)
    source = context.get_parameter_source(parameter.name) if context and parameter else None
    if source is not None and source.name == "DEFAULT_MAP":
        return UsageError(f"{message}.", f"Mend {config_file()}, where this value comes from.")
    command = context.command_path if context else "holitom"
    return UsageError(f"{message}.", f"See: {command} --help")
