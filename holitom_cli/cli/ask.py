"""holitom ask: questions about one video file."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holitom_cli.cli import served, session
from holitom_cli.cli.console import Talk, write, write_json
from holitom_cli.cli.options import (
    AnswerOptions,
    CacheOptions,
    Choices,
    ContextOptions,
    MethodOptions,
    ModelOptions,
    PictureOptions,
    RuntimeOptions,
    SamplingOptions,
    ServerChoice,
    ServerUse,
    VideoOptions,
    command,
    refuse_idle,
    split_choices,
)
from holitom_cli.report.record import document
from holitom_cli.report.text import visible
from holitom_cli.types import AnswerRecord, Generation, Watched

if TYPE_CHECKING:
    from holitom_cli.cli.inline import Painter
    from holitom_cli.model.loading import Model
    from holitom_cli.types import Answer

_WARM_UP_TOKENS = 8  # enough for the CUDA graph, too


@command(
    ContextOptions,
    VideoOptions,
    SamplingOptions,
    CacheOptions,
    ModelOptions,
    RuntimeOptions,
    MethodOptions,
    AnswerOptions,
    PictureOptions,
)
def ask(
    told: ContextOptions,
    video: VideoOptions,
    sampling: SamplingOptions,
    kept: CacheOptions,
    model: ModelOptions,
    runtime: RuntimeOptions,
    method: MethodOptions,
    answer: AnswerOptions,
    pictures: PictureOptions,
    *,
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(metavar="VIDEO", help="A video file, a picture, or a folder of pictures.", show_default=False),
    ],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="A question; - reads it from stdin.")
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", metavar="TEXT", help="A question; may be given several times."),
    ] = None,
    questions_file: Annotated[
        Path | None, typer.Option("--questions", "-Q", metavar="FILE", help="A file with one question a line.")
    ] = None,
    choices: Choices = None,
    server: ServerChoice = ServerUse.auto,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Answer with every token kept too, and compare.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the answer: no report, no progress.")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
) -> None:
    """Ask questions about a video file.

    The answer alone goes to stdout, the report to stderr.
    """
    talk = Talk(quiet=quiet)
    # 1. What can be wrong without reading a weight or a frame, and without loading a library.
    asked = session.read_questions(question, questions, questions_file)
    given = split_choices(choices, context)
    pictures.check()
    paint = _painter(pictures, talk, context)
    wish, stream = sampling.build(video, context), not (json or no_stream)
    # 2. The answers of a running server, where there is one that would say what this process does.
    not_served = ""
    if not served.only_here(told, kept, model, pictures, context, baseline=baseline, choices=bool(given)):
        request = served.Request(file, asked, wish, video, model, method, answer)
        theirs, not_served = served.answers(server, runtime, request, context, talk, aloud=stream)
        if theirs:
            _tell(theirs, [], talk, json=json, no_stream=no_stream)
            return
        if not_served:
            talk.words(not_served, "dim")
    # 3. What else can be wrong without reading a weight; the decoder starts while torch is imported.
    from holitom_cli.video import most_frames, probe, readable, warm_up

    readable(file)
    warm_up()
    chosen = method.build(context)
    from holitom_cli import methods, pipeline
    from holitom_cli.cli import pictures as drawing
    from holitom_cli.clock import Clock

    gc.enable()  # main() has turned it off
    pipeline.check_generation(Generation(**asdict(answer)))
    info = probe(file, timeout_seconds=video.decode_timeout)
    lines = session.subtitle_lines(file, told.subtitles, video)
    checkpoint = session.find_checkpoint(model, chosen, talk)
    rivals = [chosen, methods.get("full")] if baseline else [chosen]
    for rival in rivals:
        session.check_room(checkpoint, rival, most_frames(wish, info), asked, given)
    session.check_memory(model, checkpoint, rivals, most_frames(wish, info), asked, answer.max_new_tokens)
    # 4. The model, and what it sees: what it has seen already, or else the frames.
    shelf = None if baseline else session.shelf(kept, file, model, checkpoint, chosen, wish)
    known = shelf.find() if shelf else None
    if known:
        loaded, frames = session.load(model, checkpoint, talk), known[0]
    else:
        loaded, frames = session.load_and_read(model, checkpoint, rivals, file, wish, video.decode_timeout, talk)
    # 5. The answers.
    if baseline:
        brief, quiet_talk = replace(answer, max_new_tokens=_WARM_UP_TOKENS), Talk(quiet=True)
        with talk.busy("Warming up, so that both are timed alike"):
            for rival in rivals:
                _answers(loaded, session.watch(loaded, frames, rival, quiet_talk), asked[:1], given, brief, quiet_talk)
    seen = Watched(*known, chosen, Clock(loaded.device)) if known else session.watch(loaded, frames, chosen, talk)
    if shelf and not known:
        shelf.keep(seen, talk)
    seen = session.tell(seen, lines, told)
    answers = _answers(loaded, seen, asked, given, answer, talk, stream=stream)
    everything = session.tell(session.watch(loaded, frames, rivals[1], talk), lines, told) if baseline else None
    full = _answers(loaded, everything, asked, given, answer, talk) if everything else []
    # 6. The report.
    _tell(answers, full, talk, json=json, no_stream=no_stream, not_served=not_served)
    drawing.write(pictures, file, video.decode_timeout, answers, full, paint, talk)


def _tell(
    answers: Sequence[AnswerRecord],
    full: Sequence[AnswerRecord],
    talk: Talk,
    *,
    json: bool,
    no_stream: bool,
    not_served: str = "",
) -> None:
    """What has not been said while the answers came: the document or the text, and the report."""
    if json:
        write_json(document(answers, full) | ({"not_served": not_served} if not_served else {}))
    elif no_stream:
        write("".join(f"{item.text}\n" for item in answers))
    from holitom_cli.report.terminal import report, warning_line

    talk.say(report(answers, full))
    if talk.quiet:
        for warning in dict.fromkeys(warning for item in answers for warning in item.warnings):
            talk.insist(warning_line(warning))


def _painter(pictures: PictureOptions, talk: Talk, context: typer.Context) -> Painter | None:
    """What shows pictures in this terminal, None where they are not wanted, or cannot be shown."""
    if not pictures.inline:
        return None
    from holitom_cli.cli import inline

    if talk.quiet:
        refuse_idle(context, "inline", "With --quiet there is no report")
    paint = inline.painter(talk.console)
    if paint is None:
        from holitom_cli.report.terminal import warning_line

        talk.say(warning_line(inline.CANNOT))
    return paint


def _answers(
    model: Model,
    watched: Watched,
    questions: Sequence[str],
    choices: Sequence[str],
    options: AnswerOptions,
    talk: Talk,
    *,
    stream: bool = False,
) -> list[Answer]:
    from holitom_cli import pipeline

    answers = []
    for question in questions:
        if stream and len(questions) > 1:
            talk.words(visible(question), "bold")
        if not choices:
            asking = partial(pipeline.ask, model, watched, question, **asdict(options))
            answers.append(session.answered(asking, talk, aloud=stream))
            continue
        with talk.busy("Answering"):
            answers.append(pipeline.choose(model, watched, question, choices))
        if stream:
            write(f"{answers[-1].text}\n")
    return answers
