"""holitom compare: one question, several methods."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk, print_data, write, write_json, wrote
from holitom_cli.cli.options import (
    AnswerOptions,
    BudgetList,
    Choices,
    MethodList,
    ModelOptions,
    SamplingOptions,
    VideoOptions,
    check_place,
    command,
    split_choices,
)
from holitom_cli.errors import MethodError, UsageError
from holitom_cli.report.comparison import Compared, comparison_rows, comparison_table, full_of
from holitom_cli.report.curves import write_comparison_page
from holitom_cli.report.record import comparison
from holitom_cli.types import Generation

if TYPE_CHECKING:
    from holitom_cli.methods.tools.variants import Variant
    from holitom_cli.model.loading import Model
    from holitom_cli.types import Answer, Seen

_WARM_UP_TOKENS = 2


@command(VideoOptions, SamplingOptions, ModelOptions, AnswerOptions)
def compare(
    video: VideoOptions,
    sampling: SamplingOptions,
    model: ModelOptions,
    answer: AnswerOptions,
    *,
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file.", show_default=False)],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="A question; - reads it from stdin.", show_default=False)
    ],
    methods: MethodList = "full,holitom,random,uniform",
    budgets: BudgetList = "15",
    choices: Choices = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="The table as comma-separated values.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="A page of answers, costs and agreement with full.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Ask several methods the same question about a video file, at the same budgets.

    Frames are read and encoded once, for all of them. Each method answers briefly before it is timed. Where full is
    among the methods, each answer is compared with its, token by token.
    """
    talk = Talk(quiet=quiet)
    # 1. Everything that can be wrong without reading a weight or a frame.
    if json and csv:
        raise UsageError("There is one document on stdout, --json or --csv.", "Leave one of them out.")
    if report:
        check_place(report)
    (asked,) = session.read_questions(question, None, None)
    given, wish = split_choices(choices, context), sampling.build(video, context)
    from holitom_cli.video import most_frames, probe, warm_up

    warm_up()
    from holitom_cli import pipeline
    from holitom_cli.methods import get
    from holitom_cli.methods.tools.variants import variants

    pipeline.check_generation(Generation(**asdict(answer)))
    wanted = variants(methods, budgets, answer.seed)
    info = probe(file, timeout_seconds=video.decode_timeout)
    checkpoint = session.find_checkpoint(model, get("full"), talk)
    fitting = session.fitting(wanted, checkpoint.depth, talk)
    for variant in fitting:
        session.check_room(checkpoint, variant.method, most_frames(wish, info), [asked], given)
    # 2. The model, and the frames behind the vision tower.
    rivals = [variant.method for variant in fitting]
    loaded, frames = session.load_and_read(model, checkpoint, rivals, file, wish, video.decode_timeout, talk)
    with talk.busy("Watching"):
        attention, keys = (any(getattr(rival, need) for rival in rivals) for need in ("needs_attention", "needs_keys"))
        seen = pipeline.see(loaded, frames, attention=attention, keys=keys)
    # 3. The answers.
    with talk.busy("Warming up, so that all are timed alike"):
        brief = replace(answer, max_new_tokens=_WARM_UP_TOKENS)
        fitting = [variant for variant in fitting if _fits(loaded, seen, variant, asked, given, brief, talk)]
    with talk.busy(f"Answering with {len(fitting)} methods and budgets"):
        answers = [_answer(loaded, seen, variant, asked, given, answer) for variant in fitting]
    # 4. The report.
    rows = [Compared(variant.label, variant.budget, said) for variant, said in zip(fitting, answers, strict=True)]
    document = comparison(answers, [row.budget for row in rows], full_of(rows))
    if json:
        write_json(document)
    elif csv:
        write(_separated(rows))
    else:
        print_data(comparison_table(rows))
    if report:
        write_comparison_page(rows, document, report)
        talk.say(wrote(report))


def _fits(
    model: Model,
    seen: Seen,
    variant: Variant,
    question: str,
    choices: Sequence[str],
    options: AnswerOptions,
    talk: Talk,
) -> bool:
    """Answer briefly; whether that went well, which a number of tokens can still prevent now that frames are known."""
    try:
        _answer(model, seen, variant, question, choices, options)
    except MethodError:
        if not variant.optional:
            raise
        session.say_left_out(variant, talk)
        return False
    return True


def _answer(
    model: Model, seen: Seen, variant: Variant, question: str, choices: Sequence[str], options: AnswerOptions
) -> Answer:
    from holitom_cli import pipeline

    pipeline.forget_peak(model)
    watched = pipeline.compress(model, seen, variant.method)
    if choices:
        return pipeline.choose(model, watched, question, choices)
    return pipeline.ask(model, watched, question, **asdict(options))


def _separated(rows: Sequence[Compared]) -> str:
    lines = comparison_rows(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
