"""How long reading 32 uniform frames takes, side by side with decord's get_batch: python -m tests.bench_video.

Clips are H.264, 1280x720, 30 frames a second, a key frame every 250, of moving texture with noise. Both readers take
turns in one run; "worker started" has the start of a worker process in it, as the first clip of a program has. Every
frame is compared with the one that decoding the whole file brings. --cores 2,16 measures with so many of the machine's
cores, for all readers alike. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np

from holitom_cli.video import read, worker_link
from holitom_cli.video.plan import cores
from tests import clips

WIDTH, HEIGHT, RATE, GROUP = 1280, 720, 30, 250
FRAMES = 32
PART_FRAMES = 3 * GROUP  # that are encoded; longer clips repeat them
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def texture() -> Callable[[int], Pixels]:
    """Paints frames: a texture that moves sideways under fresh noise, and a square that moves across it."""
    random = np.random.default_rng(0)
    blocks = random.integers(60, 180, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    coarse = blocks.repeat(8, axis=0).repeat(8, axis=1)
    noise = [random.integers(0, 13, (HEIGHT, WIDTH, 1), dtype=np.uint8).repeat(3, axis=2) for _ in range(8)]
    twice = np.hstack([coarse, coarse])

    def paint(number: int) -> Pixels:
        left = -2 * number % WIDTH
        picture: Pixels = twice[:, left : left + WIDTH] + noise[number % 8]
        top, left = 3 * number % (HEIGHT - 200), 7 * number % (WIDTH - 200)
        picture[top : top + 200, left : left + 200] = (5 * number % 256, number % 256, 128)
        return picture

    return paint


def clip(folder: Path, seconds: int, preset: str) -> Path:
    """The clip of this length; made where it is not there yet."""
    path = folder / f"{seconds}s-{preset}.mp4"
    if path.exists():
        return path
    part, whole = folder / f"part-of-{path.name}", folder / f"new-{path.name}"
    times = max(1, seconds * RATE // PART_FRAMES)
    clips.make(
        part,
        seconds * RATE // times,
        options={"preset": preset, "x264-params": f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0"},
        group=GROUP,
        size=(WIDTH, HEIGHT),
        rate=RATE,
        paint=texture(),
        threads=0,
    )
    repeated(part, whole, times)
    part.unlink()
    return whole.rename(path)


def repeated(part: Path, whole: Path, times: int) -> None:
    """The same packets so many times over: decoding costs what a clip of that length costs, encoding a part of it."""
    with av.open(str(whole), "w") as target:
        for turn in range(times):
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                copy = target.streams.video[0] if turn else target.add_stream_from_template(stream)
                shift = int(turn * stream.frames / RATE / (stream.time_base or 1))
                for packet in source.demux(stream):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        target.mux(packet)


def from_decord(path: Path) -> Pixels:
    import decord

    reader = decord.VideoReader(str(path))
    pixels: Pixels = reader.get_batch(np.linspace(0, len(reader) - 1, FRAMES, dtype=int)).asnumpy()
    return pixels


def from_everything(path: Path) -> Pixels:
    """The same frames from decoding the whole file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        wanted = set(np.linspace(0, stream.frames - 1, FRAMES, dtype=int).tolist())
        return np.stack(
            [
                frame.to_ndarray(format="rgb24")
                for place, frame in enumerate(container.decode(video=0))
                if place in wanted
            ]
        )


def from_us(path: Path) -> Pixels:
    return read(path, FRAMES).pixels


def seconds_of(function: Callable[[Path], Pixels], path: Path, truth: Pixels) -> float:
    os.utime(path)  # a worker takes it for another file, and knows nothing of it
    began = time.perf_counter()
    pixels = function(path)
    taken = time.perf_counter() - began
    if not np.array_equal(pixels, truth):
        raise SystemExit(f"{function.__name__} differs from full decoding in {path.name}")
    return taken


def measure(path: Path, truth: Pixels, repeats: int) -> dict[str, float]:
    """Median seconds of each reader; they take turns, so that what else runs here hits all alike."""
    readers = {"worker started": from_us, "worker there": from_us}
    if find_spec("decord"):
        readers["decord"] = from_decord
    taken: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats):
        for name, function in readers.items():
            if name == "worker started":
                worker_link.close_idle()  # as at the first clip of a program
            taken[name].append(seconds_of(function, path, truth))
    return {name: statistics.median(times) for name, times in taken.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the clips here (default: a temporary folder)")
    parser.add_argument("--lengths", default="300,20", help="seconds of each clip (default: %(default)s)")
    parser.add_argument("--preset", default="veryfast", help="of x264 (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts (default: %(default)s)")
    parser.add_argument("--cores", help="how many to use, one number or several (default: all)")
    options = parser.parse_args(arguments)
    numbers = [int(number) for number in options.cores.split(",")] if options.cores else [cores()]
    print(f"Seconds for {FRAMES} uniform frames of {WIDTH}x{HEIGHT} H.264, a key frame every {GROUP}")
    print(f"{cores()} cores ({platform.machine()}), av {av.__version__}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        paths = {int(length): clip(folder, int(length), options.preset) for length in options.lengths.split(",")}
        truths = {length: from_everything(path) for length, path in paths.items()}
        results = [
            {"cores": number, "clip_s": length, "seconds": measure(path, truths[length], options.repeats)}
            for number in on_cores(numbers)
            for length, path in paths.items()
        ]
    show(results)
    print("Every frame is the one that full decoding brings.")
    print(json.dumps({"frames": FRAMES, "preset": options.preset, "results": results}))


def on_cores(numbers: Sequence[int]) -> Iterator[int]:
    """Each of the numbers, while this process and what it starts may use so many cores."""
    if numbers == [cores()]:  # nothing to restrict, which not every system can
        yield from numbers
        return
    allowed = sorted(os.sched_getaffinity(0))
    for number in numbers:
        os.sched_setaffinity(0, allowed[:number])
        worker_link.close_idle()
        yield min(number, len(allowed))
    os.sched_setaffinity(0, allowed)


def show(results: Sequence[Mapping[str, Any]]) -> None:
    for result in results:
        times = result["seconds"]
        for name, taken in times.items():
            ratio = f"{times['decord'] / taken:5.2f} times as fast as decord" if "decord" in times else ""
            print(f"  {result['cores']:3} cores  {result['clip_s']:5} s clip  {name:15} {taken:7.3f} s  {ratio}")


if __name__ == "__main__":
    main()
