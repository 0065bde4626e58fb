"""What a prompt leaves behind for the next one that begins like it: its video is read once, and so is every turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holitom_cli.model.attention import causal_mask
from holitom_cli.model.cache import StaticCache
from holitom_cli.model.layers import decoder_layer
from holitom_cli.types import Reduction

_AT_ONCE = 512  # new tokens; with as many again that a clip brings, scores and masks would fill the memory
_BLOCK = 512  # buffers grow by as many tokens, so that few questions make them grow


class Kept:
    """Keys, values and states of a prompt in the layers before the first reduction.

    What these layers make of a token depends on the tokens before it alone, so a prompt that begins with the same
    tokens runs only its new ones through them. What the later layers make of a token depends, by way of the
    reduction, on the last one of the prompt: they run anew. Where nothing is reduced, all layers are kept.

    What is equal is found by comparing embeddings, so that a prompt about something else is simply read anew. The
    cache of a prompt shares buffers with this: it is of use until the next prompt is read.
    """

    def __init__(self, depth: int, reductions: Mapping[int, Reduction]) -> None:
        """To be used with prompts of one model of `depth` layers, and with these reductions alone."""
        self.split = min(reductions, default=depth)  # the first layer that is not kept
        self.reused = 0  # tokens of the last prompt that were not run again
        self._looks_back = bool(reductions) and reductions[self.split].layer == "before"
        self._cache = StaticCache(self.split, 0)
        self._span = range(0)
        self._embeds = self._leaving = self._entering = torch.empty(1, 0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes that are held: buffers, the room for an answer included, and states."""
        buffers = [*self._cache.keys, *self._cache.values]
        return sum(tensor.nbytes for tensor in (*buffers, self._embeds, self._leaving, self._entering))

    def read(
        self,
        language_model: Any,
        embeds: Tensor,
        rope: tuple[Tensor, Tensor],
        span: range,
        cache: StaticCache,
        least: int,
    ) -> tuple[Tensor, Tensor]:
        """Run what is new of a prompt through the kept layers.

        Args:
            language_model: a Qwen2 decoder.
            embeds: (1, L, D) the whole prompt.
            rope: cosines and sines (1, L, d).
            span: the visual part, up to the last clip's end.
            cache: of all layers, empty; those that are kept get their keys and values, with its room behind them.
            least: where the first clip ends; to know less than that is as good as nothing.

        Returns:
            The states that enter the first layer that is not kept (1, L, D), and of the layer before those behind the
            visual part, (1, L - span.stop, D) if a reduction looks back at them, else none.
        """
        length = embeds.shape[1]
        start = self._common(embeds, span, least)
        self._forget(start, length, cache.room, span)
        parts = []
        for at in range(start, length, _AT_ONCE if start else length):
            new = slice(at, min(at + _AT_ONCE, length) if start else length)
            known = self._lend(StaticCache(self.split, 0), at, _whole_blocks(new.stop)) if start else self._cache
            parts.append(self._run(language_model, embeds[:, new], (rope[0][:, new], rope[1][:, new]), known))
        leaving, entering = parts[0] if len(parts) == 1 else (torch.cat(part, 1) for part in zip(*parts, strict=True))
        self._remember(start, embeds, span, leaving, entering)
        self._lend(cache, length, length + cache.room)
        return self._leaving, self._entering

    def _run(
        self, language_model: Any, states: Tensor, rope: tuple[Tensor, Tensor], known: StaticCache
    ) -> tuple[Tensor, Tensor]:
        """States (1, s, D) that leave the kept layers, and those that enter the last of them, of what comes next."""
        entering, mask = states, None
        for index, layer in enumerate(language_model.layers[: self.split]):
            entering = states
            if not known.lengths[index].numel():
                mask = causal_mask(language_model.config, entering)
            elif mask is None or mask.device != known.lengths[index].device:
                mask = known.mask(index, entering.dtype, entering.shape[1])
            states = decoder_layer(layer, entering, rope, mask, known)
        return states, entering

    def _common(self, embeds: Tensor, span: range, least: int) -> int:
        """Tokens that are known already; the last one is run in any case, and the first clip is known whole or not."""
        most = min(embeds.shape[1] - 1, self._embeds.shape[1])
        if most <= least:
            return 0
        differs = (embeds[0, :most] != self._embeds[0, :most]).any(-1)
        same = int(torch.cat((differs, differs.new_ones(1))).to(torch.uint8).argmax())
        if span.stop < self._span.stop:  # what enters the last layer is known of tokens behind the former span alone
            same = min(same, span.stop)
        return same if same > least else 0

    def _forget(self, start: int, length: int, room: int, span: range) -> None:
        """Leave what the prompts share, and make room for a prompt of so many tokens and its answer."""
        self.reused = start
        known, self._leaving = self._embeds[:, :start], self._leaving[:, :start]
        begin = self._span.stop
        self._entering = self._entering[:, max(0, span.stop - begin) : max(0, start - begin)]
        self._embeds, self._span = known[:, :0], span  # should this be interrupted, nothing is known
        slots = _whole_blocks(length + room)
        if not start:  # buffers are made where the prompt is stored
            self._cache = StaticCache(self.split, slots - length)
            return
        for index, keys in enumerate(self._cache.keys):
            if keys.shape[2] < slots:
                self._cache.room = slots - start
                self._cache.keep(index, torch.arange(start, device=keys.device))
            else:  # an answer that was no number would stay one behind a mask
                keys[:, :, start:] = 0
                self._cache.values[index][:, :, start:] = 0
        self._embeds = known

    def _remember(self, start: int, embeds: Tensor, span: range, leaving: Tensor, entering: Tensor) -> None:
        self._leaving = torch.cat((self._leaving, leaving), 1) if start else leaving
        if self._looks_back:
            tail = entering[:, max(0, span.stop - start) :]
            self._entering = torch.cat((self._entering, tail), 1) if start else tail.clone()
        self._span, self._embeds = span, embeds

    def _lend(self, cache: StaticCache, length: int, slots: int) -> StaticCache:
        """Show a cache so many slots, `length` of them filled, as if it had stored keys and values there itself."""
        lengths: dict[torch.device, Tensor] = {}
        for index, keys in enumerate(self._cache.keys):
            cache.keys[index], cache.values[index] = keys[:, :, :slots], self._cache.values[index][:, :, :slots]
            place = keys.device
            if place not in lengths:
                lengths[place] = torch.full((len(keys),), length, device=place)
            cache.lengths[index] = lengths[place]
        return cache


def _whole_blocks(tokens: int) -> int:
    """So many slots, rounded up: kernels like widths that are even, too."""
    return -(-tokens // _BLOCK) * _BLOCK
