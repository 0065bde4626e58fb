"""holitom bench: how fast models answer on this machine, stage by stage."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk, print_data, write, write_json
from holitom_cli.cli.options import BudgetList, MethodList, ModelOptions, command
from holitom_cli.cli.rows import SOME_FAILED
from holitom_cli.errors import HolitomError, UsageError
from holitom_cli.report.benchmark import (
    COLUMNS,
    Measured,
    bench_cells,
    bench_document,
    bench_markdown,
    bench_rows,
    bench_tables,
)

if TYPE_CHECKING:
    from holitom_cli.bench.rivals import Ours
    from holitom_cli.bench.runner import Plan
    from holitom_cli.methods.tools.variants import Variant
    from holitom_cli.model.loading import Model
    from holitom_cli.types import Frames

_AGAINST = ("full", "stock")
_CHECKED_STEPS = 64


class Output(StrEnum):
    """How figures are written."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    md = "md"


@command()
def bench(
    *,
    clip: Annotated[
        str | None,
        typer.Argument(metavar="[CLIP]", help="A video file; made-up frames without one.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A directory, a hub id, demo, or random weights at a published shape: shape:7b or shape:0.5b; "
            "repeatable.",
            show_default="7B or 0.5B, by the card's memory",
        ),
    ] = None,
    methods: MethodList = "holitom",
    budgets: BudgetList = "15",
    num_frames: Annotated[
        str, typer.Option("--num-frames", metavar="LIST", help="Numbers of frames, separated by commas.")
    ] = "32",
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAMES",
            help="Rivals that keep every token: full (this program), stock (transformers' generate), both or none.",
        ),
    ] = "full,stock",
    repeats: Annotated[int, typer.Option("--repeats", help="Answers that count, of each rival.", min=1)] = 5,
    warmup: Annotated[int, typer.Option("--warmup", help="Answers before them.", min=0)] = 2,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens of every answer.", min=2)] = 64,
    device: Annotated[str, typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")] = "auto",
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", help="int8 or int4 keeps the language model's weights in so many bits."),
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to write the figures.")] = Output.table,
    seed: Annotated[int, typer.Option("--seed", help="Seed of prompts and made-up frames.", min=0, max=2**31)] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure how fast models answer on this machine, stage by stage.

    All rivals answer in turns in one process, with the same frames and prompts; no two rounds have prompts of the same
    length. Times are medians with the lowest and the highest; the first call of each rival stands by itself, and the
    very first of the process is that of the row named first. Floors are what arithmetic and memory traffic take at the
    speed of one large matrix product and one large copy, measured in the same run. Where stock is among the rivals, its
    logits are compared with ours, and the exit code is 1 where they are too far apart. The table ends with one line of
    JSON.
    """
    from holitom_cli.account import versions
    from holitom_cli.bench.runner import Plan
    from holitom_cli.methods.tools.variants import variants

    talk = Talk(quiet=quiet)
    rivals = _rivals(against)
    counts = _counts(num_frames)
    asked = variants(methods, budgets, seed)
    plan = Plan(repeats, warmup, max_new_tokens, seed)
    measured = []
    names: list[str | None] = list(model) if model else [None]
    for name in names:
        options = ModelOptions(model=name, device=device, dtype=dtype, quantize=quantize, yes=yes)
        loaded = _load(options, talk)
        measured.append(_measure(loaded, _ours(loaded, asked, talk), rivals, clip, counts, plan, talk))
        del loaded  # before the next one comes
        _show_one(measured[-1], output)
    choice = {"clip": clip, "against": rivals, "num_frames": counts, "methods": methods, "budgets": budgets}
    _show_all(measured, output, bench_document(measured, versions(), asdict(plan) | choice))
    _judge(measured)


def _rivals(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if names == ["none"]:
        return []
    if wrong := [name for name in names if name not in _AGAINST]:
        raise UsageError(f"--against {wrong[0]!r} is not known.", "Use full, stock, full,stock or none.")
    return names


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--num-frames {text!r} is no list of numbers.", "As in: --num-frames 8,32,128")
    return list(dict.fromkeys(map(int, parts)))


def _load(options: ModelOptions, talk: Talk) -> Model:
    """A checkpoint, or a shape."""
    from holitom_cli import methods
    from holitom_cli.model import shapes

    if options.model and options.model.startswith(shapes.PREFIX):
        with talk.busy(f"Drawing weights for {options.model}"):
            name = options.model.removeprefix(shapes.PREFIX)
            return shapes.build_shape(name, device=options.device, dtype=options.dtype, quantize=options.quantize)
    checkpoint = session.find_checkpoint(options, methods.get("full"), talk)
    return session.load(options, checkpoint, talk)


def _ours(model: Model, asked: Sequence[Variant], talk: Talk) -> list[Ours]:
    """Methods that the model is deep enough for, as rivals."""
    from holitom_cli.bench.rivals import Ours

    fitting = session.fitting(asked, model.checkpoint.depth, talk)
    return [Ours(variant.label, variant.budget, variant.method) for variant in fitting]


def _measure(
    model: Model,
    ours: Sequence[Ours],
    against: Sequence[str],
    clip: str | None,
    counts: Sequence[int],
    plan: Plan,
    talk: Talk,
) -> Measured:
    """One model with every number of frames."""
    from holitom_cli.bench import ceilings, runner

    rivals = runner.line_up(ours, against)
    best = ceilings.measure(model.device, model.dtype)
    clips = [_frames(model, clip, count, plan.seed) for count in counts]
    timed = []
    for frames in clips:
        with _told(talk, model, len(frames), len(rivals) * (plan.repeats + plan.warmup)) as step:
            timed.append(runner.rounds(model, rivals, frames, plan, step))
    best = ceilings.better(best, ceilings.measure(model.device, model.dtype))  # other programs may have been at work
    rows = []
    for frames, results in zip(clips, timed, strict=True):
        found = [runner.row(model, one, frames, plan, best) for one in results]
        runner.compare(found)
        rows += found
    compared = None
    if "stock" in against:
        fewest, results = min(zip(clips, timed, strict=True), key=lambda pair: len(pair[0]))
        failed = [one.rival for one in results if one.error]  # as one whose number of tokens is too small
        compared = _compared(model, [rival for rival in ours if rival not in failed], fewest, plan, talk)
    return Measured(model.info, asdict(best), compared, rows)


def _frames(model: Model, clip: str | None, count: int, seed: int) -> Frames:
    from holitom_cli import pipeline
    from holitom_cli.bench.scene import made_up
    from holitom_cli.types import Sampling

    if clip is None:
        return made_up(count, model.preprocessor.height, seed)
    return pipeline.read(model.checkpoint, model.device, clip, Sampling(num_frames=count), [])


@contextmanager
def _told(talk: Talk, model: Model, frames: int, total: int) -> Iterator[Callable[[], None]]:
    done = 0
    with talk.counting(f"Timing {model.info.id} with {frames} frames") as show:

        def step() -> None:
            nonlocal done
            done += 1
            show(done, total)

        yield step


def _compared(model: Model, ours: Sequence[Ours], frames: Frames, plan: Plan, talk: Talk) -> dict[str, Any]:
    """How far what was timed is from what it has to be."""
    from holitom_cli.bench import agreement
    from holitom_cli.bench.rivals import random_prompt
    from holitom_cli.model.preprocess import prepare

    pixels, prompt = prepare(model.preprocessor, frames, model.device), random_prompt(model, 20, plan.seed)
    with talk.busy("Comparing with stock transformers"):
        try:
            found: dict[str, Any] = {
                "full against stock": agreement.with_stock(model, pixels, prompt, _CHECKED_STEPS, plan.seed)
            }
        except HolitomError as error:
            fault = {"stage": error.stage, "message": error.message, "hint": error.hint}
            return {"full against stock": {"error": fault}}
        for rival in ours:
            graph = agreement.graph_with_plain(model, rival.method, pixels, prompt, _CHECKED_STEPS)
            if graph:
                found[f"{rival.label}, graph against plain steps"] = graph
    return found


def _show_one(measured: Measured, output: Output) -> None:
    """What is written as soon as a model is measured."""
    if output is Output.table:
        print_data(bench_tables(measured))
    elif output is Output.md:
        write(bench_markdown(measured) + "\n")
    elif output is Output.jsonl:
        for row in bench_rows(measured):
            write_json(row, indent=None)


def _show_all(measured: Sequence[Measured], output: Output, document: dict[str, Any]) -> None:
    """What needs all models."""
    if output is Output.csv:
        lines = io.StringIO()
        table = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(cells for one in measured for cells in bench_cells(one))
        write(lines.getvalue())
    elif output in (Output.json, Output.table):
        write_json(document, indent=2 if output is Output.json else None)


def _judge(measured: Sequence[Measured]) -> None:
    """The exit code: figures of a wrong model are of no worth, and missing ones have to be noticed."""
    for one in measured:
        stock = (one.agreement or {}).get("full against stock", {})
        if not stock.get("passed", True):
            raise HolitomError(
                f"The logits of {one.model.id} are {stock['relative_error']:.1e} from the stock library's.",
                f"Compare text and pictures with: holitom doctor --check-model {one.model.id}",
            )
    if any(row.get("error", {}).get("stage") == "device" for one in measured for row in one.rows):
        raise typer.Exit(SOME_FAILED)
