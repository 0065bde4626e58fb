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
from holitom_cli.cli.console import Talk, print_data, write_json
from holitom_cli.cli.options import ModelOptions, VideoOptions, command
from holitom_cli.cli.rows import SOME_FAILED, appending, progress
from holitom_cli.errors import HolitomError
from holitom_cli.report.evaluation import evaluation_document, evaluation_row, evaluation_tables
from holitom_cli.report.record import error_record
from holitom_cli.report.terminal import warning_line

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model
    from holitom_cli.quality.evaluate import Outcome, Plan
    from holitom_cli.quality.items import Item


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
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="QUESTIONS",
            help="A JSONL file: video, question, answer and optionally choices and type on every line.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str,
        typer.Option("--methods", metavar="NAMES", help="Methods, separated by commas; NAME:key=value sets a setting."),
    ] = "full,holitom",
    budgets: Annotated[
        str,
        typer.Option("--budgets", metavar="PERCENT", help="Percentages of the visual tokens, separated by commas."),
    ] = "15",
    scoring: Annotated[
        ScoringChoice,
        typer.Option(
            "--scoring",
            metavar="HOW",
            help="Questions with choices: letter (the options are listed, their letters compared), words (the choices "
            "are compared) or text (an answer is generated, as for questions without choices).",
        ),
    ] = ScoringChoice.LETTER,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the first N questions.", min=1)
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the intervals and of methods that draw lots.", min=0, max=2**63 - 1)
    ] = 0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Longest generated answer, in tokens.", min=1)
    ] = 32,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A JSONL file for every answer; what it has already is not asked again."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure how much of the accuracy methods keep, on questions with known answers.

    A method without a share of tokens to keep, as full, is one row; others are one for each budget. At a budget that
    is none of its presets, a method takes the settings of the nearest lower one: holitom the paper's tau. Differences
    to full are paired by question, their intervals drawn over videos. Every figure belongs to the checkpoint it names.
    """
    talk = Talk(quiet=quiet)
    # 1. Everything that can be wrong without reading a weight.
    from holitom_cli.batch import manifest
    from holitom_cli.quality import evaluate as room
    from holitom_cli.quality.items import read_items

    variants = room.variants(methods, budgets, seed)
    items = read_items(questions, limit)
    plan = room.Plan(variants, scoring.value, video.num_frames, max_new_tokens, video.decode_timeout)
    finished = manifest.finished_rows(output) if output else {}
    # 2. The answers, clip by clip.
    with _rows(output) as add:
        checkpoint = session.find_checkpoint(model, variants[0].method, talk)
        room.check(checkpoint, items, plan)
        loaded = session.load(model, checkpoint, talk)
        outcomes = _ask_all(loaded, items, plan, finished, add, talk)
    # 3. The figures.
    results = room.results(outcomes, plan, seed)
    _show(loaded, results, _settings(questions, items, plan, seed, limit), talk, as_json=json)
    if any(result["failed"] for result in results):
        raise typer.Exit(SOME_FAILED)


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


def _settings(questions: Path, items: Sequence[Item], plan: Plan, seed: int, limit: int | None) -> dict[str, Any]:
    return {
        "questions_file": str(questions),
        "questions": len(items),
        "videos": len({item.clip for item in items}),
        "limit": limit,
        "scoring": plan.scoring,
        "num_frames": plan.num_frames,
        "max_new_tokens": plan.max_new_tokens,
        "seed": seed,
    }


def _show(
    model: Model, results: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], talk: Talk, *, as_json: bool
) -> None:
    from holitom_cli.account import versions

    info = replace(model.info, preprocessor_file=model.preprocessor.file)
    if model.checkpoint.random:
        talk.insist(warning_line(f"The checkpoint {model.info.id} has random weights: its accuracy is chance."))
    if as_json:
        write_json(evaluation_document(info, versions(), settings, results))
    else:
        print_data(evaluation_tables(info, results))
