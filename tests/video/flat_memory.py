"""Memory of the main process over many clips: python -m tests.video.flat_memory 500.

Clips of several codecs and sizes, one of them damaged, take turns; each is read, looked at and asked about, as `holitom
batch` does it, with a small random checkpoint. Memory is what the process has written to, after each round of clips and
without what its allocator keeps for later; what is mapped from files comes and goes as the system likes. Linux alone
tells it. The last line is JSON; the exit code is 1 where memory grows.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from holitom_cli import pipeline
from holitom_cli.errors import HolitomError
from holitom_cli.methods.full import Full
from holitom_cli.model.loading import Model, load_model
from holitom_cli.types import Sampling
from holitom_cli.video import worker_link
from tests import clips
from tests.make_random_checkpoint import RANDOM

MOST_BYTES_A_CLIP = 10_000  # 5 MB over 500 clips, where six frames of one clip are 0.4 to 17 MB
KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "large.mp4": {"size": (1280, 720)},
    "small.mkv": {"size": (96, 64)},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "interlaced.mp4": {"options": {"x264-params": "interlaced=1"}, "first_field": "top"},
    "damaged.mp4": {},
}


@dataclass(frozen=True)
class Growth:
    """Bytes of the process's own memory over so many clips."""

    clips: int
    begin_bytes: int
    end_bytes: int
    bytes_a_clip: float  # by the middle of all slopes between two rounds, so that one odd round counts for nothing

    @property
    def flat(self) -> bool:
        return self.bytes_a_clip < MOST_BYTES_A_CLIP


def make(folder: Path) -> list[Path]:
    """A clip of each kind."""
    paths = [clips.make(folder / name, 30, **how) for name, how in KINDS.items()]
    paths[-1].write_bytes(paths[0].read_bytes()[: paths[0].stat().st_size // 2])
    return paths


def answer(model: Model, path: Path) -> None:
    """From a file to an answer, or to the sentence that it gets."""
    try:
        frames = pipeline.read(model.checkpoint, model.device, path, Sampling(num_frames=6), [Full()])
        pipeline.ask(model, pipeline.watch(model, frames, method="full"), "What?", max_new_tokens=1)
    except HolitomError:
        return


def own_bytes() -> int:
    """Bytes of memory in use that belong to no file."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def grow(count: int, use: Callable[[Path], None], paths: Sequence[Path]) -> Growth:
    """Use so many clips, in rounds of all of them, and see what stays in memory from one round to the next."""
    rounds = max(4, count // len(paths))
    sizes = []
    for number in range(rounds + 2):
        for path in paths:
            use(path)
        if number >= 2:  # what is made once has been made
            sizes.append(own_bytes())
    slopes = [
        (later - earlier) / ((there - here) * len(paths))
        for here, earlier in enumerate(sizes)
        for there, later in enumerate(sizes[here + 1 :], here + 1)
    ]
    return Growth(rounds * len(paths), sizes[0], sizes[-1], statistics.median(slopes))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=int, nargs="?", default=500, help="how many (default: %(default)s)")
    count = parser.parse_args(arguments).clips
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(RANDOM, device="cpu")
        growth = grow(count, lambda path: answer(model, path), make(Path(folder)))
    worker_link.close_idle()
    print(f"{growth.clips} clips in {time.monotonic() - began:.0f} s: {growth.begin_bytes / 1e6:.1f} MB at first,")
    print(f"{growth.end_bytes / 1e6:.1f} MB in the end, {growth.bytes_a_clip / 1e3:+.2f} kB a clip")
    print("Memory is flat." if growth.flat else "Memory grows.")
    print(json.dumps({**asdict(growth), "flat": growth.flat}))
    sys.exit(not growth.flat)


if __name__ == "__main__":
    main()
