"""Which frames of a clip are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holitom_cli.types import FloatArray, IntArray

WIDE_GAP_SECONDS = 10.0


def uniform_indices(total: int, count: int) -> IntArray:
    """Frame numbers (min(count, total),) int64, evenly spread, both ends included and rounded down.

    Source: the uniform sampling of LLaVA-OneVision's evaluation, `np.linspace(0, total - 1, count, dtype=int)`.
    """
    import numpy as np

    return np.linspace(0, total - 1, min(count, total), dtype=int).astype(np.int64, copy=False)


def spacing_warning(seconds: FloatArray) -> str | None:
    """A sentence when two consecutive frames (F,) are so far apart that an event can fall between them."""
    import numpy as np

    widest = float(np.diff(seconds).max(initial=0.0))
    if widest <= WIDE_GAP_SECONDS:
        return None
    return f"Frames are {widest:.1f} s apart, so short events may be missed; raise --num-frames."
