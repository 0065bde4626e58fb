"""The small world as files: real videos, and the questions about them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from holitom_cli.quality.draw import draw, to_frames
from holitom_cli.quality.questions import ask_about
from holitom_cli.quality.world import Clip, make_clip, test_seed

if TYPE_CHECKING:
    from holitom_cli.types import ByteArray

FILE_SIDE = 224  # pixels: twice the small model's, so that files are resized as real ones are
FRAMES_PER_SECOND = 16
_NOISE = 0.015  # of the sensor, a share of full scale; what training has
_CODEC = {"crf": "18", "preset": "veryfast", "bf": "0"}


def film(clip: Clip, side: int = FILE_SIDE) -> ByteArray:
    """A clip as a camera would have it: (F, side, side, 3) uint8, with noise that follows from the clip's seed."""
    frames = to_frames(draw([clip], side=side), _NOISE, clip.seed)[0]
    pixels: ByteArray = frames.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def write_clip(path: Path, clip: Clip) -> None:
    """Write a clip as an H.264 video of 2 seconds, 32 frames."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=_CODEC)
        stream.width = stream.height = FILE_SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # more threads cut a picture elsewhere: other bytes on other machines
        for picture in film(clip):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_set(directory: Path, numbers: Iterable[int], questions: int = 8) -> Path:
    """Write test clips and `questions.jsonl`: video, question, answer, choices and type on each line.

    Args:
        directory: is made if it is not there.
        numbers: of the test clips, see `world.test_seed`.
        questions: about each clip, at most, in wordings that training never sees.

    Returns:
        the questions' file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "questions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in numbers:
            clip = make_clip(test_seed(number))
            name = f"{number:06d}.mp4"
            write_clip(directory / name, clip)
            for one in ask_about(clip, questions, test=True):
                row = {"video": name, "question": one.text, "answer": one.answer}
                file.write(json.dumps(row | {"choices": one.choices, "type": one.kind}) + "\n")
    return path
