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

    Features come from the layer that the checkpoint names, before the tower's final norm.

    Args:
        model: the checkpoint.
        pixels: (F, 3, H, W) resized and normalised, see `preprocess.prepare`.
        attention: whether the attention that patches receive is wanted.

    Returns:
        tokens (F, P, D) in the model's dtype; attention (F, P) float32 or None.
    """
    features = [_encode_chunk(model, chunk, attention) for chunk in pixels.split(_CHUNK_FRAMES)]
    tokens = torch.cat([tokens for tokens, _ in features])
    received = torch.cat([weights for _, weights in features if weights is not None]) if attention else None
    return VideoFeatures(tokens=tokens, attention=received, grid=model.checkpoint.visual_grid)


def pool(maps: Tensor) -> Tensor:
    """Bilinear resize to half the side, rounded up: (f, grid**2, C) -> (f, P, C).

    Tokens lie in memory as an image with its channels last, which is how this is fast, and the same numbers come out
    as from the library's own pool, which copies them into planes first.
    """
    grid = math.isqrt(maps.shape[1])
    half = math.ceil(grid / 2)
    image = maps.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    return F.interpolate(image, size=(half, half), mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)


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


def _encode_chunk(model: Model, pixels: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
    """Tokens (f, P, D) and pooled attention received (f, P) of a few frames (f, 3, H, W)."""
    tower, depth = model.vision_tower, model.info.shape.vision_layers
    hidden = tower.embeddings(pixels.to(model.device, model.dtype))
    entering = hidden
    for layer in tower.encoder.layers[:depth]:
        entering = hidden
        hidden = layer(entering, None)
    tokens = pool(model.projector(hidden.to(device_of(model.projector)))).to(model.device)
    if not attention:
        return tokens, None
    received = attention_received(tower.encoder.layers[depth - 1], entering).to(model.device)
    return tokens, pool(received[..., None])[..., 0]
