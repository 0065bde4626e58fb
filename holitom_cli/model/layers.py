"""The library's layers run as few and as large kernels as plain torch has.

Projections of one input are one matrix product: their weights lie in one tensor, of which the library's own modules
hold views, so that nothing takes more memory and the library's code still runs on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from holitom_cli.model.kernels import add_norm, attend, gated, suits, turn
from holitom_cli.model.quantise import Packed, PackedLinear, multiply

_MLP_TOKENS = 8192  # at a time in a decoder layer's MLP, whose states are ten times as wide as what comes out
_KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # projections of one input, in this order


class Joined(nn.Module):
    """Several linear layers of one input as one."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        self.weight = _one([layer.weight.data for layer in layers])
        self.bias = _shared_bias(layers)
        for layer, part in zip(layers, self.weight.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.data = part

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., sum of the layers' outputs)."""
        return F.linear(states, self.weight, self.bias)


class JoinedPacked(nn.Module):
    """Several packed linear layers of one input as one."""

    def __init__(self, *layers: PackedLinear) -> None:
        super().__init__()
        values, steps = zip(*(layer.packed for layer in layers), strict=True)
        self.packed = Packed(_one([part.data for part in values]), _one([part.data for part in steps]))
        self.bias = _shared_bias(layers)
        for layer, part in zip(layers, self.packed.split([layer.out_features for layer in layers]), strict=True):
            layer.values.data, layer.steps.data = part

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., sum of the layers' outputs)."""
        return multiply(states, self.packed, self.bias)


def _shared_bias(layers: Sequence[Any]) -> Tensor | None:
    """The biases of several layers as one tensor, of which each then holds its part; None where they have none."""
    biases = [layer.bias.data for layer in layers if layer.bias is not None]
    if not biases:
        return None
    whole = _one(biases)
    for layer, part in zip(layers, whole.split([len(bias) for bias in biases]), strict=True):
        layer.bias.data = part
    return whole


def _one(parts: list[Tensor]) -> Tensor:
    """Several tensors as one: no copy where they lie behind one another already, as they are loaded."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(parts)
        end += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def join_tower(tower: Any) -> None:
    """Join the projections of every layer of a vision tower."""
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        attention.qkv = Joined(attention.q_proj, attention.k_proj, attention.v_proj)


def tower_layers(layers: Sequence[Any], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Layers of the vision tower, one after another; those whose projections are not joined run as they are.

    Args:
        layers: the library's.
        hidden: (f, T, C).

    Returns:
        The states leaving the last layer and those entering it, (f, T, C) each.
    """
    entering, normed = hidden, None
    for index, layer in enumerate(layers):
        entering, attention, mlp = hidden, layer.self_attn, layer.mlp
        if not hasattr(attention, "qkv"):
            hidden = layer(entering, None)
            continue
        mixed = _looked_around(attention, layer.layer_norm1(entering) if normed is None else normed)
        hidden, normed = add_norm(entering, mixed, layer.layer_norm2)
        change = mlp.fc2(_activated(mlp, normed))
        if index + 1 < len(layers):
            hidden, normed = add_norm(hidden, change, layers[index + 1].layer_norm1)
        else:
            hidden = hidden + change
    return hidden, entering


def _looked_around(attention: Any, normed: Tensor) -> Tensor:
    """Attention of a tower layer: (f, T, C) -> (f, T, C)."""
    qkv = attention.qkv(normed).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def join_language(language_model: Any) -> None:
    """Join the projections of every decoder layer."""
    for layer in language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        mlp.gate_up = _joined(mlp.gate_proj, mlp.up_proj)


def _joined(*layers: Any) -> nn.Module:
    return JoinedPacked(*layers) if isinstance(layers[0], PackedLinear) else Joined(*layers)


def decoder_layer(layer: Any, hidden: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
    """One decoder layer, (B, S, D) -> (B, S, D); a layer whose projections are not joined runs as it is.

    Args:
        layer: the library's.
        hidden: a whole prompt, or one token of each row.
        rope: cosines and sines (B, S, d).
        mask: (B, 1, S or 1, keys) added to scores, or None where attention is causal.
        cache: takes the new keys and values and returns all.
    """
    if not hasattr(layer.mlp, "gate_up"):
        return layer(hidden, attention_mask=mask, position_embeddings=rope, past_key_values=cache)  # type: ignore[no-any-return]
    attention, mlp = layer.self_attn, layer.mlp
    mixed = _attended(attention, _normed(layer.input_layernorm, hidden), rope, mask, cache)
    hidden = _added(hidden, attention.o_proj, mixed)
    for part in hidden.view(-1, hidden.shape[-1]).split(_MLP_TOKENS):
        states = gated(mlp.gate_up(_normed(layer.post_attention_layernorm, part)), mlp)
        _add(part, mlp.down_proj, states)
    return hidden


def _added(hidden: Tensor, linear: Any, states: Tensor) -> Tensor:
    """Hidden states and a linear layer's output, in one product where its weights are plain."""
    if not _is_plain(linear):
        return hidden + linear(states)  # type: ignore[no-any-return]
    return torch.addmm(hidden.flatten(0, 1), states.flatten(0, 1), linear.weight.T).view_as(hidden)


def _add(hidden: Tensor, linear: Any, states: Tensor) -> None:
    """The same in the place of hidden states (n, D), which spares a copy of them."""
    if _is_plain(linear):
        hidden.addmm_(states, linear.weight.T)
    else:
        hidden += linear(states)


def _is_plain(linear: Any) -> bool:
    return isinstance(linear, nn.Linear) and getattr(linear, "bias", None) is None


def _attended(attention: Any, states: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
    """Grouped-query attention that repeats no key, before its last projection: (B, S, D) -> (B, S, H d)."""
    heads, groups, width = attention.config.num_attention_heads, attention.num_key_value_groups, attention.head_dim
    qkv, layer = attention.qkv(states), attention.layer_idx
    if suits(qkv, width, groups):
        mixed = _attended_on_gpu(qkv, rope, mask, cache, layer, heads, width)
        return mixed.transpose(1, 2).flatten(2)
    parts = qkv.unflatten(-1, (-1, width)).transpose(1, 2)  # (B, H + 2 Hkv, S, d)
    turned = _turned(parts[:, : heads + heads // groups], rope)
    query, key = turned[:, :heads], turned[:, heads:]
    key, value = cache.update(key, parts[:, heads + heads // groups :], layer)
    if states.shape[1] > 1:
        mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, enable_gqa=True)
    else:  # the queries of a group stand where a longer text would have its tokens
        mixed = F.scaled_dot_product_attention(query.reshape(len(query), -1, groups, width), key, value, mask)
        mixed = mixed.flatten(1, 2)[:, :, None]
    return mixed.transpose(1, 2).flatten(2)


def _attended_on_gpu(
    qkv: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any, layer: int, heads: int, width: int
) -> Tensor:
    """The same by `kernels`: (B, S, (H + 2 Hkv) d) -> (B, H, S, d)."""
    batch, length = qkv.shape[:2]
    prompt = not cache.lengths[layer].numel()
    if prompt:
        cache.reserve(qkv, layer, (batch, (qkv.shape[2] // width - heads) // 2, length, width))
    keys, values = cache.keys[layer], cache.values[layer]
    at = cache.starts[layer] if prompt else cache.lengths[layer]
    query = turn(qkv, rope, keys, values, at, heads)
    if not prompt and length == 1:
        return attend(query, keys, values, at)
    known = (keys[:, :, :length], values[:, :, :length]) if prompt else (keys, values)
    return F.scaled_dot_product_attention(query, *known, mask, is_causal=mask is None, enable_gqa=True)


def _turned(states: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: (B, heads, S, d)."""
    cos, sin = (part[:, None] for part in rope)
    one, other = states.chunk(2, -1)
    return states * cos + torch.cat((-other, one), -1) * sin


def _normed(norm: Any, states: Tensor) -> Tensor:
    """Root-mean-square norm, in float32 within one kernel."""
    return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _activated(mlp: Any, states: Tensor) -> Tensor:
    """The first half of a tower's MLP; on a GPU bias and GELU are done before the product is written."""
    if not states.is_cuda or mlp.config.hidden_act != "gelu_pytorch_tanh":
        return mlp.activation_fn(mlp.fc1(states))  # type: ignore[no-any-return]
    flat = torch._addmm_activation(mlp.fc1.bias, states.flatten(0, 1), mlp.fc1.weight.T, use_gelu=True)
    return flat.view(*states.shape[:2], -1)


@contextmanager
def fastest_attention() -> Iterator[None]:
    """Try cuDNN's attention first: it is the fastest for a tower's 72 features a head."""
    with sdpa_kernel(_KERNELS, set_priority=True):
        yield
