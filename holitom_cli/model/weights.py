"""Weights for a network that has none: from files straight to the device, in several threads."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holitom_cli.model import quantise
from holitom_cli.model.layers import TOGETHER
from holitom_cli.model.quantise import Packed, Quantize

_THREADS = min(8, os.cpu_count() or 1)
_PINNED_BYTES = 2**22  # of each half of a thread's pinned memory


def fill(network: nn.Module, make: Callable[[str, Tensor], Tensor | Packed]) -> None:
    """Replace every parameter, and modules whose weights come packed; what two modules share stays shared."""
    held = dict(network.named_parameters())  # as long as they are told apart by their ids
    coming = {id(old): make(name, old) for name, old in held.items()}
    quantise.install(network, {at: new for at, new in coming.items() if isinstance(new, Packed)})
    made = {at: nn.Parameter(new, requires_grad=False) for at, new in coming.items() if isinstance(new, Tensor)}
    for module in network.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            setattr(module, name, made.get(id(old), old))


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of safetensors files, in the names of a network; no tensor is read.

    Raises:
        SafetensorError: a file is damaged.
    """
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes |= {network_name(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no dictionary
    return shapes


@contextmanager
def reading(
    files: Iterable[Path], device: torch.device, dtype: torch.dtype, quantize: Quantize | None = None
) -> Iterator[dict[str, Future[Tensor | Packed]]]:
    """Read all tensors of safetensors files to a device while the caller does something else.

    Gives a tensor to come for each name, in the names of a network. Projections of one input lie behind one another in
    one tensor, where `layers` wants them. What is quantised is so piece by piece: no matrix is there as it is stored.
    What is not read yet when the caller ends, or fails, is not read at all.

    Raises:
        SafetensorError: a file is damaged.
    """
    from safetensors import safe_open

    pool, lifts = ThreadPoolExecutor(_THREADS), _Lifts(device)
    try:
        opened: list[Any] = [safe_open(path, framework="pt") for path in files]
        stored = {network_name(name): (file, name) for file in opened for name in file.keys()}  # noqa: SIM118  # no dictionary
        shapes = {name: tuple(file.get_slice(at).get_shape()) for name, (file, at) in stored.items()}
        packed = packed_places(shapes, device, quantize)
        plain = {name: shape for name, shape in shapes.items() if name not in packed}
        joined = _side_by_side(plain, lambda _, shape: torch.empty(shape, dtype=dtype, device=device))
        places: dict[str, Tensor | Packed] = {**joined, **packed}
        yield {name: pool.submit(_read, *at, lifts, dtype, places.get(name)) for name, at in stored.items()}
    finally:
        pool.shutdown(cancel_futures=True)


class _Lifts(threading.local):
    """How each thread brings what files hold to a device.

    A GPU fetches from pinned memory by itself while a processor copies the next part there: several times as fast as
    from a file's own pages, which the driver copies part by part, waiting for each.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type != "cuda":
            return
        with torch.cuda.device(device):  # else the first GPU may take part in it
            self._stream = torch.cuda.Stream()
            self._halves = [torch.empty(_PINNED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._free = [torch.cuda.Event() for _ in self._halves]

    def bring(self, stored: Tensor, dtype: torch.dtype, place: Tensor | None = None) -> Tensor:
        """A tensor on the CPU as one on the device in a number format, in memory that is there already or its own."""
        if self.device.type == "cuda":
            there = torch.empty(stored.shape, dtype=dtype, device=self.device) if place is None else place
            self._carry(stored, there.view(-1))
            return there
        brought = stored.to(self.device).to(dtype)
        return brought if place is None else place.copy_(brought)

    def _carry(self, stored: Tensor, there: Tensor) -> None:
        """Fill flat memory on a GPU, and wait until it is."""
        source = stored.reshape(-1).view(torch.uint8).numpy()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # whose work the memory may have been for
        with torch.cuda.stream(self._stream):
            for number, start in enumerate(range(0, len(source), _PINNED_BYTES)):
                half, free = self._halves[number % 2], self._free[number % 2]
                part, first = source[start : start + _PINNED_BYTES], start // stored.itemsize
                free.synchronize()
                half.numpy()[: len(part)] = part
                values = half[: len(part)].to(self.device, non_blocking=True).view(stored.dtype)
                there[first : first + len(values)].copy_(values)  # converted on the device, which is faster at it
                free.record(self._stream)
        self._stream.synchronize()


def _read(file: Any, name: str, lifts: _Lifts, dtype: torch.dtype, place: Tensor | Packed | None) -> Tensor | Packed:
    """One tensor."""
    stored: Tensor = file.get_tensor(name)  # the file's own pages
    if not isinstance(place, Packed):
        return lifts.bring(stored, dtype, place)
    for start, stop in quantise.pieces(place.shape, quantise.STORED_AT_ONCE):
        quantise.store(place.rows(start, stop), lifts.bring(stored[start:stop], stored.dtype))
    return place


def _side_by_side(shapes: Mapping[str, tuple[int, ...]], make: Callable[[str, tuple[int, ...]], Any]) -> dict[str, Any]:
    """Memory for tensors that are to lie behind one another, by name; `make` gets a name and the shape of all."""
    places: dict[str, Any] = {}
    for name in shapes:
        for group in TOGETHER:
            names = [name.replace(f".{group[0]}.", f".{member}.") for member in group]
            if f".{group[0]}." not in name or len({shapes.get(other, ())[1:] for other in names}) != 1:
                continue
            if all(other in shapes for other in names):
                rows = [shapes[other][0] for other in names]
                whole = make(name, (sum(rows), *shapes[name][1:]))
                places |= zip(names, whole.split(rows), strict=True)
    return places


def packed_places(
    shapes: Mapping[str, tuple[int, ...]], device: torch.device, quantize: Quantize | None
) -> dict[str, Packed]:
    """Memory for what is quantised, by name; projections of one input lie behind one another."""
    bits = {name: found for name, shape in shapes.items() if (found := quantise.bits_of(name, shape, quantize))}
    chosen = {name: shapes[name] for name in bits}
    places = _side_by_side(chosen, lambda name, shape: quantise.empty(shape, bits[name], device))
    return {name: places.get(name) or quantise.empty(shape, bits[name], device) for name, shape in chosen.items()}


def weight_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, quantize: Quantize | None) -> int:
    """Bytes that parameters of these names and shapes take."""

    def one(name: str, shape: tuple[int, ...]) -> int:
        bits = quantise.bits_of(name, shape, quantize)
        return quantise.packed_bytes(shape, bits) if bits else math.prod(shape) * dtype.itemsize

    return sum(one(name, shape) for name, shape in shapes.items())


def network_name(stored: str) -> str:
    """What the network of transformers 5 calls a tensor that a checkpoint calls so.

    Published checkpoints have the names of early transformers 4 releases, others those of later ones.
    """
    if stored in ("lm_head.weight", "language_model.lm_head.weight"):
        return "lm_head.weight"
    name = stored.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.", 1)
    return "model." + name.replace("language_model.model.", "language_model.", 1)


def unfit(network: nn.Module, found: Mapping[str, Tensor | Packed]) -> tuple[list[str], list[tuple[str, Any, Any]]]:
    """Names of parameters that are not among the tensors found, and (name, stored, wanted) of those of other shapes."""
    wanted = dict(network.named_parameters())  # what is shared, once
    missing = sorted(set(wanted) - set(found))
    other = [
        (name, tuple(found[name].shape), tuple(parameter.shape))
        for name, parameter in wanted.items()
        if name in found and found[name].shape != parameter.shape
    ]
    return missing, sorted(other)
