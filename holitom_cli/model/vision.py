"""Pixels to visual tokens: the tower, the attention that patches receive in it, the projector and the pool."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.model.attention import device_of
from holitom_cli.model.kernels import plain_received, received, runs_on
from holitom_cli.model.layers import fastest_attention, tower_layers
from holitom_cli.types import VideoFeatures

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model

CHUNK_FRAMES = 16  # frames in the tower at a time
_ATTENTION_FRAMES = 2  # frames whose attention maps, (frames, heads, T, T) float32, exist at a time


@torch.inference_mode()
def encode(
    model: Model, pixels: Tensor, *, attention: bool = True, keys: bool = False, chunk_frames: int = CHUNK_FRAMES
) -> VideoFeatures:
    """Encode processed frames.

    Features come from the layer that the checkpoint names, before the tower's final norm. A frame that is the one
    before it again, as in slides and recordings of screens, is not encoded again.

    Args:
        model: the checkpoint.
        pixels: (F, 3, H, W) resized and normalised, see `preprocess.prepare`.
        attention: whether the attention that patches receive is wanted.
        keys: whether the tower's last keys are wanted.
        chunk_frames: frames in the tower at a time; fewer take less memory.

    Returns:
        tokens (F, P, D) in the model's dtype; attention (F, P) float32 and keys (F, P, K), or None.
    """
    new = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
    new[1:] = (pixels[1:] != pixels[:-1]).flatten(1).any(1)
    with fastest_attention():
        parts = new.nonzero()[:, 0].split(chunk_frames)
        chunks = [_encode_chunk(model, pixels[part], attention, keys) for part in parts]
    frame = (new.cumsum(0) - 1).to(model.device)
    whole = (torch.cat(part) for part in zip(*chunks, strict=True))
    tokens, *others = (part if len(part) == len(pixels) else part[frame] for part in whole)
    wanted = iter(others)
    return VideoFeatures(
        tokens,
        attention=next(wanted) if attention else None,
        grid=model.checkpoint.visual_grid,
        keys=next(wanted) if keys else None,
    )


def project(model: Model, hidden: Tensor) -> Tensor:
    """Projector and pool: states leaving the tower (f, T, C) -> visual tokens (f, P, D) on the model's device.

    The pool is linear and its weights add up to 1, so that it may come before the projector's second layer, which then
    has a quarter of the products. In exact numbers the result is the library's.
    """
    projector = model.projector
    inner = projector.act(projector.linear_1(hidden.to(device_of(projector))))
    tokens: Tensor = projector.linear_2(pool(inner))
    return tokens.to(model.device)


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
    query, key = (_heads(layer, name, entering) for name in ("q_proj", "k_proj"))
    if runs_on(query):
        return received(query, key, layer.self_attn.scale)
    chunks = zip(query.split(_ATTENTION_FRAMES), key.split(_ATTENTION_FRAMES), strict=True)
    return torch.cat([plain_received(q, k, layer.self_attn.scale) for q, k in chunks])


def _heads(layer: Any, projection: str, entering: Tensor) -> Tensor:
    """One projection of a tower layer's attention: states entering it (f, T, C) -> (f, T, heads, d)."""
    normed = layer.layer_norm1(entering.to(device_of(layer.layer_norm1)))
    heads: Tensor = getattr(layer.self_attn, projection)(normed).unflatten(-1, (layer.self_attn.num_heads, -1))
    return heads


def _encode_chunk(model: Model, pixels: Tensor, attention: bool, keys: bool) -> tuple[Tensor, ...]:
    """Tokens of a few frames (f, 3, H, W), then the attention and the keys where they are wanted."""
    tower, depth = model.vision_tower, model.info.shape.vision_layers
    hidden = tower.embeddings(pixels.to(model.device, model.dtype))
    hidden, entering = tower_layers(tower.encoder.layers[:depth], hidden)
    last = tower.encoder.layers[depth - 1]
    found = [project(model, hidden)]
    if attention:
        found.append(pool(attention_received(last, entering)[..., None])[..., 0].to(model.device))
    if keys:
        found.append(pool(_heads(last, "k_proj", entering).mean(2)).to(model.device))
    return tuple(found)
