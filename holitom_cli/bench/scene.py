"""Made-up frames for timing: scenes with cuts, of which parts stand still and parts move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holitom_cli.types import Frames

if TYPE_CHECKING:
    from holitom_cli.types import ByteArray

_SCENE_FRAMES = 8
_BLUR = 16  # pixels that have one colour in the still background, each way
_NOISE = 6  # levels, so that no frame is the one before it again


def made_up(count: int, side: int, seed: int = 0) -> Frames:
    """Frames as a decoder hands them over, at the tower's size.

    Args:
        count: how many.
        side: height and width in pixels.
        seed: of the scenes.
    """
    dice = np.random.default_rng(seed)
    scenes = -(-count // _SCENE_FRAMES)
    coarse = dice.integers(0, 220, (scenes, -(-side // _BLUR), -(-side // _BLUR), 3), dtype=np.uint8)
    pictures = [_picture(coarse[index // _SCENE_FRAMES], side, index, dice) for index in range(count)]
    return Frames(np.stack(pictures), np.arange(count, dtype=np.float64))


def _picture(coarse: ByteArray, side: int, index: int, dice: np.random.Generator) -> ByteArray:
    """A scene's still background, a square that moves over it, and noise: (side, side, 3)."""
    picture = coarse.repeat(_BLUR, 0).repeat(_BLUR, 1)[:side, :side]
    at = (index % _SCENE_FRAMES) * side // _SCENE_FRAMES
    picture[at : at + side // 4, at : at + side // 4] = coarse[0, 0]
    return picture + dice.integers(0, _NOISE, picture.shape, dtype=np.uint8)
