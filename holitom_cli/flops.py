"""What a prefill costs, by the paper's formula and counted truly."""

from __future__ import annotations

import math
from collections.abc import Sequence

from holitom_cli.types import ModelShape


def paper_prefill(shape: ModelShape, visual: Sequence[int]) -> float:
    """The paper's figure (arXiv 2505.21334, section 4.1): multiply-adds of the visual tokens alone.

    It takes keys and values as wide as the model and an MLP of two matrices, and counts no text.

    Args:
        shape: of the checkpoint.
        visual: visual tokens in each decoder layer.
    """
    d, m = shape.hidden, shape.intermediate
    return float(sum(4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m for n in visual))


def true_prefill(shape: ModelShape, tokens: Sequence[int]) -> float:
    """FLOPs of the language model's prefill, the logits of the last token included.

    2 a multiply-add, grouped keys and values, causal attention, an MLP of three matrices.

    Args:
        shape: of the checkpoint.
        tokens: all tokens, visual and text, in each decoder layer.
    """
    d, query, key = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    per_token = 2 * (2 * d * query + 2 * d * key + 3 * d * shape.intermediate)
    layers = sum(n * per_token + 4 * query * n * (n + 1) / 2 for n in tokens)
    return float(layers + 2 * d * shape.vocab)


def true_vision(shape: ModelShape, frames: int, attention: bool, keys: bool = False) -> float:
    """Tower and projector FLOPs; `attention` adds what attention received costs in the last layer, `keys` its keys.

    The pool, before the projector's second layer, is left out: a few operations for each value that leaves it.
    """
    t, c = shape.vision_patches, shape.vision_hidden
    layer = 2 * t * (4 * c**2 + 2 * c * shape.vision_intermediate) + 4 * t**2 * c
    received = 4 * t * c**2 + 2 * t**2 * c if attention else 0
    received += 2 * t * c**2 if keys else 0
    return float(frames * (2 * t * shape.patch_pixels * c + shape.vision_layers * layer + projector(shape) + received))


def projector(shape: ModelShape) -> int:
    """FLOPs of the projector for one frame: its first layer on every patch, its second on the pooled ones."""
    pooled = math.ceil(math.isqrt(shape.vision_patches) / 2) ** 2
    return 2 * shape.hidden * (shape.vision_patches * shape.vision_hidden + pooled * shape.hidden)
