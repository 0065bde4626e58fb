"""The library's layers run as few and as large kernels as plain torch has.

Projections of one input are one matrix product: their weights lie in one tensor, of which the library's own modules
hold views, so that nothing takes more memory and the library's code still runs on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Joined(nn.Module):
    """Several linear layers of one input as one."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.cat([layer.weight.data for layer in layers])
        biases = [layer.bias.data for layer in layers if getattr(layer, "bias", None) is not None]
        self.bias = torch.cat(biases) if biases else None
        rows = 0
        for layer in layers:
            part = slice(rows, rows + layer.out_features)
            layer.weight.data = self.weight[part]
            if self.bias is not None:
                layer.bias.data = self.bias[part]
            rows = part.stop

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., sum of the layers' outputs)."""
        return F.linear(states, self.weight, self.bias)


def join_tower(tower: Any) -> None:
    """Join the projections of every layer of a vision tower."""
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        attention.qkv = Joined(attention.q_proj, attention.k_proj, attention.v_proj)


def tower_layer(layer: Any, entering: Tensor) -> Tensor:
    """One layer of the vision tower, (f, T, C) -> (f, T, C); a layer whose projections are not joined runs as it is."""
    attention, mlp = layer.self_attn, layer.mlp
    if not hasattr(attention, "qkv"):
        return layer(entering, None)  # type: ignore[no-any-return]
    qkv = attention.qkv(layer.layer_norm1(entering)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    hidden = entering + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + mlp.fc2(_activated(mlp, layer.layer_norm2(hidden)))  # type: ignore[no-any-return]


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
