"""Clips that have been looked at, and what their last questions left behind, within a limit of bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from holitom_cli.batch.manifest import clip_identity
from holitom_cli.clock import Clock
from holitom_cli.model.kept import Kept
from holitom_cli.model.loading import Model
from holitom_cli.types import Watched

_WHOLE_BYTES = 256 * 1024**2  # a larger file is known by samples of its content, and by when it was changed


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """What the next question about a clip needs."""

    key: str
    watched: Watched
    kept: Kept | None  # keys, values and states of the last prompt about it; None where its method cannot keep any

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held on the model's device."""
        visual = self.watched.visual
        tensors = (visual.embeds, visual.frame, visual.cell, visual.size, visual.source)
        return sum(tensor.nbytes for tensor in tensors) + (self.kept.nbytes if self.kept else 0)


class Clips:
    """The least recently asked about go when there are more bytes than allowed. Safe from several threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[str, tuple[Clip, int]] = OrderedDict()  # with the bytes that were last counted
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes that are held, as they were last counted."""
        with self._lock:
            return sum(size for _, size in self._held.values())

    def get(self, key: str) -> Clip | None:
        """A clip, which counts as asked about now."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, clip: Clip) -> None:
        """Keep a clip, or count its bytes again; it does not stay where it alone is larger than the limit."""
        size = clip.nbytes
        with self._lock:
            self._held[clip.key] = (clip, size)
            self._held.move_to_end(clip.key)
            total = sum(held for _, held in self._held.values())
            while total > self._limit_bytes:
                _, (_, freed) = self._held.popitem(last=False)
                total -= freed

    def clear(self) -> bool:
        """Forget all of them; returns whether there was any."""
        with self._lock:
            some = bool(self._held)
            self._held.clear()
            return some


def new_clip(key: str, watched: Watched, model: Model) -> Clip:
    """A clip that has just been looked at, as it is kept: without its pixels."""
    import numpy as np

    frames = watched.frames
    frames = replace(frames, pixels=np.empty((len(frames), 0, 0, 3), np.uint8))
    method, depth = watched.method, model.checkpoint.depth
    kept = None if method.prunes_cache else Kept(depth, method.reductions(depth))
    return Clip(key, replace(watched, frames=frames), kept)


def known(watched: Watched, model: Model) -> Watched:
    """The same for a question that did not have to wait for it: reading and seeing take none of its time."""
    return replace(watched, frames=replace(watched.frames, timings_ms={}, cached=True), clock=Clock(model.device))


def content(path: Path) -> str:
    """A name for a file's content that nobody can give another file: a hash of all of it.

    A file beyond 256 MiB, which no client has sent, is named by samples of it and the time of its last change.
    """
    status = path.stat()
    if status.st_size > _WHOLE_BYTES:
        return f"{clip_identity(path)} {status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
