"""holitom eval: how much of the accuracy methods keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk, print_data, write_json, wrote
from holitom_cli.cli.options import (
    BudgetList,
    MethodList,
    ModelOptions,
    VideoOptions,
    check_place,
    command,
    refuse_idle,
)
from holitom_cli.cli.rows import SOME_FAILED, appending, progress
from holitom_cli.errors import HolitomError, UsageError
from holitom_cli.report.curves import write_evaluation_page
from holitom_cli.report.evaluation import evaluation_document, evaluation_row, evaluation_tables
from holitom_cli.report.record import error_record
from holitom_cli.report.terminal import warning_line

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model
    from holitom_cli.quality.evaluate import Outcome, Plan
    from holitom_cli.quality.items import Item


class BuiltIn(StrEnum):
    """Question sets that come with the program."""

    SHAPES = "shapes"


class ScoringChoice(StrEnum):
    """How questions with choices are scored."""

    LETTER = "letter"
    WORDS = "words"
    TEXT = "text"


@command(VideoOptions, ModelOptions)
def evaluate(
    video: VideoOptions,
    model: ModelOptions,
    *,
    context: typer.Context,
    questions: Annotated[
        Path | None,
        typer.Argument(
            metavar="QUESTIONS",
            help="A JSONL file: video, question, answer and optionally choices and type on every line.",
            show_default=False,
        ),
    ] = None,
    built_in: Annotated[
        BuiltIn | None,
        typer.Option(
            "--set",
            metavar="NAME",
            help="Instead of a file, a set that comes with the program: shapes, 2,000 questions about generated clips "
            "of moving shapes, what the demo model knows.",
        ),
    ] = None,
    methods: MethodList = "full,holitom",
    budgets: BudgetList = "15",
    scoring: Annotated[
        ScoringChoice | None,
        typer.Option(
            "--scoring",
            metavar="HOW",
            help="Questions with choices: letter (the options are listed, their letters compared), words (the choices "
            "are compared) or text (an answer is generated, as for questions without choices).",
            show_default="letter; text with --set",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the first N questions.", min=1)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            help="Seed of the intervals, of methods that draw lots, and of the clips of --set: another draws others.",
            min=0,
            max=2**63 - 1,
        ),
    ] = 0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Longest generated answer, in tokens.", min=1)
    ] = 32,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A JSONL file for every answer; what it has already is not asked again."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="A page of accuracy against costs, and all figures.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure how much of the accuracy methods keep, on questions with known answers.

    A method without a share of tokens to keep, as full, is one row; others are one for each budget. At a budget that
    is none of its presets, a method takes the settings of the nearest lower one, or of its lowest: holitom the paper's
    tau, and always the merge inside, which holitom:inner_layer=off leaves out. Differences to full are paired by
    question, their intervals drawn over videos. Every figure belongs to the checkpoint it names.
    """
    talk = Talk(quiet=quiet)
    # 1. Everything that can be wrong without reading a weight.
    if report:
        check_place(report)
    from holitom_cli.batch import manifest
    from holitom_cli.methods import get
    from holitom_cli.methods.tools.variants import variants
    from holitom_cli.quality import evaluate as room

    asked = variants(methods, budgets, seed)
    items = _items(questions, built_in, seed, limit, context)
    how = scoring or (ScoringChoice.TEXT if built_in else ScoringChoice.LETTER)
    plan = room.Plan(asked, how.value, video.num_frames, max_new_tokens, video.decode_timeout)
    finished = manifest.finished_rows(output) if output else {}
    # 2. The answers, clip by clip.
    with _rows(output) as add:
        checkpoint = session.find_checkpoint(model, get("full"), talk)
        plan = replace(plan, variants=session.fitting(asked, checkpoint.depth, talk))
        room.check(checkpoint, items, plan)
        loaded = session.load(model, checkpoint, talk)
        outcomes = _ask_all(loaded, items, plan, finished, add, talk)
    # 3. The figures.
    results = room.results(outcomes, plan, seed)
    source = {"questions_file": str(questions) if questions else None, "set": built_in}
    _show(loaded, results, source | _settings(items, plan, seed, limit), report, talk, as_json=json)
    if any(result["failed"] for result in results):
        raise typer.Exit(SOME_FAILED)


def _items(
    questions: Path | None, built_in: BuiltIn | None, seed: int, limit: int | None, context: typer.Context
) -> list[Item]:
    """The questions, from where exactly one of a file and a set says."""
    if questions and built_in:
        raise UsageError("Questions come from a file or from --set, not from both.", "Leave one of them out.")
    if questions:
        from holitom_cli.quality.items import read_items

        return read_items(questions, limit)
    if not built_in:
        raise UsageError("There are no questions.", "Name a file with some, or use --set shapes.")
    refuse_idle(context, "decode_timeout", "With --set nothing is decoded")
    from holitom_cli.quality.shapes import shapes

    return shapes(seed, limit)


def _rows(output: Path | None) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    return appending(output) if output else nullcontext(lambda _: None)


def _ask_all(
    model: Model,
    items: Sequence[Item],
    plan: Plan,
    finished: Mapping[str, Mapping[str, Any]],
    add: Callable[[Mapping[str, Any]], None],
    talk: Talk,
) -> list[Outcome]:
    from holitom_cli.quality import evaluate as room

    everything: list[Outcome] = []
    with progress(talk, len(room.by_clip(items))) as step:
        for clip, outcomes in room.run(model, items, plan, finished):
            new = [outcome for outcome in outcomes if outcome.new]
            for outcome in new:
                add(_row(outcome))
            errors = [outcome.row for outcome in new if isinstance(outcome.row, HolitomError)]
            step(clip.name, len(new) - len(errors), errors)
            everything += outcomes
    return everything


def _row(outcome: Outcome) -> Mapping[str, Any]:
    if isinstance(outcome.row, HolitomError):
        return error_record(outcome.item.clip.name, outcome.item.question, outcome.row, outcome.key)
    return evaluation_row(outcome.row)


def _settings(items: Sequence[Item], plan: Plan, seed: int, limit: int | None) -> dict[str, Any]:
    return {
        "questions": len(items),
        "videos": len({item.clip for item in items}),
        "limit": limit,
        "scoring": plan.scoring,
        "num_frames": plan.num_frames,
        "max_new_tokens": plan.max_new_tokens,
        "seed": seed,
    }


def _show(
    model: Model,
    results: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    report: Path | None,
    talk: Talk,
    *,
    as_json: bool,
) -> None:
    from holitom_cli.account import versions

    info = replace(model.info, preprocessor_file=model.preprocessor.file)
    document = evaluation_document(info, versions(), settings, results)
    if model.checkpoint.random:
        talk.insist(warning_line(f"The checkpoint {model.info.id} has random weights: its accuracy is chance."))
    if as_json:
        write_json(document)
    else:
        print_data(evaluation_tables(info, results))
    if report:
        write_evaluation_page(info, document, report)
        talk.say(wrote(report))
