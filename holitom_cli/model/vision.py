"""Pixels to visual tokens: the tower, the attention that patches receive in it, the projector and the pool."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.model.attention import device_of
from holitom_cli.types import VideoFeatures

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model

_CHUNK_FRAMES = 8  # frames in the tower at a time
_ATTENTION_FRAMES = 2  # frames whose attention maps, (frames, heads, T, T) float32, exist at a time


@torch.inference_mode()
def encode(model: Model, pixels: Tensor, *, attention: bool = True) -> VideoFeatures:
    """Encode processed frames.

    Features come from the layer that the checkpoint names, before the tower's final norm. The bilinear pool is linear,
    so it is one fixed matrix, applied between the projector's two layers, where it is the cheapest.

    Args:
        model: the checkpoint.
        pixels: (F, 3, H, W) resized and normalised, see `preprocess.prepare`.
        attention: whether the attention that patches receive is wanted.

    Returns:
        tokens (F, P, D) in the model's dtype; attention (F, P) float32 or None.
    """
    grid = model.patch_grid
    pool = pool_matrix(grid)
    features = [_encode_chunk(model, chunk, pool, attention) for chunk in pixels.split(_CHUNK_FRAMES)]
    tokens = torch.cat([tokens for tokens, _ in features])
    received = torch.cat([weights for _, weights in features if weights is not None]) if attention else None
    return VideoFeatures(tokens=tokens, attention=received, grid=math.ceil(grid / 2))


def pool_matrix(grid: int) -> Tensor:
    """The library's bilinear resize of a grid x grid map to half its side, rounded up: (P, grid**2) float32."""
    half = math.ceil(grid / 2)
    basis = torch.eye(grid**2).view(grid**2, 1, grid, grid)
    return F.interpolate(basis, size=(half, half), mode="bilinear").flatten(1).T.contiguous()


def attention_received(layer: Any, entering: Tensor) -> Tensor:
    """Attention probability that each patch receives in a tower layer, mean over heads, then over queries.

    Args:
        layer: the tower's encoder layer.
        entering: (F, T, C) states entering it.

    Returns:
        (F, T) float32. No more than a few frames' attention maps exist at a time.
    """
    attention = layer.self_attn
    normed = layer.layer_norm1(entering.to(device_of(layer.layer_norm1)))
    queries, keys = (
        part(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).float()
        for part in (attention.q_proj, attention.k_proj)
    )
    chunks = zip(queries.split(_ATTENTION_FRAMES), keys.split(_ATTENTION_FRAMES), strict=True)
    return torch.cat([(q @ k.transpose(-1, -2) * attention.scale).softmax(-1).mean(1).mean(1) for q, k in chunks])


def _encode_chunk(model: Model, pixels: Tensor, pool: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
    """Tokens (f, P, D) and pooled attention received (f, P) of a few frames (f, 3, H, W)."""
    tower, projector, depth = model.vision_tower, model.projector, model.info.shape.vision_layers
    hidden = tower.embeddings(pixels.to(model.device, model.dtype))
    entering = hidden
    for layer in tower.encoder.layers[:depth]:
        entering = hidden
        hidden = layer(entering, None)
    inner = projector.act(projector.linear_1(hidden.to(device_of(projector.linear_1))))
    tokens = projector.linear_2(pool.to(inner.device, inner.dtype) @ inner).to(model.device)
    if not attention:
        return tokens, None
    received = attention_received(tower.encoder.layers[depth - 1], entering).to(model.device)
    return tokens, received @ pool.T.to(model.device)
