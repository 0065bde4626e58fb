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


def moved(parts: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Arrays to a device at once; each starts at a multiple of 16 bytes, as kernels like it."""
    parts, places, total = [np.ascontiguousarray(part) for part in parts], [], 0
    for part in parts:
        places.append(total)
        total += -(-part.nbytes // 16) * 16
    together = np.empty(total, np.uint8)
    for place, part in zip(places, parts, strict=True):
        together[place : place + part.nbytes] = part.reshape(-1).view(np.uint8)
    there = torch.from_numpy(together).to(device)
    as_kind = {kind: there.view(_KINDS[kind]) for kind in {part.dtype.char for part in parts}}
    return [
        as_kind[part.dtype.char].as_strided(  # steps of a dimension of one entry may be negative
            part.shape, [abs(step) // part.itemsize for step in part.strides], place // part.itemsize
        )
        for place, part in zip(places, parts, strict=True)
    ]


_KINDS = {np.dtype(name).char: kind for name, kind in (("?", torch.bool), ("f4", torch.float32), ("i8", torch.int64))}


def highest(scores: NDArray[np.floating[Any]], allowed: BoolArray, count: IntArray) -> IntArray:
    """Flat indices, ascending, of the highest scores allowed in each row, so many; equal ones go to the lower column.

    What is no number is as low as -inf.

    Args:
        scores: (R, P) float32.
        allowed: (R, P).
        count: (R,), at most as many as are allowed.
    """
    columns = scores.shape[1]
    masked = np.where(allowed, np.fmax(scores, _LEAST), _NEVER)
    at = np.minimum(columns - count, columns - 1)
    least = np.sort(masked, 1)[np.arange(len(at)), at][:, None]
    found = (masked >= least) & (count > 0)[:, None]
    if np.count_nonzero(found) != count.sum():  # several equal the last one, or are no numbers
        order = np.argsort(-masked, 1, kind="stable")
        np.put_along_axis(found, order, np.arange(columns) < count[:, None], 1)
    return np.flatnonzero(found)


_NEVER, _LEAST = np.float32(-np.inf), np.float32(-1e38)  # whatever is no number is least among those allowed
