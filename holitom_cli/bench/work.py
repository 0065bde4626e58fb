"""The arithmetic and the memory traffic that a stage cannot do without, to hold its time against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holitom_cli import flops

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model

_PIXEL_BYTES = 3 * (1 + 4)  # colours, read as bytes and written as float32


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage has to do at least."""

    flops: float  # 2 a multiply-add; 0 where the stage is no matrix product
    bytes: float  # weights, inputs and outputs, each moved once


def preprocess(model: Model, frames: int) -> Work:
    """Of frames that have the tower's size already."""
    size = model.preprocessor
    return Work(0, frames * size.height * size.width * _PIXEL_BYTES)


def vision(model: Model, frames: int, *, attention: bool) -> Work:
    """Tower, projector and pool, and the attention that patches receive where it is wanted.

    Args:
        model: the model.
        frames: those that are encoded; a frame that is the one before it again is not.
        attention: whether it is wanted.
    """
    tower = model.vision_tower
    used = [tower.embeddings, *tower.encoder.layers[: model.info.shape.vision_layers], model.projector]
    pixels = frames * 3 * model.preprocessor.height * model.preprocessor.width * 4
    moved = sum(map(weight_bytes, used)) + pixels + token_bytes(model, frames)
    return Work(flops.true_vision(model.info.shape, frames, attention), moved)


def project(model: Model, frames: int) -> Work:
    """Projector and pool, a part of `vision`."""
    shape = model.info.shape
    entering = frames * shape.vision_patches * shape.vision_hidden * model.dtype.itemsize
    return Work(frames * flops.projector(shape), weight_bytes(model.projector) + entering + token_bytes(model, frames))


def compress(model: Model, frames: int, kept: int) -> Work:
    """Reading every token once and writing the kept ones."""
    each = model.info.shape.hidden * model.dtype.itemsize
    return Work(0, token_bytes(model, frames) + kept * each)


def prefill(model: Model, tokens: Sequence[int]) -> Work:
    """The language model over a prompt.

    Args:
        model: the model.
        tokens: all tokens, visual and text, in each decoder layer.
    """
    return Work(
        flops.true_prefill(model.info.shape, tokens), language_bytes(model) + sum(cache_bytes(model, n) for n in tokens)
    )


def decode(model: Model, tokens: Sequence[int]) -> Work:
    """One more token behind as many as the cache holds in each decoder layer."""
    shape = model.info.shape
    longer, shorter = (flops.true_prefill(shape, [n + more for n in tokens]) for more in (1, 0))
    logits = 2 * shape.hidden * shape.vocab
    return Work(longer - shorter + logits, language_bytes(model) + sum(cache_bytes(model, n) for n in tokens))


def cache_bytes(model: Model, tokens: int) -> int:
    """Keys and values of one decoder layer."""
    shape = model.info.shape
    return 2 * tokens * shape.kv_heads * shape.head_dim * model.dtype.itemsize


def token_bytes(model: Model, frames: int) -> int:
    """All visual tokens of some frames."""
    return frames * model.checkpoint.visual_grid**2 * model.info.shape.hidden * model.dtype.itemsize


def language_bytes(model: Model) -> int:
    """Weights that each pass through the language model reads: its layers and the output matrix."""
    return weight_bytes(model.language_model.layers) + weight_bytes(model.lm_head)


def weight_bytes(module: Any) -> int:
    """Bytes of a module's weights."""
    return sum(parameter.nbytes for parameter in module.parameters())
