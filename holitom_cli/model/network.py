"""The parts of a LLaVA-OneVision network that are run, under the names that checkpoints have for their weights.

The library's own network takes longer to import than a small checkpoint to load. These modules hold weights and widths
alone: `layers` runs them, and the library's network can be had on the same weights (`stock`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holitom_cli.model.config import Config, TextConfig, VisionConfig


class Network(nn.Module):
    """All parts, their parameters without memory; what the frequencies of positions need has some."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        """In one number format."""
        super().__init__()
        self.config, self.dtype = config, dtype
        made: dict[str, Any] = {"dtype": dtype, "device": torch.device("meta")}
        width = config.text_config.hidden_size
        self.model = _holder()
        self.model.image_newline = nn.Parameter(torch.empty(width, **made))
        self.model.vision_tower = _Tower(config.vision_config, made)
        self.model.multi_modal_projector = _Projector(config, made)
        self.model.language_model = _Decoder(config.text_config, made)
        self.lm_head = _Linear(width, config.text_config.vocab_size, bias=False, **made)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight


class _Bare:
    """A layer without weights yet. To draw some where there is no memory imports torch's whole compiler."""

    def reset_parameters(self) -> None:
        """Leave them be."""


class _Linear(_Bare, nn.Linear):
    pass


class _Conv2d(_Bare, nn.Conv2d):
    pass


class _Embedding(_Bare, nn.Embedding):
    pass


class _LayerNorm(_Bare, nn.LayerNorm):
    pass


def _holder() -> Any:
    """A module that has parts and does nothing by itself."""
    return nn.Module()


class _Tower(nn.Module):
    def __init__(self, config: VisionConfig, made: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = _Patches(config, made)
        self.encoder = _holder()
        self.encoder.layers = nn.ModuleList(_TowerLayer(config, made) for _ in range(config.num_hidden_layers))
        # Not run, since features are taken before it; but the library's network has it.
        self.post_layernorm = _LayerNorm(config.hidden_size, config.layer_norm_eps, **made)


class _Patches(nn.Module):
    def __init__(self, config: VisionConfig, made: dict[str, Any]) -> None:
        super().__init__()
        width, side = config.hidden_size, config.patch_size
        self.patch_embedding = _Conv2d(config.num_channels, width, side, stride=side, **made)
        self.position_embedding = _Embedding((config.image_size // side) ** 2, width, **made)

    def forward(self, pixels: Tensor) -> Tensor:
        """(f, 3, H, W) -> (f, T, C)."""
        patches: Tensor = self.patch_embedding(pixels)
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight


class _TowerLayer(nn.Module):
    def __init__(self, config: VisionConfig, made: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.layer_norm1 = _LayerNorm(width, config.layer_norm_eps, **made)
        self.layer_norm2 = _LayerNorm(width, config.layer_norm_eps, **made)
        self.self_attn = _holder()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.self_attn.add_module(name, _Linear(width, width, **made))
        self.self_attn.num_heads = config.num_attention_heads
        self.self_attn.scale = (width // config.num_attention_heads) ** -0.5
        self.mlp = _holder()
        self.mlp.fc1, self.mlp.fc2 = _Linear(width, inner, **made), _Linear(inner, width, **made)
        self.mlp.config, self.mlp.activation_fn = config, _activation(config.hidden_act)


class _Projector(nn.Module):
    def __init__(self, config: Config, made: dict[str, Any]) -> None:
        super().__init__()
        width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = _Linear(config.vision_config.hidden_size, width, bias, **made)
        self.act = _activation(config.projector_hidden_act)
        self.linear_2 = _Linear(width, width, bias, **made)


class _Decoder(nn.Module):
    def __init__(self, config: TextConfig, made: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size, **made)
        self.layers = nn.ModuleList(_DecoderLayer(config, at, made) for at in range(config.num_hidden_layers))
        self.norm = _Norm(config, made)
        self.rotary_emb = _Positions(config)


class _DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, index: int, made: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        head, heads, kv_heads = config.head_width, config.num_attention_heads, config.num_key_value_heads
        self.input_layernorm, self.post_attention_layernorm = _Norm(config, made), _Norm(config, made)
        self.self_attn = _holder()
        for name, count in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            self.self_attn.add_module(name, _Linear(width, count * head, **made))
        self.self_attn.o_proj = _Linear(heads * head, width, bias=False, **made)
        self.self_attn.config, self.self_attn.layer_idx = config, index
        self.self_attn.head_dim, self.self_attn.scaling = head, head**-0.5
        self.self_attn.num_key_value_groups = heads // kv_heads
        self.mlp = _holder()
        for name in ("gate_proj", "up_proj"):
            self.mlp.add_module(name, _Linear(width, inner, bias=False, **made))
        self.mlp.down_proj = _Linear(inner, width, bias=False, **made)
        self.mlp.config, self.mlp.act_fn = config, _activation(config.hidden_act)


class _Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, config: TextConfig, made: dict[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, **made))
        self.variance_epsilon = config.rms_norm_eps

    def forward(self, states: Tensor) -> Tensor:
        return F.rms_norm(states, self.weight.shape, self.weight, self.variance_epsilon)


class _Positions(nn.Module):
    """Rotary positions."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.head_width
        steps = torch.arange(0, width, 2, dtype=torch.float32) / width
        self.frequencies = nn.Buffer(1 / config.rope_theta**steps, persistent=False)

    def forward(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, S) int64 -> cosines and sines (B, S, d) in the number format of the states."""
        angles = positions[..., None].float() * self.frequencies
        both = torch.cat((angles, angles), -1)
        return both.cos().to(states.dtype), both.sin().to(states.dtype)


def _activation(name: str) -> nn.Module:
    """One of `config.ACTIVATIONS`."""
    if name.startswith("gelu"):
        return nn.GELU("tanh" if name == "gelu_pytorch_tanh" else "none")
    return nn.SiLU() if name == "silu" else nn.ReLU()
