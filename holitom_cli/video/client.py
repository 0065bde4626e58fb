"""The parent's side: from a path to `Frames`, with deadlines and a second decoder."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from holitom_cli.errors import VideoError
from holitom_cli.types import Frames, Sampling, VideoInfo
from holitom_cli.video.files import readable, shown, subtitle_file
from holitom_cli.video.hdr import to_ordinary
from holitom_cli.video.pipes import Message
from holitom_cli.video.sampling import spacing_warning
from holitom_cli.video.worker_link import (
    RefusedError,
    Worker,
    WorkerError,
    WorkerStoppedError,
    WorkerTimeoutError,
    lent,
)

if TYPE_CHECKING:
    import mmap

    from holitom_cli.types import ByteArray, IntArray

    Lines = list[tuple[float, float, str]]
    Shrink = Callable[[ByteArray], ByteArray]
    OnFrame = Callable[[int, int], None]

Decoder = Literal["auto", "decord", "av"]

PROBE_SECONDS = 30.0
SLOWEST_DISK_BYTES_PER_SECOND = 20e6  # some containers must be read whole before their frames are known
DECODE_SECONDS = 60.0  # and as long again as the clip lasts: every decoder is faster than that
ARENA_BYTES = 32 * 1024**2  # of pictures at full size that wait for the parent; fresh memory costs more than a copy
FEWEST_CELLS = 4
ROW_PADDING_BYTES = 3 * 64  # FFmpeg ends rows where its vector instructions like it: after up to 64 pixels more
MORE_TIME = "Allow more time (--decode-timeout), or convert the clip: ffmpeg -i IN -c:v libx264 OUT.mp4"


def probe(path: str | Path, *, timeout_seconds: float | None = None) -> VideoInfo:
    """What the container says about a file's first real video stream.

    Raises VideoError when there is no such stream, no frame of it can be decoded, or it takes too long.
    """
    file = readable(path)
    with lent() as worker:
        return probed(worker, file, probe_seconds(file) if timeout_seconds is None else timeout_seconds)


def subtitles(path: str | Path, source: str | Path = "auto", *, timeout_seconds: float | None = None) -> Lines:
    """The lines of a clip's subtitles, from a file, or with "auto" from one beside it or the clip itself.

    Each with the seconds from and to which it is shown; none where there are none in words. Raises VideoError where
    they cannot be read.
    """
    file = readable(subtitle_file(path, source))
    patience = probe_seconds(file) if timeout_seconds is None else timeout_seconds
    with lent() as worker:
        try:
            found = worker.ask({"op": "subtitles", "path": file}, time.monotonic() + patience)
        except WorkerError as error:
            raise user_error(file, [("av", error)], patience) from None
    return [(start, end, text) for start, end, text in found["lines"]]


def read(
    path: str | Path,
    sampling: Sampling | int = Sampling(),  # noqa: B008  it is frozen
    *,
    timeout_seconds: float | None = None,
    decoder: Decoder = "auto",
    accept: Callable[[VideoInfo, int], None] | None = None,
    shrink: Shrink | None = None,
    on_frame: OnFrame | None = None,
) -> Frames:
    """Decode upright RGB frames of a clip: those that `sampling` picks, or so many evenly spread ones.

    `timeout_seconds` bounds each stage and each decoder; by default it grows with the clip. `decoder` names the
    only one to use; "auto" takes av, and decord where it is exact when av fails. Frames that cannot be read are left
    out, counted and warned about. `accept` sees what the clip is and how many frames there will be, and may raise
    before one is decoded. `shrink` makes of each picture (H, W, 3) what is kept of it, so that only few are in memory
    at full size. `on_frame` hears after each frame how many there are, and of how many. Raises VideoError when none
    can be read, UsageError for a sampling that means none.
    """
    started = time.perf_counter()
    file = readable(path)
    with lent() as worker:
        info = probed(worker, file, probe_seconds(file) if timeout_seconds is None else timeout_seconds)
        probed_at = time.perf_counter()
        patience = DECODE_SECONDS + info.duration_seconds if timeout_seconds is None else timeout_seconds
        wish = Sampling(num_frames=sampling) if isinstance(sampling, int) else sampling
        task = Task(worker, info, wish, patience, shrink, on_frame)
        if accept is not None:
            accept(info, len(task.indices))
        shots, used, reason = task.run(decoder)
    decoded_at = time.perf_counter()
    kept = shots.filled.nonzero()[0]
    seconds = task.seconds[kept]
    return Frames(
        pixels=shots.pixels if len(kept) == len(shots.pixels) else shots.pixels[kept],
        seconds=seconds,
        indices=task.indices[kept],
        video=info,
        decoder=used,
        decoder_reason=reason,
        frames_missing=len(task.indices) - len(kept),
        sampling=wish,
        moved_seconds=task.moved_seconds,
        warnings=tuple(filter(None, (*shots.warnings(task.cut_off), *task.notes, spacing_warning(seconds)))),
        timings_ms={"probe": (probed_at - started) * 1000, "decode": (decoded_at - probed_at) * 1000},
    )


def probe_seconds(file: str) -> float:
    """How long a probe may take by default: some containers have to be read whole."""
    return PROBE_SECONDS + Path(file).stat().st_size / SLOWEST_DISK_BYTES_PER_SECOND


def probed(worker: Worker, file: str, timeout_seconds: float) -> VideoInfo:
    """Ask a worker for the VideoInfo; its failures become VideoError."""
    try:
        answer = worker.ask({"op": "probe", "path": file}, time.monotonic() + timeout_seconds)
    except WorkerError as error:
        raise user_error(file, [("av", error)], timeout_seconds) from None
    return VideoInfo(**answer)


def check_memory(needed_bytes: int, count: int) -> None:
    """Refuse frames that this machine has no memory for; the kernel would end the program without a word.

    Raises:
        VideoError: it has not.
    """
    import psutil  # type: ignore[import-untyped,unused-ignore]

    free = psutil.virtual_memory().available
    if needed_bytes > 0.9 * free:
        raise VideoError(
            f"{count} frames of this size take {needed_bytes / 1024**3:.1f} GiB of memory, "
            f"and {free / 1024**3:.1f} GiB are free.",
            "Use fewer --num-frames.",
        )


class Shots:
    """The frames that have arrived so far, in an array that is made when the first one does."""

    def __init__(self, info: VideoInfo, count: int, shrink: Shrink | None) -> None:
        import numpy as np

        self.filled = np.zeros(count, dtype=bool)
        self._shape = (info.height, info.width, 3)
        self._hdr, self._shrink = info.hdr, shrink
        self._deinterlaced = 0  # pictures

    def place(self, header: Message, memory: mmap.mmap, cell_bytes: int) -> None:
        """Copy one picture from shared memory into its slot, upright and as small as is wanted."""
        import numpy as np

        height, width, stride = header["height"], header["width"], header["stride"]
        rows = np.frombuffer(memory, np.uint8, height * stride, header["cell"] * cell_bytes).reshape(height, stride)
        picture = rows[:, : width * 3].reshape(height, width, 3)
        straight = picture[:, ::-1] if header["mirrored"] else picture
        upright = np.rot90(straight, -header["rotation"] // 90)  # numpy turns counter-clockwise
        if upright.shape != self._shape:
            raise WorkerError(f"gave a picture of shape {upright.shape} instead of {self._shape}")
        small = self._shrink(upright) if self._shrink else upright
        kept = to_ordinary(small, self._hdr) if self._hdr else small  # the smaller one is quicker
        if not self.filled.any():
            check_memory(len(self.filled) * kept.nbytes, len(self.filled))
            self.pixels = np.empty((len(self.filled), *kept.shape), dtype=np.uint8)
        self.pixels[header["slot"]] = kept
        self.filled[header["slot"]] = True
        self._deinterlaced += header["deinterlaced"]

    def warnings(self, cut_off: bool) -> Iterator[str]:
        """Sentences about the frames that did not arrive, and about those that were not used as they are."""
        missing = len(self.filled) - int(self.filled.sum())
        if missing:
            state = "cut off" if cut_off else "damaged"
            yield f"{missing} of {len(self.filled)} frames could not be read; the file seems {state}."
        if self._deinterlaced:
            yield f"{self._deinterlaced} of {len(self.filled)} frames are interlaced; each is shown as one picture."


class Task:
    """Reading the sampled frames of one probed clip."""

    def __init__(
        self,
        worker: Worker,
        info: VideoInfo,
        sampling: Sampling,
        timeout_seconds: float,
        shrink: Shrink | None,
        on_frame: OnFrame | None,
    ) -> None:
        import numpy as np

        self._on_frame = on_frame or (lambda *_: None)
        self._worker, self._info, self._timeout_seconds, self._shrink = worker, info, timeout_seconds, shrink
        request = {"op": "plan", "path": info.path, "sampling": asdict(sampling)}
        try:
            plan = worker.ask(request, time.monotonic() + timeout_seconds)
        except WorkerError as error:
            raise user_error(info.path, [("av", error)], timeout_seconds) from None
        self.indices: IntArray = np.array(plan["indices"], dtype=np.int64)
        self.seconds = np.array(plan["seconds"], dtype=np.float64)
        self.moved_seconds: float = plan["moved_seconds"]
        self.cut_off: bool = plan["cut_off"]
        self.notes: list[str | None] = [plan["ends_early"], *plan["notes"]]
        self._first: tuple[str, str] = plan["decoder"], plan["decoder_reason"]
        self._objection: str | None = plan["objection"]

    def run(self, decoder: Decoder) -> tuple[Shots, str, str]:
        """The frames, who decoded them and why; VideoError when no decoder brought any."""
        order, reason = self._choose(decoder)
        failures: list[tuple[str, WorkerError]] = []
        for name in order:
            try:
                shots = self._with_decord(trusting=decoder == "decord") if name == "decord" else self._with_first()
                return shots, name, "; ".join(f"{who} {error}" for who, error in failures) or reason
            except WorkerStoppedError as error:
                raise user_error(self._info.path, [(name, error)], self._timeout_seconds) from None
            except WorkerError as error:
                failures.append((name, error))
                self._worker.kill()  # it may hang with all cores in use
        raise user_error(self._info.path, failures, self._timeout_seconds)

    def _choose(self, decoder: Decoder) -> tuple[list[str], str]:
        """Decoders to try in order, and why the first one."""
        first, reason = self._first
        if decoder != "auto":
            return ["decord" if decoder == "decord" else first], "asked for"
        if self._objection or importlib.util.find_spec("decord") is None:
            return [first], reason
        return [first, "decord"], reason

    def _with_first(self) -> Shots:
        return self._collect(self._worker, "read")

    def _with_decord(self, *, trusting: bool) -> Shots:
        """Run decord in a process of its own. A complaint of its FFmpeg means that it may have lost count."""
        with Worker() as worker:
            shots = self._collect(worker, "decord")
            complaints = worker.complaints()
        if complaints and not trusting:
            raise WorkerError(f"complained about the file ({complaints[0]})")
        return shots

    def _collect(self, worker: Worker, op: str) -> Shots:
        deadline = time.monotonic() + self._timeout_seconds
        shots = Shots(self._info, len(self.indices), self._shrink)
        cells, cell_bytes = self._cells()
        worker.arena.grow(cells * cell_bytes)
        memory = worker.arena.view(cells * cell_bytes)
        worker.send(
            {
                "op": op,
                "path": self._info.path,
                "indices": self.indices.tolist(),
                "total": self._info.frame_count,
                "cells": cells,
                "cell_bytes": cell_bytes,
            }
        )
        while "done" not in (reply := worker.receive(deadline)):
            shots.place(reply, memory, cell_bytes)
            worker.free(reply["cell"])
            self._on_frame(int(shots.filled.sum()), len(shots.filled))
        if not shots.filled.any():
            raise WorkerError("could read no frame")
        return shots

    def _cells(self) -> tuple[int, int]:
        """How many pictures the shared memory holds at a time, and the bytes of one."""
        size = (self._info.width, self._info.height)
        one = size[0] * size[1] * 3 + ROW_PADDING_BYTES * max(size)
        cells = min(len(self.indices), max(FEWEST_CELLS, ARENA_BYTES // one))
        check_memory(cells * one, cells)
        return cells, one


def user_error(file: str, failures: list[tuple[str, WorkerError]], timeout_seconds: float) -> VideoError:
    """One sentence for what the workers that were tried ran into."""
    last = failures[-1][1]
    if isinstance(last, RefusedError):
        return VideoError(str(last), last.hint)
    who = " and ".join(name for name, _ in failures)
    if all(isinstance(error, WorkerTimeoutError) for _, error in failures):
        return VideoError(f"{shown(file)} could not be read within {timeout_seconds:g} s ({who}).", MORE_TIME)
    story = "; ".join(f"{name} {error}" for name, error in failures)
    return VideoError(
        f"{shown(file)} could not be read: {story}.",
        "The file may be damaged: try to play it, or copy it again.",
    )
