"""holitom batch: the same questions about many clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk, write_json
from holitom_cli.cli.options import (
    AnswerOptions,
    CacheOptions,
    Choices,
    MethodOptions,
    ModelOptions,
    SamplingOptions,
    VideoOptions,
    command,
    split_choices,
)
from holitom_cli.cli.rows import SOME_FAILED, appending, progress
from holitom_cli.errors import HolitomError
from holitom_cli.report.record import error_record, flat_record
from holitom_cli.report.terminal import warning_line
from holitom_cli.types import Answer, Generation

if TYPE_CHECKING:
    from holitom_cli.batch.runner import Item


@command(VideoOptions, SamplingOptions, CacheOptions, ModelOptions, MethodOptions, AnswerOptions)
def batch(
    video: VideoOptions,
    sampling: SamplingOptions,
    kept: CacheOptions,
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
    given = split_choices(choices, context)
    chosen, wish = method.build(context), sampling.build(video, context)
    from holitom_cli.video import warm_up

    warm_up()
    from holitom_cli import pipeline
    from holitom_cli.batch import manifest, runner

    generation = pipeline.check_generation(Generation(**asdict(answer)))
    clips, cache = manifest.find_clips(paths), kept.open()
    finished = set(manifest.finished_rows(output)) if output else set()
    plan = runner.Plan(asked, chosen, generation, wish, video.decode_timeout, cache, given)
    with _rows(output) as add, progress(talk, len(clips)) as step:
        checkpoint = session.find_checkpoint(model, chosen, talk)
        session.check_room(checkpoint, chosen, 1, asked, given)
        loaded = session.load(model, checkpoint, talk)
        tally = {"answered": 0, "failed": 0, "skipped": 0}
        for clip, items in zip(clips, runner.run(loaded, clips, plan, finished), strict=True):
            for item in items:
                add(_row(item))
            errors = [item.outcome for item in items if isinstance(item.outcome, HolitomError)]
            tally["failed"] += len(errors)
            tally["answered"] += len(items) - len(errors)
            tally["skipped"] += len(asked) - len(items)
            step(clip, len(items), errors)
            for warning in next(
                (item.outcome.frames.warnings for item in items if isinstance(item.outcome, Answer)), ()
            ):
                talk.say(warning_line(f"{clip}: {warning}"))
    if cache and cache.trouble:
        talk.say(warning_line(cache.trouble))
    talk.say(", ".join(f"{count} {what}" for what, count in tally.items()))
    if tally["failed"]:
        raise typer.Exit(SOME_FAILED)


def _row(item: Item) -> Mapping[str, Any]:
    if isinstance(item.outcome, Answer):
        return flat_record(item.outcome, item.key)
    return error_record(str(item.clip.absolute()), item.question, item.outcome, item.key)


def _rows(output: Path | None) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """Where rows go: stdout, or the end of a file."""
    return appending(output) if output else nullcontext(lambda row: write_json(row, indent=None))
