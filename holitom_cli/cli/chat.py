"""holitom chat: questions about a video, one after another, to a model that stays in memory."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk
from holitom_cli.cli.guard import interrupt_stops, signals_are_lent
from holitom_cli.cli.options import (
    AnswerOptions,
    CacheOptions,
    ContextOptions,
    MethodOptions,
    ModelOptions,
    SamplingOptions,
    VideoOptions,
    command,
)
from holitom_cli.cli.rows import SOME_FAILED
from holitom_cli.errors import UsageError, in_a_sentence, reason
from holitom_cli.report.terminal import error_line, warning_line
from holitom_cli.report.text import visible
from holitom_cli.types import Generation

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from holitom_cli.cli.room import Room, Setup, View

_DATA = {"darwin": "Library/Application Support", "win32": "AppData/Local"}
_TYPICAL = "What happens?"  # stands for questions that nobody has asked yet


@command(ContextOptions, VideoOptions, SamplingOptions, CacheOptions, ModelOptions, MethodOptions, AnswerOptions)
def chat(
    told: ContextOptions,
    video: VideoOptions,
    sampling: SamplingOptions,
    kept: CacheOptions,
    model: ModelOptions,
    method: MethodOptions,
    answer: AnswerOptions,
    *,
    context: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(metavar="VIDEO", help="A video file, a picture, or a folder of pictures.", show_default=False),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="Remember what was typed in a folder holitom in this one.",
            envvar=["HOLITOM_DATA_DIR", "XDG_DATA_HOME"],
            show_default="the user's data directory",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the answers: no progress.")] = False,
) -> None:
    """Talk about a video file with a model that stays in memory.

    Each question knows those before it, and only what is new is computed. /help lists the commands. Without a terminal,
    lines are read from stdin, one after another.
    """
    from holitom_cli.cli.room import Setup, View

    talk = Talk(quiet=quiet)
    from holitom_cli.video import warm_up

    warm_up()  # while torch is imported
    view = View(file or "", sampling.build(video, context), method.build(context))
    from holitom_cli import pipeline

    generation = pipeline.check_generation(Generation(**asdict(answer)))
    setup = Setup(told, video, kept, model)
    room = _prepare(setup, view, generation, talk)
    at_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_a_terminal:
        talk.say(Text("Ask something. /help lists the commands, Ctrl-D leaves.", "dim"))
    lines = _typed(_history(data_dir, talk)) if at_a_terminal else _piped()
    failed = False
    for line in filter(str.strip, lines):
        if not at_a_terminal:
            talk.say(Text(visible(line.strip()), "bold"))
        failed |= not _heard(room, line, talk, stoppable=at_a_terminal, debug=bool(context.params.get("debug")))
        if room.ended:
            break
    if failed and not at_a_terminal:
        raise typer.Exit(SOME_FAILED)


def _prepare(setup: Setup, view: View, generation: Generation, talk: Talk) -> Room:
    """The room, once its clip has been looked at; what can be refused early is refused before a weight is read."""
    from holitom_cli import pipeline
    from holitom_cli.cli.room import Room
    from holitom_cli.video import most_frames, probe

    count = 0
    if view.file:
        count = most_frames(view.sampling, probe(view.file, timeout_seconds=setup.video.decode_timeout))
    checkpoint = session.find_checkpoint(setup.model, view.method, talk)
    if view.file:
        pipeline.check_room(checkpoint, view.method, count)
        session.check_memory(setup.model, checkpoint, [view.method], count, [_TYPICAL], generation.max_new_tokens)
    room = Room(session.load(setup.model, checkpoint, talk), setup, view, generation, talk)
    if view.file:
        room.open(view.file)
    return room


def _heard(room: Room, line: str, talk: Talk, *, stoppable: bool, debug: bool) -> bool:
    """Whether a line could be done; if not, it is told why, and the next one can come."""
    try:
        with interrupt_stops() if stoppable else nullcontext():
            room.hear(line)
    except KeyboardInterrupt:
        if not stoppable:
            raise
        talk.insist(Text("Stopped.", "dim"))
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        talk.insist(error_line(in_a_sentence(error)))
        return False
    return True


def _typed(history: History) -> Iterator[str]:
    """Lines that are typed at a terminal, until Ctrl-D."""
    from prompt_toolkit import PromptSession

    prompt: PromptSession[str] = PromptSession("> ", history=history)
    while True:
        try:
            with signals_are_lent():
                line = prompt.prompt(handle_sigint=False)
        except KeyboardInterrupt:  # gives up the line that is being typed
            continue
        except EOFError:
            return
        yield line


def _piped() -> Iterator[str]:
    """Lines of stdin.

    Raises:
        UsageError: they are no text.
    """
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise UsageError(f"A line on stdin cannot be read: {reason(error)}.", "Give text in UTF-8.") from error


def _history(data_dir: Path | None, talk: Talk) -> History:
    """What was typed earlier, in a file that only its user can read; in memory alone where there can be no file."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Patient(FileHistory):
        """A line that cannot be written, as on a full disk, is asked all the same."""

        def store_string(self, string: str) -> None:
            with suppress(OSError, UnicodeError):
                super().store_string(string)

    folder = (data_dir or Path.home() / _DATA.get(sys.platform, ".local/share")) / "holitom"
    file = folder / "chat-history"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.open("ab").close()
    except OSError as error:
        talk.insist(warning_line(f"What is typed will not be remembered: {file}: {reason(error)}."))
        return InMemoryHistory()
    return Patient(str(file))
