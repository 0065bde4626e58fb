"""holitom batch: the same questions about many clips."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk, write_json
from holitom_cli.cli.options import (
    AnswerOptions,
    Choices,
    MethodOptions,
    ModelOptions,
    VideoOptions,
    command,
    split_choices,
)
from holitom_cli.errors import BatchError, reason
from holitom_cli.report.record import error_record, flat_record
from holitom_cli.report.text import visible
from holitom_cli.types import Answer, Generation

if TYPE_CHECKING:
    from holitom_cli.batch.runner import Item

SOME_FAILED = 3


@command(VideoOptions, ModelOptions, MethodOptions, AnswerOptions)
def batch(
    video: VideoOptions,
    model: ModelOptions,
    method: MethodOptions,
    answer: AnswerOptions,
    *,
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(metavar="PATHS", help="Video files, and folders of them.")],
    questions: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", metavar="TEXT", help="A question; may be given several times."),
    ] = None,
    questions_file: Annotated[
        Path | None, typer.Option("--questions", "-Q", metavar="FILE", help="A file with one question a line.")
    ] = None,
    choices: Choices = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A JSONL file to append to; what it has answers for is skipped."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no summary.")] = False,
) -> None:
    """Ask the same questions about many clips: one JSON line for each clip and question.

    Clips that fail become rows with an error; the exit code is 3 then. Run it again to go on where it stopped.
    """
    talk = Talk(quiet=quiet)
    asked = session.read_questions(None, questions, questions_file)
    given = split_choices(choices)
    chosen = method.build(context)
    from holitom_cli import pipeline
    from holitom_cli.batch import manifest, runner

    generation = pipeline.check_generation(Generation(**asdict(answer)))
    clips = manifest.find_clips(paths)
    finished = manifest.finished_keys(output) if output else set()
    plan = runner.Plan(asked, chosen, generation, video.num_frames, video.decode_timeout, given)
    with _rows(output) as add, _progress(talk, len(clips)) as step:
        checkpoint = session.find_checkpoint(model, chosen, talk)
        session.check_room(checkpoint, chosen, 1, asked, given)
        loaded = session.load(model, checkpoint, talk)
        tally = {"answered": 0, "failed": 0, "skipped": 0}
        for clip, items in zip(clips, runner.run(loaded, clips, plan, finished), strict=True):
            for item in items:
                add(_row(item))
            failed = sum(not isinstance(item.outcome, Answer) for item in items)
            tally["failed"] += failed
            tally["answered"] += len(items) - failed
            tally["skipped"] += len(asked) - len(items)
            step(clip, items)
    talk.say(", ".join(f"{count} {what}" for what, count in tally.items()))
    if tally["failed"]:
        raise typer.Exit(SOME_FAILED)


def _row(item: Item) -> Mapping[str, Any]:
    if isinstance(item.outcome, Answer):
        return flat_record(item.outcome, item.key)
    return error_record(str(item.clip), item.question, item.outcome, item.key)


@contextmanager
def _rows(output: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Where rows go: stdout, or the end of a file, which is not left behind empty."""
    if output is None:
        yield lambda row: write_json(row, indent=None)
        return
    from holitom_cli.batch.manifest import mend_last_row

    new = not output.exists()
    try:
        with output.open("ab", buffering=0) as file:
            regular = output.is_file()
            if regular:
                mend_last_row(output)
            yield lambda row: _append(file, output, row, lasting=regular)
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


@contextmanager
def _progress(talk: Talk, total: int) -> Iterator[Callable[[Path, Sequence[Item]], None]]:
    """A bar on a terminal, a line a clip elsewhere."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    shown = talk.console.is_terminal and not talk.quiet
    with Progress(*columns, console=talk.console, disable=not shown) as bar:
        task = bar.add_task("clips", total=total)

        def step(clip: Path, items: Sequence[Item]) -> None:
            bar.advance(task)
            errors = [item.outcome for item in items if not isinstance(item.outcome, Answer)]
            state = f"failed: {errors[0].message}" if errors else f"{len(items)} answered" if items else "skipped"
            if errors or not shown:
                talk.say(Text(visible(f"{clip}: {state}")))

        yield step
