"""From the URL of a clip to a clip that has been looked at: fetched, decoded beside the model, looked at once."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import psutil  # type: ignore[import-untyped,unused-ignore]

from holitom_cli import pipeline, video
from holitom_cli.batch.manifest import watched_key
from holitom_cli.batch.reader import reader_count
from holitom_cli.errors import HolitomError, VideoError
from holitom_cli.serve.clips import content
from holitom_cli.serve.refusals import Refused, refusal
from holitom_cli.video.files import shown

if TYPE_CHECKING:
    from pathlib import Path

    from holitom_cli.model.loading import Model
    from holitom_cli.serve.clips import Clip
    from holitom_cli.serve.engine import Engine
    from holitom_cli.serve.media import Media
    from holitom_cli.serve.wishes import Ceilings, Wish
    from holitom_cli.types import Frames, VideoInfo

T = TypeVar("T")
_Stamp = tuple[int, int, int]
_MEMORY_SHARE = 0.5  # of the machine's, that decoders may take together, whatever clips say of themselves


class Watching:
    """Clips that requests are about."""

    def __init__(self, engine: Engine, media: Media, ceilings: Ceilings, timeout_seconds: float) -> None:
        """Decode with as many workers as there are cores for, each of which may take so long for a clip."""
        self._engine, self._media, self.ceilings = engine, media, ceilings
        self._timeout_seconds = timeout_seconds
        readers = reader_count()
        video.limit_memory(int(_MEMORY_SHARE * psutil.virtual_memory().total / readers))
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self._first: dict[str, asyncio.Future[Clip]] = {}  # clips that a request is bringing to the model

    def close(self) -> None:
        """End the decoders."""
        video.stop_workers()
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def clip(self, wish: Wish, model: Model) -> tuple[Clip, bool]:
        """The clip of a request, and whether it was there before, or another request has brought it.

        Raises:
            Refused: it cannot be had, read or looked at.
        """
        async with self._media.open(wish.url) as path:
            try:
                return await self._known_or_read(path, wish, model)
            except HolitomError as error:
                told = refusal(error)
                ours = shown(path)  # which says nothing to the client; nobody else's sentence has it by chance
                told.message = re.sub(rf"^{re.escape(ours)}", "The clip", told.message).replace(ours, "the clip")
                raise told from error

    async def _known_or_read(self, path: Path, wish: Wish, model: Model) -> tuple[Clip, bool]:
        before = _stamp(path)
        key = await self._beside(lambda _: self._key(path, wish, model))
        while (clip := self._engine.clips.get(key)) is None:
            if (other := self._first.get(key)) is None:
                return await self._read(key, path, before, wish, model), False
            await asyncio.wait([other])
            if not other.cancelled():
                return other.result(), True
        return clip, True

    def _key(self, path: Path, wish: Wish, model: Model) -> str:
        where = (model.info.dtype, model.device.type)
        return watched_key(content(path), model.checkpoint, where, wish.method, wish.sampling)

    async def _read(self, key: str, path: Path, before: _Stamp, wish: Wish, model: Model) -> Clip:
        done = self._first[key] = asyncio.get_running_loop().create_future()
        try:
            frames = await self._beside(lambda gone: self._decode(path, wish, model, gone))
            if _stamp(path) != before and await self._beside(lambda _: self._key(path, wish, model)) != key:
                # its key is of other content, and others may ask about that
                raise VideoError("The clip was changed while it was read.", "Ask again once it is whole.")
            clip = await self._engine.look(key, frames, wish.method)
            done.set_result(clip)
            return clip
        finally:
            del self._first[key]
            done.cancel()  # has no effect where there is a result; else another request tries

    async def _beside(self, work: Callable[[threading.Event], T]) -> T:
        """Run work in a reader's thread; where nobody waits for it any more, its event is set and it is awaited."""
        gone = threading.Event()
        running = self._readers.submit(work, gone)
        waiting = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            gone.set()
            if not running.cancel():  # it still reads the file
                await asyncio.wait([waiting])
                waiting.exception()
            raise

    def _decode(self, path: Path, wish: Wish, model: Model, gone: threading.Event) -> Frames:
        """The frames of a clip within the ceilings. It comes from a client, so that decord never sees it."""
        with video.unless(gone):
            self._check(video.probe(path, timeout_seconds=self._timeout_seconds))
            return pipeline.read(
                model.checkpoint,
                model.device,
                path,
                wish.sampling,
                [wish.method],
                timeout_seconds=self._timeout_seconds,
                decoder="av",
            )

    def _check(self, info: VideoInfo) -> None:
        ceilings = self.ceilings
        if info.duration_seconds > ceilings.clip_seconds:
            _too_much(
                f"The clip lasts {info.duration_seconds:,.0f} s; {ceilings.clip_seconds:,.0f} s is the most here."
            )
        if info.width * info.height > ceilings.clip_pixels:
            _too_much(f"The clip has {info.width} x {info.height} pixels; {ceilings.clip_pixels:,} is the most here.")


def _stamp(path: Path) -> _Stamp:
    """What changes whenever a file does: size, time of the last change, and of the last change of that."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _too_much(message: str) -> None:
    raise Refused(413, message, "Send a shorter or smaller one.", "clip_too_large", param="messages")
