"""What is decided on the host while a device waits, and taken there at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    BoolArray = NDArray[np.bool_]
    IntArray = NDArray[np.int64]


def moved(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors on the CPU to a device at once; each starts at a multiple of 16 bytes, as kernels like it."""
    ends = np.cumsum([-(-part.nbytes // 16) * 16 for part in parts]).tolist()
    places = [slice(start, start + part.nbytes) for start, part in zip([0, *ends], parts, strict=False)]
    together = np.empty(ends[-1], np.uint8)
    for place, part in zip(places, parts, strict=True):
        together[place] = part.numpy().reshape(-1).view(np.uint8)
    there = torch.from_numpy(together).to(device)
    return [there[place].view(part.dtype).view(part.shape) for place, part in zip(places, parts, strict=True)]


def highest(scores: NDArray[np.floating[Any]], allowed: BoolArray, count: IntArray) -> IntArray:
    """Flat indices, ascending, of the highest scores allowed in each row, so many; equal ones go to the lower column.

    Args:
        scores: (R, P) float32.
        allowed: (R, P).
        count: (R,), at most as many as are allowed.
    """
    columns = scores.shape[1]
    bits = (scores + np.float32(0)).view(np.int32)  # -0 and 0 are equal
    ordered = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)  # as integers, which sort faster, and stand apart:
    keys = np.where(allowed, ordered * columns + np.arange(columns)[::-1], np.iinfo(np.int64).min)
    least = np.take_along_axis(np.sort(keys, 1), (columns - count).clip(max=columns - 1)[:, None], 1)
    return np.flatnonzero((keys >= least) & (count > 0)[:, None])
