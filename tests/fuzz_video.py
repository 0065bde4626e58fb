"""Damaged video files, each an answer or a sentence: python -m tests.fuzz_video --files 1000.

Small clips of several codecs and containers are cut off, overwritten, spliced and made to lie about themselves; each
goes the way of `holitom ask --json`, from the file to a JSON document. It is a failure when one takes longer than it
may, raises what is not an error for users, or leaves a process, a thread, a file descriptor or a file behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from holitom_cli import pipeline
from holitom_cli.errors import HolitomError
from holitom_cli.methods.full import Full
from holitom_cli.model.loading import Model, load_model
from holitom_cli.report.record import document, error_document
from holitom_cli.types import Sampling
from holitom_cli.video import worker_link
from tests import clips
from tests.make_random_checkpoint import RANDOM

DECODE_SECONDS = 10.0  # a stage may take
LIMIT_SECONDS = 4 * DECODE_SECONDS + 5  # probe, plan and two decoders
SEEDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"group": 12},
    "faststart.mp4": {"container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {},
    "h264.ts": {},
    "h264.flv": {},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "picture.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "picture.webp": {},
    "interlaced.ts": {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme"}, "first_field": "top"},
    "interlaced.mov": {"options": {"x264-params": "interlaced=1"}, "first_field": "top"},
}
Damage = Callable[[bytearray, random.Random, bytes], bytearray]


def cut(content: bytearray, dice: random.Random, _: bytes) -> bytearray:
    return content[: dice.randrange(len(content))]


def flip(content: bytearray, dice: random.Random, _: bytes) -> bytearray:
    for _place in range(dice.randint(1, 50)):
        content[dice.randrange(len(content))] = dice.randrange(256)
    return content


def lie(content: bytearray, dice: random.Random, _: bytes) -> bytearray:
    """Another number in the header: a length, a count, a width, a time."""
    head = 2000 if dice.random() < 0.5 else len(content)
    for _place in range(dice.randint(1, 4)):
        at = dice.randrange(max(1, min(head, len(content)) - 4))
        content[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), dice.randbytes(4)])
    return content


def lie_in_the_index(content: bytearray, dice: random.Random, other: bytes) -> bytearray:
    """The same in one of the tables of an MP4, or in the size of its picture."""
    names = [b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"elst", b"tkhd", b"mdhd", b"avc1", b"avcC", b"hvcC"]
    places = [place for name in names if (place := content.find(name)) >= 0]
    if not places:
        return lie(content, dice, other)
    at = dice.choice(places) + 4 + dice.randrange(80)
    content[at : at + 2] = dice.choice([b"\xff\xff", b"\x7f\xff", bytes(2), dice.randbytes(2)])
    return content


def blank(content: bytearray, dice: random.Random, _: bytes) -> bytearray:
    start = dice.randrange(len(content))
    stop = min(len(content), start + dice.randint(1, 4000))
    content[start:stop] = bytes(stop - start)
    return content


def splice(content: bytearray, dice: random.Random, other: bytes) -> bytearray:
    return content[: dice.randrange(len(content))] + other[dice.randrange(len(other)) :]


def lose(content: bytearray, dice: random.Random, _: bytes) -> bytearray:
    start = dice.randrange(len(content))
    del content[start : start + dice.randint(1, 2000)]
    return content


DAMAGES: list[Damage] = [cut, flip, lie, lie_in_the_index, blank, splice, lose]


def damaged(seeds: Sequence[Path], count: int, seed: int, folder: Path) -> Iterator[Path]:
    """Files one after another, each gone when the next one comes."""
    dice = random.Random(seed)
    for number in range(count):
        source = dice.choice(seeds)
        content = bytearray(source.read_bytes())
        for _ in range(dice.choice([1, 1, 2, 3])):
            if content:
                content = dice.choice(DAMAGES)(content, dice, dice.choice(seeds).read_bytes())
        path = folder / f"{number}{source.suffix if dice.random() < 0.8 else '.mp4'}"
        path.write_bytes(content)
        yield path
        path.unlink()


def outcome(model: Model, path: Path) -> dict[str, Any]:
    """The document that `holitom ask --json` would print; raises what is not an error for users."""
    try:
        frames = pipeline.read(
            model.checkpoint, model.device, path, Sampling(num_frames=6), [Full()], timeout_seconds=DECODE_SECONDS
        )
        answer = pipeline.ask(model, pipeline.watch(model, frames, method="full"), "What?", max_new_tokens=1)
        whole = document([answer])
    except HolitomError as error:
        whole = error_document(error)
    json.dumps(whole, allow_nan=False)
    return whole


def traces() -> dict[str, Any]:
    """What must not grow: children, threads, descriptors and temporary files."""
    return {
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "files": sorted(path.name for path in Path(tempfile.gettempdir()).glob("*holitom*")),
    }


def undamaged(path: Path, how: dict[str, Any]) -> Path:
    """A whole file to damage."""
    if path.suffix != ".webp":
        return clips.make(path, 30, **how)
    first, *rest = [Image.fromarray(clips.draw(number)) for number in range(30)]
    first.save(path, save_all=True, append_images=rest, duration=40)
    return path


def fuzz(count: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """Try that many files; raises AssertionError for the first that fails. Returns how often each thing happened."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        seeds = [undamaged(folder / f"seed-{name}", how) for name, how in SEEDS.items()]
        model = load_model(RANDOM, device="cpu")
        tally: Counter[str] = Counter()
        outcome(model, seeds[0])
        before = traces()
        for path in damaged(seeds, count, seed, folder):
            began = time.monotonic()
            whole = outcome(model, path)
            taken = time.monotonic() - began
            assert taken < LIMIT_SECONDS, f"{path.name} took {taken:.0f} s (seed {seed})"
            message = whole.get("error", {}).get("message", "")
            assert "\n" not in message, message
            tally["refused" if message else "answered"] += 1
            if not message and whole["sampling"]["warnings"]:
                tally["answered with a warning"] += 1
            if taken > DECODE_SECONDS:
                tally["killed for its time"] += 1
                say(f"{path.name}: {taken:.1f} s: {message}")
        worker_link.close_idle()
        outcome(model, seeds[0])
        after = traces()
        assert after == before, f"left behind: {before} became {after}"
    worker_link.close_idle()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a model is no quicker with more, and far slower where cores are shared
    began = time.monotonic()
    tally = fuzz(options.files, options.seed, print)
    print(f"{options.files} files, {time.monotonic() - began:.0f} s: {dict(tally)}; nothing hung, crashed or was left")


if __name__ == "__main__":
    main()
