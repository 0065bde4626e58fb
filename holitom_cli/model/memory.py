"""What answering a question takes of a GPU's memory, and the settings with which a smaller one has enough."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from holitom_cli.errors import DeviceError
from holitom_cli.model.device import device_name
from holitom_cli.model.quantise import UNPACKED_AT_ONCE, Quantize
from holitom_cli.model.vision import CHUNK_FRAMES
from holitom_cli.model.weights import weight_bytes

if TYPE_CHECKING:
    from holitom_cli.types import ModelShape

Shapes = Mapping[str, tuple[int, ...]]  # of a checkpoint's tensors, in the names of a network

_SPARE_BYTES = 300 * 2**20  # what is suggested leaves so much for kernels, graphs and what fragments take
_NO_WAY = "Use a smaller checkpoint, --device-map auto, or --device cpu."


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of a model at a time."""

    frames: int
    tokens: Callable[[int], int]  # the most tokens of a prompt, from the number of frames
    new_tokens: int  # of an answer
    patches: int  # visual tokens of a frame, before compression


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a task takes on one device."""

    weights: int
    cache: int  # keys and values of one answer
    work: int  # the most that is there besides, in any stage

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work


def need(shape: ModelShape, shapes: Shapes, dtype: torch.dtype, quantize: Quantize | None, task: Task | None) -> Need:
    """Bytes of weights, cache and the largest stage; an upper bound, but for the libraries' own workspaces.

    Args:
        shape: the checkpoint's widths.
        shapes: its tensors'.
        dtype: the number format.
        quantize: how the language model's matrices are kept.
        task: what is asked; None counts the weights alone.
    """
    weights = weight_bytes(shapes, dtype, quantize)
    if task is None:
        return Need(weights, 0, 0)
    each, tokens = dtype.itemsize, task.tokens(task.frames)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * each * (tokens + task.new_tokens)
    seen = task.frames * task.patches * shape.hidden  # numbers of all visual tokens
    pixels = 4 * task.frames * shape.vision_patches * shape.patch_pixels
    inside = 12 * shape.vision_hidden + 2 * shape.vision_intermediate + 2 * shape.hidden  # of a patch, up to the pool
    vision = pixels + 2 * each * seen + each * min(task.frames, CHUNK_FRAMES) * shape.vision_patches * inside
    compress = pixels + (2 * each + 4) * seen  # cosines are taken in float32
    unpacked = min(UNPACKED_AT_ONCE, 2 * shape.intermediate * shape.hidden) if quantize else 0
    prefill = each * (seen + tokens * (4 * shape.intermediate + 2 * shape.hidden) + unpacked)
    # No key is there before the last visual token is.
    return Need(weights, cache, max(vision - cache, compress - cache, prefill))


def check(
    label: str,
    shape: ModelShape,
    shapes: Shapes,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize | None,
    task: Task | None,
) -> None:
    """Refuse what a GPU has no memory for, before a weight is read.

    Args:
        label: the checkpoint's name.
        device: the GPU that it is to run on.
        shape: as of `need`.
        shapes: as of `need`.
        dtype: as of `need`.
        quantize: as of `need`.
        task: as of `need`.

    Raises:
        DeviceError: it has too little; names settings with which it has enough.
    """
    free, wanted = free_bytes(device), need(shape, shapes, dtype, quantize, task)
    if free is None or wanted.total <= free:
        return
    what = f"Asking {label} about {_frames(task.frames)} takes" if task else f"The weights of {label} take"
    share = f" ({_gib(wanted.weights)} of it weights)" if task else ""
    raise DeviceError(
        f"{what} {_gib(wanted.total)}{share}, but {device_name(device)} has {_gib(free)} free.",
        suggestion(shape, shapes, dtype, quantize, task, free),
    )


def suggestion(
    shape: ModelShape, shapes: Shapes, dtype: torch.dtype, quantize: Quantize | None, task: Task | None, free: int
) -> str:
    """The first of some changes of settings with which so many free bytes are enough."""
    for kept_as, frames in _changes(quantize, task.frames if task else 1):
        wanted = need(shape, shapes, dtype, kept_as, replace(task, frames=frames) if task else None).total
        named = [f"--quantize {kept_as}"] if kept_as != quantize else []
        named += [f"--num-frames {frames}"] if task and frames != task.frames else []
        if named and wanted + _SPARE_BYTES <= free:
            return f"Use {' and '.join(named)}: that takes {_gib(wanted)}."
    return _NO_WAY


def _changes(quantize: Quantize | None, frames: int) -> Iterator[tuple[Quantize | None, int]]:
    """Fewer bits first: they cost less than frames that nobody looks at. Then half as many frames, and so on."""
    formats: list[Quantize | None] = [None, "int8", "int4"]
    formats = formats[formats.index(quantize) :]
    yield from ((kept_as, frames) for kept_as in formats)
    fewer = frames // 2
    while fewer:
        yield formats[-1], fewer
        fewer //= 2


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device, or as much as this process may still take of it; None where that is unknown."""
    if device.type == "cuda":
        gc.collect()  # a model that has just been given up
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        named: int | None = device.index
        index = torch.cuda.current_device() if named is None else named  # a limit is not told of one without
        allowed = torch.cuda.memory.get_per_process_memory_fraction(index) * total
        return min(free, math.floor(allowed) - torch.cuda.memory_reserved(device))
    if device.type == "cpu":
        import psutil  # type: ignore[import-untyped,unused-ignore]

        return int(psutil.virtual_memory().available)
    return None


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count != 1)}"
