"""What is inside of a stage, timed by itself on random states of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holitom_cli.clock import Clock
from holitom_cli.methods import Method
from holitom_cli.model import vision
from holitom_cli.model.attention import attention_to_span
from holitom_cli.types import LayerView, Reduction

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model


def timed(model: Model, method: Method, frames: int, tokens: Sequence[int], span: range) -> dict[str, float]:
    """Milliseconds of the parts that a method uses, launches included.

    Args:
        model: the model.
        method: whose attention and merges are wanted.
        frames: encoded by the tower.
        tokens: of the prompt, in each decoder layer.
        span: where its visual tokens and their newline token stand in the first layer.
    """
    clock = Clock(model.device)
    for name, run in [*_vision(model, method, frames), *_inside(model, method, tokens, span)]:
        with clock.stage(name):
            run()
    return clock.milliseconds()


def _vision(model: Model, method: Method, frames: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Projector and pool, and the attention that patches receive, in the tower's own chunks."""
    shape = model.info.shape
    full, rest = divmod(frames, vision.CHUNK_FRAMES)
    sizes = [vision.CHUNK_FRAMES] * full + [rest] * (rest > 0)
    states = _random(model, max(sizes), shape.vision_patches, shape.vision_hidden)
    yield "projector and pool", lambda: [vision.project(model, states[:size]) for size in sizes]
    if method.needs_attention:
        last = model.vision_tower.encoder.layers[shape.vision_layers - 1]
        yield "attention received", lambda: [vision.attention_received(last, states[:size]) for size in sizes]


def _inside(
    model: Model, method: Method, tokens: Sequence[int], span: range
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each merge inside the language model: the attention that it asks to see, and what it does with it."""
    for index, reduction in method.reductions(model.checkpoint.depth).items():
        entering = tokens[max(0, index - 1)]
        left = range(span.start, span.stop - (tokens[0] - entering))
        if left:
            yield "merge inside", _merge(model, index, reduction, entering, left, len(span))


def _merge(
    model: Model, index: int, reduction: Reduction, tokens: int, span: range, entered: int
) -> Callable[[], object]:
    shape = model.info.shape
    earlier = reduction.layer == "before"
    layer = model.language_model.layers[index - earlier]
    states = _random(model, 1, tokens, shape.hidden)
    keys = _random(model, 1, shape.kv_heads, tokens, shape.head_dim) if earlier else None
    rope = model.language_model.rotary_emb(states, torch.arange(tokens, device=model.device)[None])

    def run() -> object:
        seen = attention_to_span(layer, states, rope, keys, reduction, span)
        return reduction.apply(LayerView(states[0, span.start : span.stop], seen, entered))

    return run


def _random(model: Model, *shape: int) -> Tensor:
    return torch.randn(shape, device=model.device, dtype=model.dtype)
