"""holitom demo: the bundled model, asked about the bundled clip."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk, print_data, write, write_json
from holitom_cli.cli.options import ModelOptions, VideoOptions, command
from holitom_cli.report.record import document
from holitom_cli.report.terminal import summary, warning_line

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model
    from holitom_cli.quality.items import Item
    from holitom_cli.types import Answer, Watched

_LONGEST_ANSWER = 16  # tokens; the bundled model's answers have one to three
_ANOTHER = "How many shapes are there in all?"


@command()
def demo(
    *,
    device: Annotated[
        str, typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.", envvar="HOLITOM_DEVICE")
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Ask the bundled model about the bundled clip, without a network.

    The answers go to stdout, each with what is right, and a short report to stderr. The model is a small one of our
    own: it knows generated clips of moving shapes and nothing else.
    """
    talk = Talk()
    from holitom_cli import methods, pipeline
    from holitom_cli.model.hub import DEMO, locate
    from holitom_cli.quality.items import read_items

    place = locate(DEMO).path
    items = read_items(place / "questions.jsonl")
    clip = place / items[0].clip.name
    options = ModelOptions(model=DEMO, device=device)
    method = methods.get("holitom")
    model = session.load(options, session.find_checkpoint(options, method, talk), talk)
    frames = session.frames(str(clip), VideoOptions(), talk)
    with talk.busy("Watching"):
        watched = pipeline.watch(model, frames, method=method)
    answers = [_answer(model, watched, item, aloud=not json) for item in items]
    if json:
        write_json(_document(items, answers))
    talk.say(summary(answers))
    for warning in answers[0].warnings:
        talk.say(warning_line(warning))
    talk.console.print(_what_next(clip), soft_wrap=True)  # lines to copy must stay whole


def _answer(model: Model, watched: Watched, item: Item, *, aloud: bool) -> Answer:
    """Ask a question; aloud it is written with its answer, as this one comes, and with what is right."""
    from holitom_cli import pipeline
    from holitom_cli.account import OUT_OF_SCOPE

    if aloud:
        print_data(Text(item.question, "bold"))
        write("  ")
    listen = write if aloud else None
    answer = pipeline.ask(model, watched, item.question, max_new_tokens=_LONGEST_ANSWER, on_text=listen)
    if aloud:
        right = _is_right(item, answer)
        print_data(Text("  right", "green") if right else Text(f"  wrong: {item.answer}", "yellow"))
    # This clip is of the model's own world.
    return replace(answer, warnings=tuple(warning for warning in answer.warnings if warning != OUT_OF_SCOPE))


def _is_right(item: Item, answer: Answer) -> bool:
    from holitom_cli.quality.scoring import is_right

    return is_right(item, answer.text, "text")


def _document(items: list[Item], answers: list[Answer]) -> dict[str, object]:
    """What `ask --json` prints, and what is right."""
    whole = document(answers)
    for result, item, answer in zip(whole["results"], items, answers, strict=True):
        result |= {"expected": item.answer, "correct": _is_right(item, answer)}
    return whole


def _what_next(clip: Path) -> Text:
    own = f'holitom ask {shlex.quote(str(clip))} "{_ANOTHER}" --model demo'
    return Text.assemble(
        ("Ask more about this clip\n", "bold"),
        f"  {own}\n",
        ("Ask about a clip of yours; before it downloads a published checkpoint, it asks\n", "bold"),
        '  holitom ask clip.mp4 "What happens?"',
    )
