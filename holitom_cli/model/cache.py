"""Keys and values of every decoder layer, in buffers that never grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StaticCache:
    """Static key and value buffers; each layer has its own lengths, since a reduction shortens later layers.

    Decoder layers call `update` as they call a transformers cache. The prompt's keys are stored as a block;
    after that each call appends one token to every row, and attention sees the whole buffer behind `mask`.
    """

    def __init__(self, depth: int, room: int) -> None:
        """A cache for `depth` layers with space for `room` tokens after the prompt."""
        self.room = room
        self.keys: list[Tensor] = [torch.empty(0)] * depth  # each (B, Hkv, S, d)
        self.values: list[Tensor] = [torch.empty(0)] * depth
        self.lengths: list[Tensor] = [torch.empty(0)] * depth  # each (B,) int64; layers of equal length share one

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, s, d) and return those that the new queries attend to."""
        if not self.lengths[layer].numel():
            self._fill(key, value, layer)
            return key, value
        at = self.lengths[layer]
        rows = torch.arange(len(at), device=at.device)
        self.keys[layer][rows, :, at] = key[:, :, 0]
        self.values[layer][rows, :, at] = value[:, :, 0]
        return self.keys[layer], self.values[layer]

    def mask(self, layer: int, dtype: torch.dtype) -> Tensor:
        """What one appended token attends to, to be added to its scores: (B, 1, 1, S)."""
        at = self.lengths[layer]
        slots = torch.arange(self.keys[layer].shape[2], device=at.device)
        hidden = torch.zeros(len(at), len(slots), dtype=dtype, device=at.device)
        return hidden.masked_fill_(slots > at[:, None], -torch.inf)[:, None, None]

    def advance(self) -> None:
        """Count the token that every layer has just stored."""
        self._grow(1)

    def rewind(self, tokens: int) -> None:
        """Forget the last `tokens` appended tokens: what is stored behind the lengths is masked and overwritten."""
        self._grow(-tokens)

    def _grow(self, tokens: int) -> None:
        for length in {id(length): length for length in self.lengths}.values():
            length.add_(tokens)

    def _fill(self, key: Tensor, value: Tensor, layer: int) -> None:
        batch, heads, length, width = key.shape
        shape = (batch, heads, length + self.room, width)
        self.keys[layer] = key.new_zeros(shape)  # zeros: masked garbage could be NaN, and 0 * NaN is NaN
        self.values[layer] = value.new_zeros(shape)
        self.keys[layer][:, :, :length] = key
        self.values[layer][:, :, :length] = value
        shared = layer > 0 and self.keys[layer - 1].shape == shape and self.keys[layer - 1].device == key.device
        own = torch.full((batch,), length, device=key.device)
        self.lengths[layer] = self.lengths[layer - 1] if shared else own
