"""Run a prompt through the decoder layers, merging visual tokens between them where a method asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holitom_cli.model.attention import attention_to_span, causal_mask
from holitom_cli.model.cache import StaticCache
from holitom_cli.model.kept import Kept
from holitom_cli.model.layers import decoder_layer
from holitom_cli.types import CacheView, LayerView, Reduction


@dataclass(frozen=True, slots=True, eq=False)
class Prefill:
    """The state behind a prompt of L tokens, of which S are left after the last reduction."""

    logits: Tensor  # (B, V) of the last prompt token
    hidden: Tensor  # (B, S, D) states leaving the last layer, before the final norm
    positions: Tensor  # (B, S) int64 original positions of the tokens that are left
    next_position: Tensor  # (B,) int64, L: where generation goes on
    cache: StaticCache
    into: Tensor  # (n,) int64 the visual row that each visual row ended in, -1 = dropped; rows of all clips, in order
    inside: tuple[tuple[int, int], ...]  # (layer, visual rows from that layer on)
    cached: tuple[int, ...] = ()  # visual rows left in each layer's cache; empty where all are


Evict = Callable[[Sequence[CacheView]], Sequence[Tensor]]
_LAST_ROW = Reduction(lambda view: (view.hidden, view.attention))  # what it wants to see is all that is looked at
_EVERY_ROW = replace(_LAST_ROW, rows="all")


@torch.inference_mode()
def prefill(
    language_model: Any,
    lm_head: Any,
    embeds: Tensor,
    span: range | slice,
    reductions: Mapping[int, Reduction],
    *,
    gaps: Sequence[range] = (),
    room: int = 0,
    evict: Evict | None = None,
    kept: Kept | None = None,
) -> Prefill:
    """Run a prompt through the language model, with merges inside.

    The decoder layers have the library's own weights. The loop over them, the positions and the cache are ours: the
    library keeps one length and one mask for all layers, which is wrong behind a reduction. Reduced tokens keep their
    original positions, and generation goes on at L.

    Args:
        language_model: a Qwen2 decoder (`layers`, `norm`, `rotary_emb`); no tokenizer is needed.
        lm_head: makes logits of hidden states.
        embeds: (L, D) or (1, L, D) prompt embeddings.
        span: where the visual tokens and their newline token stand in the prompt; from the first of several clips to
            the end of the last.
        reductions: {layer: what to merge just before it}.
        gaps: where in the span there is text instead, between clips.
        room: how many tokens to leave space for in the cache.
        evict: says which visual rows, ascending, each layer's cache keeps.
        kept: of an earlier prompt with the same reductions. Only what is new runs through the layers before them, and
            is kept for the next prompt. Not with `evict`, which needs to see every layer.
    """
    layers = language_model.layers
    if absent := sorted(set(reductions) - set(range(len(layers)))):
        raise ValueError(f"a reduction before layer {absent[0]}, but the language model has {len(layers)} layers")
    cache = StaticCache(len(layers), room)
    hidden, span = embeds if embeds.dim() == 3 else embeds[None], range(span.start, span.stop)
    prompt = _Prompt.start(language_model, hidden, span, gaps)
    entering, watched, first = prompt.hidden, _Watched([], []), 0
    if kept:
        if evict:
            raise ValueError("a cache that is pruned behind the prompt cannot be kept")
        first_clip = gaps[0].start if gaps else span.stop
        prompt.hidden, entering = kept.read(language_model, hidden, prompt.rope, span, cache, first_clip)
        first = kept.split
    for index, layer in enumerate(layers[first:], first):
        if reduction := reductions.get(index):
            prompt.reduce(index, reduction, _look(layers, index, reduction, prompt, entering, cache))
        entering = prompt.hidden
        mask = causal_mask(language_model.config, entering)
        prompt.hidden = decoder_layer(layer, entering, prompt.rope, mask, cache)
        if evict:
            watched.look(layer, entering, prompt, cache.keys[index])
    logits = lm_head(language_model.norm(prompt.hidden[:, -1])).to(embeds.device)
    following = torch.full((len(prompt.hidden),), embeds.shape[-2], device=embeds.device)
    cached = watched.prune(cache, evict) if evict else ()
    into, inside = prompt.visual_into(), tuple(prompt.inside)
    return Prefill(logits, prompt.hidden, prompt.positions, following, cache, into, inside, cached)


def _look(
    layers: Any, index: int, reduction: Reduction, prompt: _Prompt, entering: Tensor, cache: StaticCache
) -> Tensor:
    """The attention that a reduction before layer `index` asked to see."""
    if reduction.layer == "this":
        return attention_to_span(layers[index], prompt.hidden, prompt.rope, None, reduction, prompt.span)
    if index == 0:
        raise ValueError("a reduction before layer 0 cannot look at the layer before")
    keys = cache.keys[index - 1][:, :, : prompt.hidden.shape[1]]
    seen = attention_to_span(layers[index - 1], entering, prompt.rope, keys, reduction, prompt.span)
    return seen.to(prompt.hidden.device)


class _Watched(NamedTuple):
    """What is known of each layer's cache until it is pruned."""

    views: list[CacheView]
    places: list[tuple[range, Tensor | None, int]]  # the span in it, its visual rows, and the prompt's length

    def look(self, layer: Any, entering: Tensor, prompt: _Prompt, keys: Tensor) -> None:
        length, span = entering.shape[1], prompt.span
        known = layer, entering, prompt.rope, keys[:, :, :length]
        text = attention_to_span(*known, _LAST_ROW, range(span.stop, length))[0]
        seen = attention_to_span(*known, _EVERY_ROW, span)
        rows = prompt.visual
        self.views.append(CacheView(seen if rows is None else seen[:, rows.to(seen.device)], text))
        self.places.append((span, rows, length))

    def prune(self, cache: StaticCache, evict: Evict) -> tuple[int, ...]:
        """Keep what the method says, and all of the text."""
        kept = evict(self.views)
        for index, (rows, (span, visual, length)) in enumerate(zip(kept, self.places, strict=True)):
            everything = torch.arange(length, device=rows.device)
            if visual is not None:
                rows = _with_text(visual.to(rows.device), rows, len(span))  # noqa: PLW2901
            cache.keep(index, torch.cat((everything[: span.start], span.start + rows, everything[span.stop :])))
        return tuple(map(len, kept))


@dataclass(slots=True, eq=False)
class _Prompt:
    """The sequence on its way through the layers.

    The text between several clips is part of the span, as rows that always stay: methods are shown the others.
    """

    hidden: Tensor  # (B, S, D)
    positions: Tensor  # (B, S)
    rope: tuple[Tensor, Tensor]  # cosines and sines (B, S, d)
    span: range
    rows: Tensor  # (m,) original span row of each span row that is left
    into: Tensor  # (n,) original span row that each original row has gone to, -1 = dropped
    clips: Tensor | None  # original span rows that are visual, ascending; None where all are
    visual: Tensor | None  # of the rows that are left those that are visual, ascending; None where all are
    entered: int  # how many were visual
    inside: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def start(cls, language_model: Any, hidden: Tensor, span: range, gaps: Sequence[range]) -> _Prompt:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rows = torch.arange(len(span), device=hidden.device)
        cos, sin = language_model.rotary_emb(hidden, positions)
        starts, stops = [0, *(gap.stop - span.start for gap in gaps)], [*(gap.start - span.start for gap in gaps), None]
        clips = torch.cat([rows[slice(*ends)] for ends in zip(starts, stops, strict=True)]) if gaps else None
        entered = len(span) - sum(map(len, gaps))
        rope = (cos.to(hidden.device), sin.to(hidden.device))
        return cls(hidden, positions, rope, span, rows, rows, clips, clips, entered)

    def reduce(self, layer: int, reduction: Reduction, seen: Tensor) -> None:
        """Put what a reduction keeps of the visual rows in their place; `seen` (Q, m) is attention to the span."""
        states = self.hidden[0, self.span.start : self.span.stop]
        if self.visual is None:
            kept, into = reduction.apply(LayerView(states, seen, self.entered))
            self._replace(kept, into)
        else:
            visual = self.visual.to(states.device)
            kept, into = reduction.apply(LayerView(states[visual], seen[:, visual], self.entered))
            self._replace(*self._among_text(states, visual, kept, into))
        self.inside.append((layer, len(kept)))

    def _among_text(self, states: Tensor, visual: Tensor, kept: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
        """States and `into` of the whole span (m, D) from those of its visual rows; the others stay where they are."""
        here = torch.arange(len(states), device=states.device)
        into = here.index_copy(0, visual, torch.where(into < 0, -1, visual[into.clamp_min(0)]))
        stay = _marked(into == here, len(states) - len(visual) + len(kept))
        visual = _marked(torch.zeros_like(here).index_fill_(0, visual, 1)[stay], len(kept))
        self.visual = visual.to(self.positions.device)
        return states[stay].index_copy(0, visual, kept), into

    def _replace(self, states: Tensor, into: Tensor) -> None:
        """Put the kept states (M, D) in the span's place; into (m,) names the kept row that each row went to."""
        before, after = self.span.start, self.span.stop
        # Positions and the account stay on the device of the prompt, wherever the layers are.
        into = into.to(self.positions.device)
        here = torch.arange(len(into), device=into.device)
        stay = _marked(into == here, len(states))
        everything = torch.arange(self.positions.shape[1], device=into.device)
        left = torch.cat((everything[:before], before + stay, everything[after:]))
        self.hidden = torch.cat((self.hidden[:, :before], states[None], self.hidden[:, after:]), 1)
        self.positions = self.positions[:, left]
        self.rope = (self.rope[0][:, left], self.rope[1][:, left])
        # Original row -> row entering this layer -> row leaving it, named by its original row.
        moved = torch.where(into < 0, -1, self.rows[into.clamp_min(0)])
        slot = torch.zeros_like(self.into).scatter_(0, self.rows, here)
        self.into = torch.where(self.into < 0, -1, moved[slot[self.into.clamp_min(0)]])
        self.rows = self.rows[stay]
        self.span = range(before, before + len(states))

    def visual_into(self) -> Tensor:
        """`into` of the visual rows alone, named by their places among themselves."""
        if self.clips is None:
            return self.into
        into, place = self.into[self.clips], torch.zeros_like(self.into)
        place[self.clips] = torch.arange(len(into), device=into.device)
        return torch.where(into < 0, -1, place[into.clamp_min(0)])


def _with_text(visual: Tensor, rows: Tensor, length: int) -> Tensor:
    """Of a span of so many rows the text, and these of its visual rows: ascending."""
    stay = torch.ones(length, dtype=torch.bool, device=rows.device)
    stay.index_fill_(0, visual, False).index_fill_(0, visual[rows], True)
    return _marked(stay, length - len(visual) + len(rows))


def _marked(mask: Tensor, count: int) -> Tensor:
    """Where the `count` true entries are, ascending; knowing the count spares a wait for the device."""
    return mask.to(torch.uint8).argsort(descending=True, stable=True)[:count]
