"""What a chat talks about, and its commands: lines that begin with a slash."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table
from rich.text import Text

from holitom_cli.cli import pictures, session
from holitom_cli.cli.console import Talk, wrote
from holitom_cli.cli.options import (
    CacheOptions,
    ContextOptions,
    ModelOptions,
    PictureOptions,
    VideoOptions,
    as_seconds,
    check_place,
    split_pairs,
)
from holitom_cli.errors import UsageError
from holitom_cli.report.terminal import report, warning_line
from holitom_cli.report.text import count, counted, size, visible
from holitom_cli.types import Generation, Sampling, Watched

if TYPE_CHECKING:
    from holitom_cli.conversation import Conversation
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Model
    from holitom_cli.model.prompt import Turn
    from holitom_cli.types import Answer, Frames

_TRANSCRIPT = "chat.md"
_EMPTY = "No clip is open yet."


@dataclass(frozen=True)
class Setup:
    """What was said on the command line and does not change."""

    told: ContextOptions
    video: VideoOptions
    kept: CacheOptions
    model: ModelOptions


@dataclass(frozen=True)
class View:
    """A clip, empty where none is open, and how it is looked at."""

    file: str
    sampling: Sampling
    method: Method


class Room:
    """A model in memory, the clips that it sees, and the conversation about them."""

    def __init__(self, model: Model, setup: Setup, view: View, generation: Generation, talk: Talk) -> None:
        self.ended = False
        self._model, self._setup, self._talk = model, setup, talk
        self._views, self._whole, self._generation = [view], view.sampling, generation
        self._subtitled = view.file  # the clip that a file with subtitles belongs to, if one was named
        self._conversation: Conversation | None = None
        self._answers: list[Answer] = []  # about what is seen now
        self._transcript: list[str] = []
        self._warned: set[str] = set()

    def hear(self, line: str) -> None:
        """Answer a question, or do what a command says.

        Raises:
            HolitomError: it cannot be done; everything is as before.
        """
        name, _, rest = line.strip().partition(" ")
        if name.startswith("/"):
            if name not in COMMANDS:
                raise UsageError(f"There is no command {name!r}.", "Type /help to see those that there are.")
            COMMANDS[name].run(self, rest.strip())
        elif name:
            self._ask(line.strip())

    # --- commands ------------------------------------------------------------------------------

    def open(self, file: str) -> None:
        """Look at another clip, in a conversation of its own."""
        if not file:
            raise UsageError("/open needs a file.", "As in: /open clip.mp4")
        path = Path(_unquoted(file)).expanduser()
        if self._turns():
            self._talk.say(Text("A new conversation begins. To go on with one, bring a clip in by /add.", "dim"))
        self._look([self._another(path)], afresh=True)
        self._note(f"# {path.name}")

    def add(self, file: str) -> None:
        """Bring another clip into the conversation."""
        if not file:
            raise UsageError("/add needs a file.", "As in: /add clip.mp4")
        self._talking()
        path = Path(_unquoted(file)).expanduser()
        self._look([*self._views, self._another(path)])
        self._note(f"*(and {path.name})*")

    def at(self, what: str) -> None:
        """Look at a part of the clip, or at all of it again."""
        if not self._view.file:
            raise UsageError(_EMPTY, "As in: /open clip.mp4")
        sampling = _part(self._whole, what.split()) if what else self._whole
        self._look([*self._views[:-1], replace(self._view, sampling=sampling)])
        self._note(f"*(looking at {what or 'the whole clip'})*")

    def method(self, what: str) -> None:
        """Compress in another way, or say how."""
        from holitom_cli import methods

        if not what:
            self._show({"method": methods.name_of(self._view.method)} | asdict(self._view.method))  # type: ignore[call-overload]
            return
        name, *pairs = what.split()
        method = methods.get(name, **split_pairs("/method", pairs))
        self._look([replace(view, method=method) for view in self._views])
        self._note(f"*(method {what})*")

    def set(self, what: str) -> None:
        """Change settings of answers, of the method, and the number of frames, or say what they are."""
        from holitom_cli import methods, pipeline

        if not what:
            settings = asdict(self._generation) | {"num_frames": self._view.sampling.num_frames}
            self._show(settings | asdict(self._view.method))  # type: ignore[call-overload]
            return
        pairs = split_pairs("/set", what.split())
        numbers = {name: _number(name, pairs.pop(name)) for name in list(pairs) if name in _NUMBERS}
        frames = numbers.pop("num_frames", None)
        generation = pipeline.check_generation(replace(self._generation, **numbers))  # type: ignore[arg-type]
        whole, now = (_counted(sampling, frames) for sampling in (self._whole, self._view.sampling))
        method = methods.change(self._view.method, **pairs)
        views = [replace(view, method=method) for view in self._views]
        views[-1] = replace(views[-1], sampling=now)
        if views != self._views:
            self._look(views)
        self._generation, self._whole = generation, whole
        self._note(f"*(set {what})*")

    def forget(self, _: str) -> None:
        """Begin a new conversation about the same clips."""
        self._talking().forget()
        self._answers.clear()
        self._note("---")

    def stats(self, _: str) -> None:
        """Report on the last answer, and on what is kept for the next one."""
        last, talking = self._answered()[-1], self._talking()
        self._talk.insist(report([last]))
        known = (
            f"{count(talking.reused_tokens)} of its prompt's {counted(last.tokens.prompt, 'token')} were known before"
        )
        self._talk.insist(
            Text(f"Kept for the next question: {size(talking.kept_bytes)}. {known}; FLOPs count them all.")
        )

    def report(self, what: str) -> None:
        """Write a page about the answers on what is seen now."""
        if not what:
            raise UsageError("/report needs a file.", "As in: /report out.html")
        file = Path(_unquoted(what)).expanduser()
        check_place(file)
        if clips := self._answered()[-1].earlier:
            raise UsageError(
                f"A page shows one clip, but the answers are about {len(clips) + 1}.",
                "Look at one by /open and ask again, or see /stats.",
            )
        options, timeout = PictureOptions(report=file), self._setup.video.decode_timeout
        pictures.write(options, self._view.file, timeout, self._answered(), [], None, self._talk)

    def save(self, what: str) -> None:
        """Write everything that was said."""
        if not self._transcript:
            raise UsageError("Nothing has been said yet.", "Ask something first.")
        file = Path(_unquoted(what) or _TRANSCRIPT).expanduser()
        check_place(file)
        file.write_text("\n\n".join(self._transcript) + "\n", encoding="utf-8", errors="backslashreplace")
        self._talk.say(wrote(file))

    def help(self, _: str) -> None:
        """List the commands."""
        table = Table.grid(padding=(0, 2))
        for name, command in COMMANDS.items():
            table.add_row(Text(f"{name} {command.takes}".strip(), "bold"), Text(command.does))
        self._talk.insist(table)
        self._talk.insist(Text("Anything else is a question. Ctrl-C stops an answer, Ctrl-D leaves."))

    def quit(self, _: str) -> None:
        """Leave."""
        self.ended = True

    # --- what they have in common --------------------------------------------------------------

    def _ask(self, question: str) -> None:
        session.check_question(question)
        talking, before = self._talking(), len(self._turns())
        try:
            answer = session.answered(partial(talking.ask, question, self._generation), self._talk, aloud=True)
        finally:  # where it was stopped, as far as it came
            for turn in talking.turns[before:]:
                self._note(f"**{turn.question}**", turn.answer)
        self._answers.append(answer)
        self._warn(answer.warnings)

    @property
    def _view(self) -> View:
        """The clip that came last, and how it is looked at."""
        return self._views[-1]

    def _another(self, path: Path) -> View:
        return replace(self._view, file=str(path), sampling=self._whole)

    def _look(self, views: Sequence[View], *, afresh: bool = False) -> None:
        """Look at clips, and go on talking about them unless `afresh`; without a clip, remember how.

        What was kept and does not serve for these views is given up where this succeeds.
        """
        from holitom_cli.conversation import Conversation

        if views[0].file:
            talking = None if afresh else self._conversation
            before = zip(self._views, talking.clips, strict=True) if talking else ()
            seen: list[Watched] = []
            for view, known in zip(views, [*before, None], strict=False):
                seen.append(known[1] if known and known[0] == view else self._watch(view, known, seen))
            if len(seen) > 1:
                self._say_seen(f"{len(seen)} clips", seen)
            self._answers.clear()
            self._subtitled = self._subtitled or views[0].file
            self._conversation = talking.seen_as(seen) if talking else Conversation(self._model, seen[0])
        else:
            views[0].method.reductions(self._model.checkpoint.depth)
        self._views = list(views)

    def _watch(self, view: View, known: tuple[View, Watched] | None, others: Sequence[Watched]) -> Watched:
        """What is seen besides `others`: from the cache, from the frames that are known, or from the file."""
        from holitom_cli import pipeline
        from holitom_cli.clock import Clock
        from holitom_cli.video import most_frames, probe

        setup, checkpoint = self._setup, self._model.checkpoint
        info = probe(view.file, timeout_seconds=setup.video.decode_timeout)
        source = setup.told.subtitles
        if source != "auto" and self._subtitled not in ("", view.file):  # they are another clip's
            source = None
        lines = session.subtitle_lines(view.file, source, setup.video)
        view.method.reductions(checkpoint.depth)
        places = pipeline.visual_places([clip.visual for clip in others])
        pipeline.check_room(checkpoint, view.method, most_frames(view.sampling, info), places)
        shelf = session.shelf(setup.kept, view.file, setup.model, checkpoint, view.method, view.sampling)
        if found := shelf.find() if shelf else None:
            watched = Watched(*found, view.method, Clock(self._model.device))
        else:
            watched = session.watch(self._model, self._read(view, known), view.method, self._talk)
            if shelf:
                shelf.keep(watched, self._talk)
        self._say_seen(Path(view.file).name, [watched])
        self._warn(watched.frames.warnings)
        return session.tell(watched, lines, setup.told)

    def _say_seen(self, what: str, clips: Sequence[Watched]) -> None:
        frames, left = (sum(map(len, parts)) for parts in zip(*((c.frames, c.visual) for c in clips), strict=True))
        tokens = counted(sum(clip.visual.source.numel() for clip in clips), "visual token")
        self._talk.say(Text(f"{visible(what)}: {counted(frames, 'frame')}, {count(left)} of {tokens}", "dim"))

    def _read(self, view: View, known: tuple[View, Watched] | None) -> Frames:
        """Frames that are here already, or else the file's."""
        from holitom_cli import pipeline

        if known and replace(known[0], method=view.method) == view and not known[1].frames.cached:
            return known[1].frames
        with self._talk.counting("Reading frames") as show:
            return pipeline.read(
                self._model.checkpoint,
                self._model.device,
                view.file,
                view.sampling,
                [view.method],
                timeout_seconds=self._setup.video.decode_timeout,
                on_frame=show,
            )

    def _talking(self) -> Conversation:
        if self._conversation is None:
            raise UsageError(_EMPTY, "As in: /open clip.mp4")
        return self._conversation

    def _turns(self) -> Sequence[Turn]:
        return self._conversation.turns if self._conversation else ()

    def _answered(self) -> list[Answer]:
        if not self._answers:
            raise UsageError("Nothing has been answered yet about what is seen now.", "Ask something first.")
        return self._answers

    def _note(self, *paragraphs: str) -> None:
        self._transcript += paragraphs

    def _warn(self, warnings: Iterable[str]) -> None:
        """Every warning once a session."""
        for warning in warnings:
            if warning not in self._warned:
                self._talk.insist(warning_line(warning))
            self._warned.add(warning)

    def _show(self, settings: Mapping[str, Any]) -> None:
        table = Table.grid(padding=(0, 2))
        for name, value in settings.items():
            table.add_row(Text(name), Text(str(value)))
        self._talk.insist(table)


class Command(NamedTuple):
    """What a line that begins with a slash does."""

    run: Callable[[Room, str], None]
    takes: str
    does: str


COMMANDS = {
    "/open": Command(Room.open, "FILE", "look at a clip alone, in a new conversation"),
    "/add": Command(Room.add, "FILE", "bring another clip into the conversation; it comes with the next question"),
    "/at": Command(
        Room.at,
        "[1:20-1:45 [FRAMES]]",
        "look closer at a part of the last clip, with all frames there; alone: all of it",
    ),
    "/method": Command(Room.method, "[NAME [KEY=VALUE ...]]", "compress every clip in another way; alone: say how"),
    "/set": Command(
        Room.set,
        "[KEY=VALUE ...]",
        "settings of method and answers, num_frames of the last clip and of others to come; alone: say what they are",
    ),
    "/new": Command(Room.forget, "", "forget the turns so far, but not the clips"),
    "/stats": Command(Room.stats, "", "what was kept and how long it took, of the last answer"),
    "/report": Command(Room.report, "FILE", "a page of the answers about what is seen now"),
    "/save": Command(Room.save, "[FILE]", f"everything that was said, as Markdown; alone: {_TRANSCRIPT}"),
    "/help": Command(Room.help, "", "this list"),
    "/quit": Command(Room.quit, "", "leave"),
}
_NUMBERS: dict[str, type[int] | type[float]] = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "seed": int,
    "num_frames": int,
}


def _number(name: str, text: str) -> float:
    try:
        return _NUMBERS[name](text)
    except ValueError as error:
        kind = "a whole number" if _NUMBERS[name] is int else "a number"
        raise UsageError(f"/set {name} is {text!r}, which is not {kind}.", f"As in: /set {name}=1") from error


def _counted(sampling: Sampling, frames: float | None) -> Sampling:
    """The same, with so many frames."""
    if frames is None:
        return sampling
    return replace(sampling, num_frames=int(frames), fps=None, max_frames=None, at_seconds=())


def _part(whole: Sampling, words: Sequence[str]) -> Sampling:
    """A closer look: the frames that are looked at lie in this part alone.

    Raises:
        UsageError: it is no part.
    """
    times = re.fullmatch(r"(-?[\d:.]+)-(-?[\d:.]+)", words[0])
    if not times or len(words) > 2 or not all(word.isdigit() for word in words[1:]):
        raise UsageError(f"/at {' '.join(words)!r} is no part of a clip.", "As in: /at 1:20-1:45, or /at 1:20-1:45 64")
    start, end = (as_seconds("/at", text) for text in times.groups())
    sampling = _counted(whole, int(words[1])) if len(words) > 1 else whole
    return replace(sampling, start_seconds=start, end_seconds=end, at_seconds=())


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
