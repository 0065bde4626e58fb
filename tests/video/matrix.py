"""Every codec in every container in every shape of groups that PyAV can write: python -m tests.video.matrix.

Each clip has its frame numbers drawn in; 32 of 60 frames are asked for, of each decoder that may read the clip, and
read off the pixels. Prints a row for each codec and container, and exits with 1 where a frame is another one. Control:
decord by force on HEVC in open groups. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from holitom_cli.errors import VideoError
from holitom_cli.types import Sampling
from holitom_cli.video import client, read
from holitom_cli.video.av_reader import Clip
from tests import clips

COUNT, ASKED = 60, 32
CONTAINERS = ("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "flv", "mxf", "asf", "ogg", "nut", "3gp", "ivf", "gif")
GROUPS = {"every frame a key": 1, "groups of 12": 12, "one group": 250}


class Kind(NamedTuple):
    """How to encode, and whether groups have a length there."""

    how: dict[str, Any]
    grouped: bool = True


def x264(more: str = "") -> dict[str, Any]:
    return {"options": {"x264-params": f"bframes=3:scenecut=0{more}"}}


def x265(more: str) -> dict[str, Any]:
    return {"codec": "libx265", "options": {"x265-params": f"log-level=none:bframes=4:scenecut=0:keyint={{}}{more}"}}


FAST = {"cpu-used": "8", "deadline": "realtime"}
KINDS = {
    "H.264": Kind(x264()),
    "H.264 open": Kind(x264(":open-gop=1:keyint={}:min-keyint={}")),
    "H.264 10 bit": Kind({**x264(), "pix_fmt": "yuv420p10le"}),
    "HEVC closed": Kind(x265(":open-gop=0")),
    "HEVC open": Kind(x265(":open-gop=1")),
    "HEVC 10 bit": Kind({**x265(":open-gop=1"), "pix_fmt": "yuv420p10le"}),
    "VP8": Kind({"codec": "libvpx", "options": FAST}),
    "VP9": Kind({"codec": "libvpx-vp9", "options": FAST}),
    "VP9 alternate": Kind({"codec": "libvpx-vp9", "options": {"cpu-used": "5", "lag-in-frames": "16"}}),
    "AV1": Kind({"codec": "libsvtav1", "options": {"preset": "9", "crf": "20"}}),
    "MPEG-1": Kind({"codec": "mpeg1video"}),
    "MPEG-2": Kind({"codec": "mpeg2video", "options": {"bf": "2"}}),
    "MPEG-4": Kind({"codec": "mpeg4"}),
    "MPEG-4 B-frames": Kind({"codec": "mpeg4", "options": {"bf": "2"}}),
    "MJPEG": Kind({"codec": "mjpeg", "pix_fmt": "yuvj420p"}, grouped=False),
    "ProRes": Kind({"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, grouped=False),
    "GIF": Kind({"codec": "gif", "pix_fmt": "rgb8"}, grouped=False),
}


def written(folder: Path, only: str) -> Iterator[tuple[str, str, str, Path]]:
    """Codec, container, shape of groups and file of every clip that can be made."""
    for name, kind in ((name, kind) for name, kind in KINDS.items() if only in name):
        for ending in CONTAINERS:
            for shape, length in GROUPS.items() if kind.grouped else [("every frame a key", 1)]:
                options = kind.how.get("options", {})
                how = {**kind.how, "options": {key: value.replace("{}", str(length)) for key, value in options.items()}}
                path = folder / f"clip.{ending}"
                if can_be_written(path, length, how):
                    yield name, ending, shape, path


def can_be_written(path: Path, group: int, how: dict[str, Any]) -> bool:
    """Write the clip; False where the codec does not go into the container, or comes out of it as something else."""
    try:
        clips.make(path, COUNT, group=group, **how)
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0)) == COUNT
    except (av.FFmpegError, ValueError, IndexError):
        return False


def right(path: Path, decoder: client.Decoder) -> int:
    """How many of the frames asked for are there and what their number says."""
    wanted = np.linspace(0, COUNT - 1, ASKED, dtype=int).tolist()
    try:
        frames = read(path, ASKED, decoder=decoder)
    except VideoError as error:
        print(error.message)
        return 0
    assert frames.indices is not None
    found = dict(zip(frames.indices.tolist(), clips.numbers_in(frames.pixels), strict=True))
    return sum(found.get(number) == number for number in wanted)


def may_use_decord(path: Path) -> bool:
    return find_spec("decord") is not None and not Clip(str(path)).plan(Sampling(num_frames=ASKED))["objection"]


def check(folder: Path, only: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Read every clip of the kinds with this in their name; count them by decoder, name those with a wrong frame."""
    clips_read: Counter[str] = Counter()
    wrong: list[str] = []
    for name, ending, shape, path in written(folder, only):
        told = []
        for decoder in ("av", "decord") if may_use_decord(path) else ("av",):
            count = right(path, decoder)
            clips_read[decoder] += 1
            told.append(f"{decoder} {count} of {ASKED}")
            if count < ASKED:
                wrong.append(f"{name}, {ending}, {shape}: {told[-1]}")
        say(f"{name:16} {ending:5} {shape:18} {', '.join(told)}")
    return {"clips": dict(clips_read), "wrong": wrong}


def control(folder: Path) -> int | None:
    """How many frames decord gets right where it is never asked: HEVC in open groups."""
    if find_spec("decord") is None:
        return None
    options = {"x265-params": "log-level=none:bframes=4:keyint=12:min-keyint=12:open-gop=1"}
    return right(clips.make(folder / "control.mp4", COUNT, codec="libx265", options=options), "decord")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    only = parser.parse_args(arguments).only
    with tempfile.TemporaryDirectory() as folder:
        found = check(Path(folder), only, print)
        found["control"] = control(Path(folder))
    print(f"Control: decord by force on HEVC in open groups, {found['control']} of {ASKED}")
    print("\n".join(found["wrong"]) or "Every frame is the right one.")
    print(json.dumps(found))
    sys.exit(bool(found["wrong"]) or found["control"] == ASKED)


if __name__ == "__main__":
    main()
