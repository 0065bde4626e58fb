"""The child's end: reads requests, runs one decoder, writes replies. See worker_link.py for the protocol.

One worker reads one clip. Nothing here imports torch, and av runs without numpy: every answer waits for start-up.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from holitom_cli.errors import VideoError

if TYPE_CHECKING:
    from holitom_cli.video.av_reader import Clip


class Picture(NamedTuple):
    """One decoded frame as it leaves a decoder."""

    slot: int  # which of the asked frames this is
    rgb: Any  # bytes-like, `height` rows of `stride` bytes, 3 bytes a pixel
    height: int
    width: int
    stride: int
    upright: bool  # rotation is already applied


def main() -> None:
    """Serve requests until stdin closes."""
    replies = take_stdout()
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests,), daemon=True).start()
    server = Server()
    while True:
        try:
            for header, payload in server.answer(requests.get()):
                write(replies, header, payload)
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


def listen(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Pass requests on, and end this process when the parent is gone, even while a native call hangs."""
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)


def write(replies: BinaryIO, header: dict[str, Any], payload: Any = b"") -> None:
    """Send one reply: its header line and the bytes-like payload."""
    rest = memoryview(payload).cast("B")
    replies.write(json.dumps({**header, "size": len(rest)}).encode() + b"\n")
    while rest:  # a raw pipe may take less than it is offered
        rest = rest[replies.write(rest) :]


def first_line(error: Exception) -> str:
    """What an exception says, without the native source lines and stack trace that decord adds."""
    text = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error))
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


class Server:
    """Answers the requests about one clip."""

    def __init__(self) -> None:
        self._clip: Clip | None = None  # keeps its packet table between requests

    def answer(self, request: dict[str, Any]) -> Iterable[tuple[dict[str, Any], Any]]:
        """Replies to one request, as (header, payload)."""
        if request["op"] == "decord":
            from holitom_cli.video import decord_reader

            yield from self._frames(decord_reader.read(request["path"], request["indices"], request["total"]))
            return
        clip = self._open(request["path"])
        match request["op"]:
            case "probe":
                yield clip.probe(), b""
            case "plan":
                yield clip.plan(request["indices"]), b""
            case "av":
                yield from self._frames(clip.read(request["indices"]))

    def _open(self, path: str) -> Clip:
        from holitom_cli.video.av_reader import Clip

        if self._clip is None:
            self._clip = Clip(path)
        return self._clip

    @staticmethod
    def _frames(pictures: Iterable[Picture]) -> Iterable[tuple[dict[str, Any], Any]]:
        for picture in pictures:
            header = picture._asdict()
            yield header, header.pop("rgb")
        yield {"done": True}, b""
