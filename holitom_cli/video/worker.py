"""The child's end: reads requests, runs one decoder, writes replies. See worker_link.py for the protocol.

Nothing here imports torch, and av runs without numpy: the first answer waits for start-up.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import re
import stat
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from holitom_cli.errors import VideoError
from holitom_cli.sampling import Sampling
from holitom_cli.video.arena import Arena

if TYPE_CHECKING:
    from holitom_cli.video.av_reader import Clip
    from holitom_cli.video.pictures import Pictures
    from holitom_cli.video.webp import Animation


class Picture(NamedTuple):
    """One decoded frame as it leaves a decoder."""

    slot: int  # which of the asked frames this is
    rgb: Any  # bytes-like, `height` rows of `stride` bytes, 3 bytes a pixel
    height: int
    width: int
    stride: int
    rotation: int = 0  # clockwise, in degrees, that makes it upright
    mirrored: bool = False  # it has to be mirrored before
    deinterlaced: bool = False  # it is one picture of two fields


def main(arena: str) -> None:
    """Serve requests until stdin closes; pictures go into the shared memory with this handle."""
    replies = take_stdout()
    server = Server(arena)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests, server.free), daemon=True).start()
    with contextlib.suppress(ImportError):  # told when it is needed
        import holitom_cli.video.av_reader  # noqa: F401  loads native libraries before the first request
    gc.enable()  # it was off while all was imported: none of that is ever garbage
    while True:
        try:
            for reply in server.answer(requests.get()):
                write(replies, reply)
        except VideoError as error:
            write(replies, {"refused": error.message, "hint": error.hint})
        except Exception as error:  # the parent decides what a decoder's failure means
            write(replies, {"failed": f"{type(error).__name__}: {first_line(error)}"})


def take_stdout() -> BinaryIO:
    """Keep stdout for replies and point fd 1 to nowhere: native libraries print there."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return replies


def listen(requests: queue.SimpleQueue[dict[str, Any]], free: queue.SimpleQueue[int]) -> None:
    """Pass messages on, and end this process when the parent is gone, even while a native call hangs."""
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "free" in message:
            free.put(message["free"])
        else:
            requests.put(message)
    os._exit(0)


def write(replies: BinaryIO, reply: dict[str, Any]) -> None:
    """Send one reply."""
    rest = json.dumps(reply).encode() + b"\n"
    while rest:  # a raw pipe may take less than it is offered
        rest = rest[replies.write(rest) :]


def first_line(error: Exception) -> str:
    """What an exception says, without the native source lines and stack trace that decord adds."""
    text = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error))
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def sampling_of(fields: dict[str, Any]) -> Sampling:
    """A Sampling that was sent as JSON, which knows no tuples."""
    return Sampling(**{**fields, "at_seconds": tuple(fields["at_seconds"])})


class Server:
    """Answers requests about clips, one clip after another."""

    def __init__(self, arena: str) -> None:
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()  # cells that may be written to
        self._arena = Arena(arena)
        self._clip: Clip | Animation | Pictures | None = None  # the last one, which knows its packets
        self._identity: object = None

    def answer(self, request: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Replies to one request."""
        if request["op"] == "decord":
            from holitom_cli.video import decord_reader

            yield from self._frames(request, decord_reader.read(request["path"], request["indices"], request["total"]))
            return
        if request["op"] == "subtitles":
            from holitom_cli.video import words

            yield {"lines": words.lines(request["path"])}
            return
        clip = self._open(request["path"])
        match request["op"]:
            case "probe":
                yield clip.probe()
            case "plan":
                yield clip.plan(sampling_of(request["sampling"]))
            case "read":
                yield from self._frames(request, clip.read(request["indices"]))

    def _open(self, path: str) -> Clip | Animation | Pictures:
        """What is known of the clip, as long as its file stays the same."""
        from holitom_cli.video.av_reader import Clip
        from holitom_cli.video.pictures import Pictures, is_still
        from holitom_cli.video.webp import Animation, is_animation

        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            return Pictures(path)  # its own times do not tell whether a picture has changed
        identity = (path, status.st_size, status.st_mtime_ns, status.st_ino)
        if self._clip is None or self._identity != identity:
            kind = Animation if is_animation(path) else Pictures if is_still(path) else Clip
            self._clip, self._identity = kind(path), identity
        return self._clip

    def _frames(self, request: dict[str, Any], pictures: Iterable[Picture]) -> Iterable[dict[str, Any]]:
        """Write each picture to a free cell and say so."""
        cells, size = request["cells"], request["cell_bytes"]
        memory = self._arena.view(cells * size)
        while not self.free.empty():  # of a job that was not finished
            self.free.get()
        for cell in range(cells):
            self.free.put(cell)
        for picture in pictures:
            header = picture._asdict()
            rgb = memoryview(header.pop("rgb")).cast("B")
            if len(rgb) > size:
                raise ValueError(f"a picture of {picture.width}x{picture.height} is larger than the others")
            cell = self.free.get()
            memory[cell * size : cell * size + len(rgb)] = rgb
            yield {**header, "cell": cell}
        yield {"done": True}
