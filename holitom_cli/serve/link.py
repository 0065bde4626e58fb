"""The side of `ask`: a running server of this user that would answer as this process does, and its answers.

Whatever it is about, a server that cannot be used is no error: `ElsewhereError` says why, and the caller answers by
itself. Nothing here imports torch, and numpy only where frames are decoded.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli.batch.manifest import clip_identity, weights_identity
from holitom_cli.errors import HolitomError
from holitom_cli.serve import sockets, wire

if TYPE_CHECKING:
    from holitom_cli.types import AnswerRecord, ByteArray, Generation, Sampling, VideoInfo

_CONNECT_SECONDS = 2.0  # a server that is stopped must not hold anybody up
_SILENCE_SECONDS = 20.0  # of a server that says at every second that it is alive
_FULL_NUMBER = 256**3  # of what a picture's place can be told by


class ElsewhereError(Exception):
    """A server does not answer; the text is a clause that says why."""


class BrokenOffError(HolitomError):
    """The server's answer ended in the middle."""

    stage = "serve"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model that this process would load, in the words of the command line; None where nothing was said."""

    model: str | None
    revision: str | None
    device: str
    dtype: str
    quantize: str | None


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip, and how it is looked at."""

    file: str
    sampling: Sampling
    timeout_seconds: float | None  # of its decoder


@contextmanager
def link(path: Path, wanted: Wanted) -> Iterator[Link]:
    """A connection to the server at a socket.

    Raises:
        ElsewhereError: it does not have this model, or cannot be used.
    """
    try:
        connection = sockets.connect(path, _CONNECT_SECONDS)
    except (OSError, sockets.UnsafeError) as error:
        raise ElsewhereError(f"it cannot be reached ({error})") from error
    with connection, closing(Link(connection)) as linked:
        linked.meet(wanted)
        yield linked


class Link:
    """A connection to a server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._hello: wire.Message = {}
        self._wanted: Wanted
        self._sent = 0  # pictures
        self.began = False  # whether something has been answered

    @property
    def server(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"version": self._hello["program"][1], "pid": self._hello["pid"]}

    def close(self) -> None:
        """Hear no more; the socket is its owner's to close."""
        self._file.close()

    def meet(self, wanted: Wanted) -> None:
        """Hear who it is.

        Raises:
            ElsewhereError: it would not answer as this process does.
        """
        self._hello, self._wanted = self._hear(), wanted
        if why := disagreement(self._hello, wanted):
            raise ElsewhereError(why)
        self._connection.settimeout(_SILENCE_SECONDS)

    def settings_of(self, method: str) -> tuple[frozenset[str], bool]:
        """The settings that a method has, and whether it has presets.

        Raises:
            ElsewhereError: the server does not say.
        """
        if method not in self._hello["methods"]:
            raise ElsewhereError(f"it does not know the method {method!r} by one name")
        names, has_presets = self._hello["methods"][method]
        return frozenset(names), has_presets

    def ask(
        self,
        clip: Clip,
        method: Mapping[str, Any],
        generation: Generation,
        questions: list[str],
        sending: Callable[[], AbstractContextManager[None]],
    ) -> Link:
        """Have questions about a clip answered; the clip is decoded here where the server does not know it yet.

        `sending` is around that: called as soon as it is known that a decoder will be needed.

        Raises:
            ElsewhereError: the server will not answer them.
            VideoError: the clip cannot be read.
        """
        is_file = Path(clip.file).is_file()
        self._tell(
            {
                "clip": clip_identity(Path(clip.file)) if is_file else "",
                "sampling": asdict(clip.sampling),
                "method": method,
                "generation": asdict(generation),
                "questions": questions,
            }
        )
        if self._next()["frames"] == "wanted":
            with sending():
                self._send_frames(clip)
        return self

    def answer(self, on_text: Callable[[str], None] | None, path: str) -> AnswerRecord:
        """The answer to the next question, about a clip of this name.

        Raises:
            ElsewhereError: there is none, and nothing has been said yet.
            BrokenOffError: the server ended in the middle.
        """
        while "answer" not in (message := self._next()):
            self.began = True
            if on_text:
                on_text(message["text"])
        self.began = True
        return self._as_asked(wire.record(message["answer"]), path)

    def _as_asked(self, answer: AnswerRecord, path: str) -> AnswerRecord:
        """The record with the names that this process was given for the same things."""
        told, frames = self._hello["model"], answer.frames
        model = replace(
            answer.model, id=self._wanted.model or told["id"], reason="" if self._wanted.model else told["why"]
        )
        video = frames.video and replace(frames.video, path=str(Path(path).absolute()))
        return replace(answer, model=model, frames=replace(frames, video=video), served_by=self.server)

    # --- frames ----------------------------------------------------------------------------------

    def _send_frames(self, clip: Clip) -> None:
        """Decode the clip and send each frame as it comes."""
        from holitom_cli import video

        def accept(info: VideoInfo, count: int) -> None:
            if info.hdr:  # its frames are changed once they are small
                raise ElsewhereError("frames of clips made for bright screens are not sent")
            if count > self._hello["most_frames"]:
                raise ElsewhereError(f"{count} frames are more than it takes")

        frames = video.read(
            clip.file, clip.sampling, timeout_seconds=clip.timeout_seconds, accept=accept, shrink=self._send_frame
        )
        places = [int(red) + 256 * int(green) + 256**2 * int(blue) for red, green, blue in frames.pixels[:, 0, 0]]
        self._tell({"frames": wire.frames_as_json(frames), "order": places})

    def _send_frame(self, picture: ByteArray) -> ByteArray:
        """Send a picture (H, W, 3); what stays here is one pixel (1, 1, 3) that tells the number it was sent as.

        Pictures come in no certain order, and those of a decoder that failed in the middle come again.
        """
        import numpy as np

        number = self._sent
        if number >= _FULL_NUMBER:
            raise ElsewhereError("it takes no more frames")
        self._sent += 1
        height, width, _ = picture.shape
        content = np.ascontiguousarray(picture).data.cast("B")
        self._send(wire.packed({"size": [height, width]}, len(content)), content)
        return np.array([[[number % 256, number // 256 % 256, number // 256**2]]], np.uint8)

    # --- messages --------------------------------------------------------------------------------

    def _tell(self, message: Mapping[str, Any]) -> None:
        self._send(wire.packed(message))

    def _send(self, *parts: bytes | memoryview) -> None:
        try:
            for part in parts:
                self._connection.sendall(part)
        except OSError as error:
            raise self._failure(f"it went away ({error})") from error

    def _next(self) -> wire.Message:
        """The next message that is no mere sign of life.

        Raises:
            ElsewhereError: it is a refusal, or there is none, and nothing has been said yet.
            BrokenOffError: there is none.
        """
        while "alive" in (message := self._hear()):
            pass
        if "refused" in message:
            sentence, hint, _ = message["refused"]
            if self.began:
                raise BrokenOffError(sentence, hint or "Ask again, or use --server off.")
            raise ElsewhereError(f"it says: {sentence}")
        return message

    def _hear(self) -> wire.Message:
        try:
            size, _ = wire.HEAD.unpack(self._read(wire.HEAD.size))
            message: wire.Message = json.loads(self._read(size))
        except (OSError, ValueError, EOFError) as error:
            raise self._failure(f"it does not answer ({error})") from error
        return message

    def _read(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size:
            raise EOFError("the connection has ended")
        return content

    def _failure(self, why: str) -> Exception:
        """Before anything was said, another one can answer; what has been said cannot be taken back."""
        if self.began:
            return BrokenOffError(
                "The server that was answering has gone.", "Ask again, or use --server off to answer without one."
            )
        return ElsewhereError(why)


def disagreement(hello: Mapping[str, Any], wanted: Wanted) -> str:
    """Why a server would not answer as this process does; empty where it would."""
    if hello.get("program") != wire.program():
        return "it is another version, or another installation"
    if not hello["ready"]:
        return "it is not ready"
    model = hello["model"]
    if not _is_model(model, wanted.model):
        return f"it has the model {model['id']}"
    if not _is_revision(model, wanted.revision):
        return f"it has another revision of {model['id']}"
    if hello["quantize"] != wanted.quantize:
        return f"its weights are kept {'in ' + hello['quantize'] if hello['quantize'] else 'whole'}"
    for option, names in ((wanted.device, "devices"), (wanted.dtype, "dtypes")):
        if option not in hello[names]:
            return f"it runs in {hello[names][-1]}, not {option}"
    try:
        same = hello["weights"] == weights_identity(Path(model["path"]))
    except OSError:
        same = False
    return "" if same else "the model's files have changed since it read them"


def _is_model(model: Mapping[str, Any], name: str | None) -> bool:
    if name is None:
        return bool(model["usual"])
    path = Path(name).expanduser()
    if name != "demo" and path.is_dir():  # in the order of those who would look for it
        return bool(model["kind"] == "local" and model["path"] == str(path.resolve()))
    return bool(model["id"] == name and model["kind"] != "local")


def _is_revision(model: Mapping[str, Any], revision: str | None) -> bool:
    """Whether a revision, or the usual one, still is the commit that the server has.

    The hub's cache has a file for each branch and tag with the commit that it is at.
    """
    if model["kind"] != "published":
        return revision is None
    if revision == model["revision"]:
        return True
    named = Path(model["path"]).parent.parent / "refs" / (revision or "main")
    try:
        return bool(named.read_text(encoding="utf-8").strip() == model["revision"])
    except OSError:
        return False
