"""A clip whose still and moving parts are known, and what was kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from holitom_cli.report.pictures import shrinker
from holitom_cli.types import Answer, Frames

FRAMES, SIDE, GRID, LAYERS = 8, 384, 14, 4
MOVING_CELLS = slice(4, 7)  # of the grid, both ways
MOVING_PIXELS = slice(112, 196)  # patches 8 to 13 of the tower, which those cells and no others are pooled from


@dataclass(frozen=True)
class Known:
    """Answers about the clip, and its frames as a report shows them."""

    clip: Path
    answers: list[Answer]
    baseline: list[Answer]
    pictures: Frames


def moving() -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """The cells (grid, grid) that change from frame to frame."""
    cells = np.zeros((GRID, GRID), dtype=bool)
    cells[MOVING_CELLS, MOVING_CELLS] = True
    return cells


def write_known_clip(path: Path) -> None:
    """A still ground with a square that is black and white by turns."""
    import av

    ground = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv444p"
        for number in range(FRAMES):
            picture = ground.repeat(16, 0).repeat(16, 1)
            picture[MOVING_PIXELS, MOVING_PIXELS] = 255 * (number % 2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Known:
    from holitom_cli import pipeline, video
    from holitom_cli.model.loading import load_model

    clip = tmp_path_factory.mktemp("known") / "known.mp4"
    write_known_clip(clip)
    model = load_model(tiny_checkpoint, device="cpu", dtype="float32")
    watched = pipeline.watch(model, clip, num_frames=FRAMES, inner_layer=2, retain_ratio=0.08)
    full = pipeline.watch(model, watched.frames, method="full")
    asked = ["What moves?", "What stands still?"]
    return Known(
        clip,
        [pipeline.ask(model, watched, question, max_new_tokens=4) for question in asked],
        [pipeline.ask(model, full, question, max_new_tokens=4) for question in asked],
        video.read(clip, FRAMES, shrink=shrinker(SIDE)),
    )
