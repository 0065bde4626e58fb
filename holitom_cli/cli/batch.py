"""holitom batch: the same questions about many clips."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from holitom_cli.batch.table import Format, write
from holitom_cli.cli import session
from holitom_cli.cli.batch_options import ClipOptions, Engine, RunOptions
from holitom_cli.cli.batch_report import ReportOptions
from holitom_cli.cli.clip_pages import clip_pages
from holitom_cli.cli.console import Talk, print_data, write_json
from holitom_cli.cli.guard import INTERRUPTED, first_interrupt
from holitom_cli.cli.options import (
    AnswerOptions,
    CacheOptions,
    Choices,
    ContextOptions,
    MethodOptions,
    ModelOptions,
    SamplingOptions,
    VideoOptions,
    command,
    split_choices,
)
from holitom_cli.cli.rows import SOME_FAILED, appending
from holitom_cli.cli.tally import Tally, board, error_row, estimate_table, row_of
from holitom_cli.clock import Stopwatch
from holitom_cli.errors import BatchError, UsageError, reason
from holitom_cli.report.terminal import warning_line
from holitom_cli.report.text import counted
from holitom_cli.types import Generation

if TYPE_CHECKING:
    from holitom_cli.batch.crew import Made
    from holitom_cli.batch.ledger import Ledger
    from holitom_cli.batch.questions import Job
    from holitom_cli.batch.runner import Item, Plan, Run
    from holitom_cli.model.loading import Checkpoint


@command(
    ClipOptions,
    RunOptions,
    ReportOptions,
    ContextOptions,
    VideoOptions,
    SamplingOptions,
    CacheOptions,
    ModelOptions,
    MethodOptions,
    AnswerOptions,
)
def batch(
    clips: ClipOptions,
    how: RunOptions,
    pages: ReportOptions,
    told: ContextOptions,
    video: VideoOptions,
    sampling: SamplingOptions,
    kept: CacheOptions,
    model: ModelOptions,
    method: MethodOptions,
    answer: AnswerOptions,
    *,
    context: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATHS",
            help="Video files, folders of them, and patterns; - reads a list of paths from stdin.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", metavar="TEXT", help="A question; may be given several times."),
    ] = None,
    questions_file: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            "-Q",
            metavar="FILE",
            help="A file with one question a line; or .jsonl, .csv or .parquet with question, and optionally video "
            "and custom_id.",
        ),
    ] = None,
    choices: Choices = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A JSONL file to append to; rows that it has are skipped."),
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Write the rows beside --output at the end, too: csv, parquet, md, srt or vtt."),
    ] = None,
    summary_json: Annotated[
        Path | None, typer.Option("--summary-json", metavar="FILE", help="Write counts, rates and times there.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no summary.")] = False,
) -> None:
    """Ask the same questions about many clips: one JSON line for each clip and question.

    Clips that fail become rows with an error; the exit code is 3 then. Run it again to go on where it stopped: rows
    that --output has are skipped, and other settings make other rows. Rows come in the order in which they are done.
    Ctrl-C finishes what is under way and saves it; a second one stops at once.
    """
    talk = Talk(quiet=quiet)
    # 1. Everything that can be wrong without reading a weight or a frame.
    jobs = _jobs(clips, paths or [], questions, questions_file, answer.seed, talk)
    given = split_choices(choices, context)
    wish = sampling.build(video, context)
    _check_formats(formats or [], output, clips)
    pages.check(output)
    if how.engine is Engine.ray:
        _check_cluster(pages, output)
    from holitom_cli.video import warm_up

    warm_up()  # while torch is imported
    chosen = method.build(context)
    from holitom_cli import pipeline
    from holitom_cli.batch.ledger import Ledger
    from holitom_cli.batch.runner import Plan

    device = how.device_type(model)
    generation = pipeline.check_generation(Generation(**asdict(answer)))
    plan = Plan(
        chosen,
        generation,
        wish,
        video.decode_timeout,
        kept.open(),
        given,
        how.rows_on(device),
        clips.every_seconds,
        how.timeout,
        time_instruction=told.time_instruction,
        subtitles=_subtitles(told, jobs),
    )
    tally = Tally()
    with nullcontext() if how.dry_run else _rows(output) as add:
        ledger = Ledger(output, retry_failed=how.retry_failed, force=how.force)
        model = _same_model(model, ledger, talk)
        checkpoint = session.find_checkpoint(how.here(model), chosen, talk)
        session.check_room(checkpoint, chosen, 1, sorted({one.text for job in jobs for one in job.asked}), given)
        if add is None:
            _estimate(checkpoint, how.here(model), jobs, plan, ledger, talk)
            return
        texts, tokens = [one.text for job in jobs for one in job.asked], generation.max_new_tokens
        session.check_memory(how.here(model), checkpoint, [chosen], wish.num_frames or 1, texts, tokens)
        # 2. The rows.
        makers = _makers(model, how, pages, checkpoint, jobs, plan, ledger, output, talk)
        interrupted = _make_rows(makers, jobs, add, tally, how.most_failures, talk)
    # 3. What came of it.
    _write_tables(output, formats or [], talk)
    for warning in makers.warnings:
        talk.say(warning_line(warning))
    pages.write(output, video.decode_timeout, talk, quickly=interrupted)
    if plan.cache and plan.cache.trouble:
        talk.say(warning_line(plan.cache.trouble))
    _conclude(tally, makers.watch, makers.workers, summary_json, talk, interrupted=interrupted)


@dataclass(frozen=True)
class _Makers:
    """Who makes the rows, in this process or in several."""

    rows: Generator[Made, None, None]
    stop: Callable[[], None]
    watch: Stopwatch
    warnings: Sequence[str]  # about what is no row, once all are made
    workers: int = 1


def _makers(
    model: ModelOptions,
    how: RunOptions,
    pages: ReportOptions,
    checkpoint: Checkpoint,
    jobs: Sequence[Job],
    plan: Plan,
    ledger: Ledger,
    output: Path | None,
    talk: Talk,
) -> _Makers:
    from holitom_cli.batch.runner import Run

    if how.engine is Engine.ray:
        return _cluster(model, how.device_type(model), checkpoint, jobs, plan, ledger)
    devices = how.devices(model)
    if devices:
        return _crew(model, how, pages, checkpoint, jobs, plan, output, devices)
    run = Run(session.load(model, checkpoint, talk), jobs, plan, ledger)
    run.watch = Stopwatch()  # loading the model is no part of it
    warnings: list[str] = []
    with_pages = clip_pages(pages.clip_pages, plan.decode_timeout_seconds, warnings.append)
    return _Makers(_made(run, with_pages), run.stop, run.watch, warnings)


def _made(run: Run, pages: AbstractContextManager[Callable[[Item], dict[str, Any]]]) -> Generator[Made, None, None]:
    from holitom_cli.batch.crew import Made
    from holitom_cli.batch.ledger import Claim

    cut: list[Made] = []
    run.on_cut = lambda job, windows: cut.append(Made(job, more=(windows - 1) * len(job.asked)))
    with pages as paged:
        for item in run:
            yield from cut
            cut.clear()
            row = row_of(item)
            claim = item.outcome if isinstance(item.outcome, Claim) else None
            yield Made(item.job, row and row | paged(item), claim)


def _crew(
    model: ModelOptions,
    how: RunOptions,
    pages: ReportOptions,
    checkpoint: Checkpoint,
    jobs: Sequence[Job],
    plan: Plan,
    output: Path | None,
    devices: Sequence[str],
) -> _Makers:
    from holitom_cli.batch.crew import Crew
    from holitom_cli.batch.reader import reader_count
    from holitom_cli.model.device import choose_device, choose_dtype

    source = checkpoint.source
    dtype = str(choose_dtype(model.dtype, choose_device(devices[0]))).removeprefix("torch.")
    setting = {
        "output": str(output) if output else None,
        "retry_failed": how.retry_failed,
        "force": how.force,
        "clip_pages": str(pages.clip_pages) if pages.clip_pages else None,
    }
    shared = replace(plan, processes=len(devices), readers=reader_count(len(devices)))
    crew = Crew(jobs, devices, shared, (source.id, source.revision, model.number_format(dtype)), setting, error_row)
    watch = Stopwatch()
    watch.seconds = crew.seconds
    return _Makers(iter(crew), crew.stop, watch, crew.warnings, len(devices))


def _cluster(
    model: ModelOptions, device: str, checkpoint: Checkpoint, jobs: Sequence[Job], plan: Plan, ledger: Ledger
) -> _Makers:
    from holitom_cli.batch.cluster import Cluster, Order, dtype_on

    source = checkpoint.source
    place = str(source.path.absolute()) if Path(source.id).is_dir() else source.id
    number_format = model.number_format(dtype_on(model.dtype, device))
    order = Order((source.id, source.revision, number_format), place, device, _absolute(plan))
    cluster = Cluster(jobs, order, ledger, row_of)
    watch = Stopwatch()
    watch.seconds = cluster.seconds
    return _Makers(iter(cluster), cluster.stop, watch, (), cluster.workers)


def _check_cluster(pages: ReportOptions, output: Path | None) -> None:
    if output is None:
        raise UsageError("--engine ray needs a file to go on from.", "Name one with --output.")
    if pages.clip_pages is not None:
        raise UsageError("Pages of clips are made by one machine alone.", "Leave --clip-pages or --engine out.")


def _absolute(plan: Plan) -> Plan:
    """The same for a machine that works in another folder."""
    from holitom_cli.cache import Cache

    file = plan.subtitles
    words = file if file is None or file == "auto" else str(Path(file).absolute())
    return replace(plan, subtitles=words, cache=plan.cache and Cache(plan.cache.folder.absolute()))


def _jobs(
    clips: ClipOptions,
    paths: Sequence[Path],
    questions: Sequence[str] | None,
    file: Path | None,
    seed: int,
    talk: Talk,
) -> list[Job]:
    from holitom_cli.batch.inputs import describe
    from holitom_cli.batch.questions import Asked, jobs, read_table

    asked: list[Asked] = [Asked(text) for text in questions or []]
    asked += read_table(file) if file else []
    found = clips.find(paths, seed)
    if found and found.skipped:
        talk.say(Text(f"{counted(len(found.clips), 'clip')}. {describe(found.skipped)}."))
    return jobs(found.clips if found else [], asked)


def _subtitles(told: ContextOptions, jobs: Sequence[Job]) -> str | None:
    """Where subtitles come from; refuses what would put one clip's words into the mouths of others."""
    if told.subtitles in (None, "auto"):
        return told.subtitles
    if len(jobs) > 1:
        raise UsageError(
            f"{len(jobs)} clips cannot share one file of subtitles.",
            "Use --subtitles auto: it takes the file beside each clip.",
        )
    return told.subtitles


def _check_formats(formats: Sequence[Format], output: Path | None, clips: ClipOptions) -> None:
    """Refuse now what could not be written at the end."""
    if formats and output is None:
        raise UsageError("--format writes beside --output, which is not given.", "Name a file with --output.")
    for kind in formats:
        if kind in (Format.srt, Format.vtt) and clips.every is None:
            raise UsageError(f"--format {kind} needs answers that have times.", "Use --every 60s.")
    if Format.parquet in formats:
        from holitom_cli.batch.questions import pyarrow

        pyarrow()


def _same_model(options: ModelOptions, ledger: Ledger, talk: Talk) -> ModelOptions:
    """The model of the rows that are there, where none is named."""
    if options.model is not None or ledger.model is None:
        return options
    name, revision = ledger.model
    talk.say(Text(f"Going on with {name}, which the rows that are there come from."))
    return replace(options, model=name, revision=revision)


def _make_rows(
    makers: _Makers,
    jobs: Sequence[Job],
    add: Callable[[Mapping[str, Any]], None],
    tally: Tally,
    most_failures: int | None,
    talk: Talk,
) -> bool:
    """Write every row; returns whether Ctrl-C ended it early."""
    interrupted = False

    def finish() -> None:
        nonlocal interrupted
        interrupted = True
        makers.stop()
        talk.say("Finishing what is under way; Ctrl-C again stops at once.")

    total = sum(len(job.asked) for job in jobs)
    with first_interrupt(finish), closing(makers.rows) as rows, board(talk, tally, makers.watch, total) as step:
        for made in rows:
            if made.row is not None:
                add(made.row)
            step(made)
            if most_failures is not None and tally.failed >= most_failures:
                raise BatchError(
                    f"{counted(tally.failed, 'row')} failed, so the batch was stopped.",
                    "Mend the cause and run it again to go on; --retry-failed tries failed rows again.",
                )
    return interrupted


def _rows(output: Path | None) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """Where rows go: stdout, or the end of a file."""
    return appending(output) if output else nullcontext(lambda row: write_json(row, indent=None))


def _estimate(
    checkpoint: Checkpoint, model: ModelOptions, jobs: Sequence[Job], plan: Plan, ledger: Ledger, talk: Talk
) -> None:
    from holitom_cli.batch.estimate import estimate
    from holitom_cli.model.device import choose_device, choose_dtype
    from holitom_cli.model.quantise import check_quantize

    dtype = choose_dtype(model.dtype, choose_device(model.device))
    with talk.busy(f"Probing {counted(len(jobs), 'clip')}"):
        total = estimate(checkpoint, dtype, jobs, plan, ledger, check_quantize(model.quantize))
    print_data(estimate_table(total, checkpoint.source.id))


def _write_tables(output: Path | None, formats: Sequence[Format], talk: Talk) -> None:
    from holitom_cli.batch.ledger import last_rows

    for kind in formats:
        assert output is not None
        for path in write(last_rows(output), kind, output):
            talk.say(Text(f"Wrote {path}."))


def _conclude(
    tally: Tally, watch: Stopwatch, workers: int, summary_json: Path | None, talk: Talk, *, interrupted: bool
) -> None:
    if summary_json:
        document = tally.document(watch, workers, interrupted=interrupted)
        try:
            summary_json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise BatchError(f"{summary_json} cannot be written: {reason(error)}.", "Name another file.") from error
    if tally.answered or tally.failed:
        talk.say(tally.table(watch, workers))
    talk.say(tally.line())
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if tally.failed or tally.failed_before:
        raise typer.Exit(SOME_FAILED)
