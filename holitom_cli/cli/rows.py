"""Rows of many clips: appended to a file so that nothing is lost or torn, with progress on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from holitom_cli.cli.console import Talk
from holitom_cli.errors import BatchError, HolitomError, reason
from holitom_cli.report.text import visible

SOME_FAILED = 3  # exit code


@contextmanager
def appending(output: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Add rows to the end of a file, which nobody else writes meanwhile, and which is not left behind empty.

    Raises:
        BatchError: another process writes to it.
    """
    from holitom_cli.batch.ledger import only_writer
    from holitom_cli.batch.manifest import mend_last_row

    new = not output.exists()
    try:
        with output.open("ab", buffering=0) as file:
            regular = output.is_file()
            if not regular:
                yield lambda row: _append(file, output, row, lasting=False)
                return
            with only_writer(file, output):
                mend_last_row(output)
                yield lambda row: _append(file, output, row, lasting=True)
    finally:
        if new and output.is_file() and not output.stat().st_size:
            output.unlink()


def _append(file: FileIO, output: Path, row: Mapping[str, Any], *, lasting: bool) -> None:
    """Write a whole row, on disk before the next clip is begun, or nothing."""
    begin = output.stat().st_size
    rest = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        while rest:  # an unbuffered file may take less than it is offered
            rest = rest[file.write(rest) :]
        if lasting:
            os.fsync(file.fileno())
    except OSError as error:
        if lasting:
            file.truncate(begin)
        raise BatchError(
            f"{output} cannot be written: {reason(error)}.", "Make room there and run it again to go on."
        ) from error


Step = Callable[[object, int, Sequence[HolitomError]], None]


@contextmanager
def progress(talk: Talk, total: int) -> Iterator[Step]:
    """A bar on a terminal, a line a clip elsewhere; to be told of each clip, how many answers it got and its errors."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    shown = talk.console.is_terminal and not talk.quiet
    with Progress(*columns, console=talk.console, disable=not shown) as bar:
        task = bar.add_task("clips", total=total)

        def step(clip: object, answered: int, errors: Sequence[HolitomError]) -> None:
            bar.advance(task)
            state = f"failed: {errors[0].message}" if errors else f"{answered} answered" if answered else "skipped"
            if errors or not shown:
                talk.say(Text(visible(f"{clip}: {state}")))

        yield step
