"""What became of every patch, from the account that each method keeps of its tokens: no method is known here."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from holitom_cli.types import Answer, ByteArray, IntArray, VisualTokens

    BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, without their whole part, never come close to an earlier one
_LIGHTNESS = (0.62, 0.5, 0.74)


class Fate(IntEnum):
    """What became of one patch."""

    DROPPED = 0
    FOLDED = 1  # its token went into another one inside the language model
    MERGED = 2  # it shares a token with other patches
    KEPT = 3


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """What became of the patches of all frames, (F, grid, grid) each, with the picture's rows first."""

    fate: ByteArray  # a Fate each
    token: IntArray  # the token that a merged patch shares with others, -1 for any other patch
    stands: BoolArray  # where a merged token has its place
    outline: IntArray  # borders are drawn between unlike numbers; -1 where there is nothing to outline

    def count(self, frame: int, fate: Fate) -> int:
        """How many patches of a frame have this fate."""
        return int((self.fate[frame] == fate).sum())


def kept(visual: VisualTokens) -> Overlay:
    """Which patches entered the language model by themselves, and which together."""
    import numpy as np

    source, size = _array(visual.source), _array(visual.size)
    share = np.append(size, 0)[source]  # a dropped patch has source -1
    fate = np.select([share > 1, share == 1], [Fate.MERGED, Fate.KEPT], Fate.DROPPED).astype(np.uint8)
    places = _array(visual.frame) * source.shape[1] + _array(visual.cell)
    stands = np.zeros(source.size, dtype=bool)
    stands[places[size > 1]] = True
    token = np.where(fate == Fate.MERGED, source, -1)
    return Overlay(*map(_squares, (fate, token, stands.reshape(source.shape), token)))


def looked_at(answer: Answer) -> Overlay | None:
    """Which patches this question kept inside the language model; None where nothing is reduced there."""
    import numpy as np

    if not answer.tokens.inside:
        return None
    source, ended = _array(answer.visual.source), _array(answer.inner_source)
    fate = np.select([ended < 0, ended != source], [Fate.DROPPED, Fate.FOLDED], Fate.KEPT).astype(np.uint8)
    nothing, outline = np.full_like(source, -1), np.where(fate == Fate.KEPT, 0, -1)
    return Overlay(*map(_squares, (fate, nothing, np.zeros(source.shape, dtype=bool), outline)))


def tokens_by_frame(visual: VisualTokens) -> list[int]:
    """How many tokens have their place in each frame; they add up to all that are kept."""
    import numpy as np

    counts: list[int] = np.bincount(_array(visual.frame), minlength=len(visual.source)).tolist()
    return counts


def colour(token: int) -> tuple[int, int, int]:
    """Red, green and blue of a merged token: the same in every frame, and far from those with numbers nearby."""
    parts = colorsys.hls_to_rgb(token * _GOLDEN % 1, _LIGHTNESS[token % 3], 0.85)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def borders(outline: IntArray) -> tuple[BoolArray, BoolArray]:
    """Where a frame's numbers (grid, grid) change: above rows (grid + 1, grid), left of columns (grid, grid + 1)."""
    import numpy as np

    padded = np.pad(outline, 1, constant_values=-1)
    return padded[1:, 1:-1] != padded[:-1, 1:-1], padded[1:-1, 1:] != padded[1:-1, :-1]


def runs(line: IntArray | BoolArray) -> Iterator[tuple[int, int, int]]:
    """Stretches of equal values as (start, stop, value)."""
    import numpy as np

    edges = [0, *(np.flatnonzero(line[1:] != line[:-1]) + 1).tolist(), len(line)]
    values = line.tolist()
    for start, stop in itertools.pairwise(edges):
        yield start, stop, values[start]


def _array(values: Any) -> IntArray:
    """A tensor on any device as an array."""
    import numpy as np

    return np.asarray(values.tolist(), dtype=np.int64).reshape(tuple(values.shape))


def _squares(patches: Any) -> Any:
    """(F, P) -> (F, grid, grid)."""
    frames, count = patches.shape
    grid = math.isqrt(count)
    return patches.reshape(frames, grid, grid)
