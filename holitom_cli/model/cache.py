"""Keys and values of every decoder layer, in buffers that never grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StaticCache:
    """Static key and value buffers; each layer has its own lengths, since a reduction shortens later layers.

    Decoder layers call `update` as they call a transformers cache. The prompt's keys are stored as a block;
    after that each call appends tokens to every row, and attention sees the whole buffer behind `mask`.
    """

    def __init__(self, depth: int, room: int) -> None:
        """A cache for `depth` layers with space for `room` tokens after the prompt."""
        self.room = room
        self.active: Tensor | int = 1  # tokens that a step adds to each row: 1, or (B,) with 0 where nobody is
        self.keys: list[Tensor] = [torch.empty(0)] * depth  # each (B, Hkv, S, d)
        self.values: list[Tensor] = [torch.empty(0)] * depth
        self.lengths: list[Tensor] = [torch.empty(0)] * depth  # each (B,) int64; layers of equal length share one
        self.starts: list[Tensor] = [torch.empty(0)] * depth  # 0 in the places of lengths: where a prompt begins

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, s, d) and return those that the new queries attend to."""
        if not self.lengths[layer].numel():
            self._fill(key, value, layer)
            return key, value
        at = self.lengths[layer]
        rows = torch.arange(len(at), device=at.device)[:, None]
        slots = at[:, None] + torch.arange(key.shape[2], device=at.device)
        self.keys[layer][rows, :, slots] = key.transpose(1, 2)
        self.values[layer][rows, :, slots] = value.transpose(1, 2)
        return self.keys[layer], self.values[layer]

    def mask(self, layer: int, dtype: torch.dtype, tokens: int = 1) -> Tensor:
        """What so many appended tokens attend to, to be added to their scores: (B, 1, tokens, S)."""
        at = self.lengths[layer][:, None] + torch.arange(tokens, device=self.lengths[layer].device)
        slots = torch.arange(self.keys[layer].shape[2], device=at.device)
        hidden = torch.zeros(*at.shape, len(slots), dtype=dtype, device=at.device)
        return hidden.masked_fill_(slots > at[..., None], -torch.inf)[:, None]

    def advance(self) -> None:
        """Count the token that every layer has just stored."""
        self._grow(1)

    def rewind(self, tokens: int) -> None:
        """Forget the last `tokens` appended tokens: what is stored behind the lengths is masked and overwritten."""
        self._grow(-tokens)

    def keep(self, layer: int, columns: Tensor) -> None:
        """Keep these tokens of a layer's prompt, (m,) int64 ascending, and forget the others."""
        for buffers in (self.keys, self.values):
            kept = buffers[layer].index_select(2, columns.to(buffers[layer].device))
            buffers[layer] = torch.cat((kept, kept.new_zeros(*kept.shape[:2], self.room, kept.shape[3])), 2)
        self.lengths[layer] = torch.full_like(self.lengths[layer], len(columns))

    def _grow(self, tokens: int) -> None:
        for length in {id(length): length for length in self.lengths}.values():
            length.add_(tokens)

    def _fill(self, key: Tensor, value: Tensor, layer: int) -> None:
        self.reserve(key, layer, key.shape)
        self.keys[layer][:, :, : key.shape[2]] = key
        self.values[layer][:, :, : key.shape[2]] = value

    def reserve(self, like: Tensor, layer: int, prompt: Sequence[int]) -> None:
        """Make buffers for a prompt's keys and values, of which whoever calls fills in (B, Hkv, S, d)."""
        batch, heads, length, width = prompt
        shape = (batch, heads, length + self.room, width)
        both = like.new_empty(2, *shape)
        both[:, :, :, length:] = 0  # masked garbage could be NaN, and 0 * NaN is NaN
        self.keys[layer], self.values[layer] = both.unbind()
        shared = layer > 0 and self.keys[layer - 1].shape == shape and self.keys[layer - 1].device == like.device
        if shared:
            self.lengths[layer], self.starts[layer] = self.lengths[layer - 1], self.starts[layer - 1]
        else:
            self.lengths[layer] = torch.full((batch,), length, device=like.device)
            self.starts[layer] = torch.zeros_like(self.lengths[layer])


class RowCache(StaticCache):
    """A cache whose rows are answers that come and go, each with lengths of its own.

    A row enters with the keys and values of its prompt, and its place is free again when it leaves. Free rows compute
    too, on nothing and for nobody. Buffers are replaced where a longer prompt enters; `version` counts that, for
    whoever has captured their addresses.
    """

    _BLOCK = 256  # buffers grow by as many tokens, so that few prompts make them grow

    def __init__(self, depth: int, rows: int) -> None:
        """A cache for `depth` layers with room for `rows` answers at a time."""
        super().__init__(depth, 0)
        self.version = 0
        self.active: Tensor = torch.zeros(rows, dtype=torch.int64)
        self._first = {0}  # layers whose lengths are, or have been, others than those of the layer before

    @torch.inference_mode()
    def enter(self, row: int, prompt: StaticCache) -> None:
        """Copy the one row of a prompt's cache, which nothing has been appended to, into a free row."""
        lengths = [keys.shape[2] - prompt.room for keys in prompt.keys]
        self._make_room(prompt)
        self._tell_apart(lengths, prompt)
        for layer, length in enumerate(lengths):
            for buffers, filled in ((self.keys, prompt.keys), (self.values, prompt.values)):
                buffers[layer][row, :, :length] = filled[layer][0, :, :length]
                buffers[layer][row, :, length:] = 0  # an answer before this one may have left a NaN
            self.lengths[layer][row] = length
        self.active[row] = 1

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Free a row."""
        for length in self.lengths:
            length[row] = 0
        self.active[row] = 0

    def _grow(self, tokens: int) -> None:
        steps = self.active * tokens
        for length in {id(length): length for length in self.lengths}.values():
            length.add_(steps.to(length.device))

    def _make_room(self, prompt: StaticCache) -> None:
        """Replace the buffers that this prompt and its answer do not fit in."""
        for layer, keys in enumerate(prompt.keys):
            held = self.keys[layer].shape[2] if self.keys[layer].numel() else 0
            if keys.shape[2] <= held:
                continue
            slots = -(-keys.shape[2] // self._BLOCK) * self._BLOCK
            shape = (len(self.active), keys.shape[1], slots, keys.shape[3])
            for buffers, like in ((self.keys, keys), (self.values, prompt.values[layer])):
                larger = like.new_zeros(shape)
                if held:
                    larger[:, :, :held] = buffers[layer]
                buffers[layer] = larger
            self.version += 1

    def _tell_apart(self, lengths: list[int], prompt: StaticCache) -> None:
        """Give layers that differ in this prompt a tensor of lengths of their own; the others share one."""
        depth = range(1, len(lengths))
        places = [keys.device for keys in prompt.keys]
        first = {at for at in depth if lengths[at] != lengths[at - 1] or places[at] != places[at - 1]}
        started = bool(self.lengths[0].numel())
        if started and first <= self._first:
            return
        self._first |= first
        self.active = self.active.to(places[0])
        for layer, place in enumerate(places):
            if layer in self._first:
                known = self.lengths[layer] if started else torch.zeros_like(self.active, device=place)
                shared = known.clone()
            self.lengths[layer] = shared
        self.version += 1
