"""The language model's matrices in 8 or 4 bits, for cards that do not hold them in 16.

Only weights are quantised. What is multiplied with them stays as it is, and so does the vision tower. Embeddings and
the output matrix, 2.0 of the 7B checkpoint's 15.0 GiB, are kept in 8 bits either way: they decide on words, and are
read a row at a time or once a token.

torchao is not used: its import alone takes three seconds of every start; its 8-bit weights are turned back into 16 bits
for each token unless a compiler fuses that; its 4-bit ones are bfloat16 on NVIDIA cards from Ampere on or nothing, in
an order of memory that large prompts cannot be multiplied with; and neither can be the joined rows of several layers.
The schemes are the same: in 8 bits from -127 to 127 steps, one step for each row; in 4 bits from the lowest to the
highest weight of each 128 of a row, in 15 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holitom_cli.errors import UsageError

Quantize = Literal["int8", "int4"]

_PER_WORD = 8  # 4-bit numbers in an int32
_GROUP_WORDS = 16  # neighbouring words of a row, 128 weights, that share a step and a lowest value
_FEW_ROWS, _SEVERAL_ROWS = 4, 64  # multiplied with the packed weights themselves; more pay for unpacking these first
_FEW_ROWS_CPU = 16
UNPACKED_AT_ONCE = 2**28  # weights on a GPU, half a GiB in 16 bits
_UNPACKED_ON_CPU = 2**20  # 4 MiB in float32: near the cores, and few threads to start
STORED_AT_ONCE = 2**22  # weights that are quantised, 16 MiB in float32


class Packed(NamedTuple):
    """A matrix (N, K) in few bits: what `nn.Linear` calls its weight."""

    values: Tensor  # (N, K) int8; or (N, W) int32 with W = K/8: the four bits at 4 p of word w are column p W + w
    steps: Tensor  # (N,) float32; or (N, groups of words, 2) bfloat16: a group's step and its lowest value

    @property
    def shape(self) -> torch.Size:
        """(N, K)."""
        return torch.Size((len(self.values), self.values.shape[1] * (_PER_WORD if self.bits == 4 else 1)))

    @property
    def bits(self) -> int:
        return 8 if self.values.dtype == torch.int8 else 4

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.steps.nbytes

    def rows(self, start: int, stop: int) -> Packed:
        """Some of the rows, in the same memory."""
        return Packed(self.values[start:stop], self.steps[start:stop])

    def split(self, rows: Sequence[int]) -> list[Packed]:
        """Parts of so many rows each, in the same memory."""
        return [Packed(*part) for part in zip(self.values.split(rows), self.steps.split(rows), strict=True)]


def check_quantize(text: str | None, *, spread: bool = False) -> Quantize | None:
    """A format by its name, where the model is not spread over several devices.

    Raises:
        UsageError: there is none of that name, or it is.
    """
    if text not in (None, "int8", "int4"):
        raise UsageError(f"--quantize {text!r} is not known.", "Use int8 or int4.")
    if text and spread:
        raise UsageError(
            "--quantize and --device-map cannot be used together.",
            "Leave --device-map out: quantised models are small.",
        )
    return text  # type: ignore[return-value]


def bits_of(name: str, shape: Sequence[int], quantize: Quantize | None) -> int | None:
    """In how many bits a parameter of a network is kept; None where it stays as it is."""
    if quantize is None or len(shape) != 2:
        return None
    if name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        return 8
    if not (name.startswith("model.language_model.layers.") and name.endswith("_proj.weight")):
        return None
    return 4 if quantize == "int4" and shape[1] % _PER_WORD == 0 else 8


def packed_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of a matrix (N, K)."""
    rows, columns = shape
    return rows * columns + 4 * rows if bits == 8 else 4 * rows * (columns // _PER_WORD + _groups(columns))


def empty(shape: Sequence[int], bits: int, device: torch.device) -> Packed:
    """Memory for a matrix (N, K)."""
    rows, columns = shape
    if bits == 8:
        return Packed(torch.empty((rows, columns), dtype=torch.int8, device=device), torch.empty(rows, device=device))
    words = torch.empty((rows, columns // _PER_WORD), dtype=torch.int32, device=device)
    return Packed(words, torch.empty((rows, _groups(columns), 2), dtype=torch.bfloat16, device=device))


def _groups(columns: int) -> int:
    """How many groups a row of 4-bit numbers has."""
    words = columns // _PER_WORD
    return words // math.gcd(words, _GROUP_WORDS)


def pieces(shape: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of a matrix (N, K), each with `most` weights or a single row."""
    step = max(1, most // shape[1])
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def store(place: Packed, weights: Tensor) -> None:
    """Quantise weights (N, K). Those that are not finite make their row or group so."""
    exact = weights.float()
    if place.bits == 8:
        steps = (exact.abs().amax(1) / 127).clamp_min_(torch.finfo(torch.float32).tiny)
        place.steps.copy_(steps)
        place.values.copy_((exact / steps[:, None]).round_())
        return
    groups = exact.unflatten(1, (_PER_WORD, place.steps.shape[1], -1))  # (N, 8, groups, words)
    low, high = groups.amin((1, 3)), groups.amax((1, 3))
    steps = ((high - low) / 15).clamp_min_(torch.finfo(torch.bfloat16).tiny)
    place.steps.copy_(torch.stack((steps, low), -1))
    steps, low = place.steps.float()[:, None, :, None].unbind(-1)  # as they are kept
    numbers = ((groups - low) / steps).round_().clamp_(0, 15).int()
    place.values.copy_((numbers.flatten(2) << _shifts(weights.device)).sum(1, dtype=torch.int32))


def _shifts(device: torch.device) -> Tensor:
    """Where the numbers of a word begin: (8, 1)."""
    return torch.arange(0, 4 * _PER_WORD, 4, dtype=torch.int32, device=device)[:, None]


def restore(packed: Packed, dtype: torch.dtype) -> Tensor:
    """The matrix (N, K) that the numbers stand for."""
    weights = torch.empty(packed.shape, dtype=dtype, device=packed.values.device)
    kernels = _kernels(packed.values.device.type)
    if kernels is not None:
        kernels.unpack(packed.values, packed.steps, weights)
    elif packed.bits == 8:
        torch.mul(packed.values, packed.steps[:, None], out=weights)
    else:
        for start, stop in pieces(packed.shape, STORED_AT_ONCE):
            weights[start:stop] = _unpacked(packed.rows(start, stop))
    return weights


def _unpacked(packed: Packed) -> Tensor:
    """The matrix (N, K) of 4-bit numbers as float32."""
    numbers = (packed.values[:, None] >> _shifts(packed.values.device)) & 15
    steps, low = packed.steps.float()[:, None, :, None].unbind(-1)
    groups = numbers.unflatten(2, (packed.steps.shape[1], -1))
    weights: Tensor = (groups * steps + low).flatten(1)
    return weights


def multiply(states: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """A linear layer: (..., K) -> (..., N)."""
    flat = states.reshape(-1, states.shape[-1])
    device = states.device.type
    kernels, rows = _kernels(device), len(flat)
    halves = flat.dtype in (torch.bfloat16, torch.float16)  # in float32 the CPU's own kernel is a slow one
    if device == "cpu" and packed.bits == 8 and halves and rows <= _FEW_ROWS_CPU:
        product = torch._weight_int8pack_mm(flat, packed.values, packed.steps.to(flat.dtype))
        product = product if bias is None else product + bias
    elif kernels is not None and rows <= _FEW_ROWS:
        product = kernels.few_rows(flat, *packed, bias)
    elif kernels is not None and rows <= _SEVERAL_ROWS and halves:  # tensor cores round float32
        product = kernels.several_rows(flat, *packed, bias)
    else:
        product = _after_unpacking(flat, packed, bias)
    return product.view(*states.shape[:-1], -1)


def _after_unpacking(states: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """(M, K) -> (M, N) with a part of the matrix at a time in the number format of the states."""
    most = _UNPACKED_ON_CPU if states.device.type == "cpu" else UNPACKED_AT_ONCE
    parts = [
        F.linear(states, restore(packed.rows(start, stop), states.dtype), None if bias is None else bias[start:stop])
        for start, stop in pieces(packed.shape, most)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class PackedLinear(nn.Module):
    """A linear layer of a packed matrix, in the place of the library's."""

    def __init__(self, packed: Packed, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.values, self.steps = packed  # parameters, which two modules may share
        self.bias = bias
        self.out_features, self.in_features = packed.shape

    @property
    def packed(self) -> Packed:
        return Packed(self.values, self.steps)

    def forward(self, states: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return multiply(states, self.packed, self.bias)


class PackedEmbedding(nn.Module):
    """Embeddings whose matrix is packed in 8 bits, in the place of the library's."""

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        super().__init__()
        self.values, self.steps = packed
        self.dtype = dtype

    @property
    def packed(self) -> Packed:
        return Packed(self.values, self.steps)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        return (self.values[ids] * self.steps[ids][..., None]).to(self.dtype)


def install(network: nn.Module, packed: Mapping[int, Packed]) -> None:
    """Replace the linear layers and embeddings whose weights have those ids."""
    held = {at: Packed(*(nn.Parameter(part, requires_grad=False) for part in new)) for at, new in packed.items()}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            old: Any = getattr(child, "weight", None)
            if old is None or id(old) not in held:
                continue
            new = held[id(old)]
            bias: Any = getattr(child, "bias", None)
            embeds = isinstance(child, nn.Embedding)
            setattr(parent, name, PackedEmbedding(new, old.dtype) if embeds else PackedLinear(new, bias))


def count_weights(network: nn.Module) -> int:
    """How many weights a network has, in however few bits; steps are none."""
    kept = (part for name, part in network.named_parameters() if not name.endswith(".steps"))
    return sum(part.numel() * (_PER_WORD if part.dtype == torch.int32 else 1) for part in kept)


def prepare(device: torch.device) -> None:
    """Compile what can be compiled before it is needed."""
    _kernels(device.type)


@cache
def _kernels(device: str) -> Any:
    """Kernels of our own for packed weights; None where there is no Triton, or no compiler that it needs."""
    if device != "cuda":
        return None
    try:
        from holitom_cli.model import packed_kernels

        packed_kernels.try_out()
    except Exception:  # whatever a missing or broken compiler raises, the slow way is right
        return None
    return packed_kernels
