"""Models with random weights at the shapes of published checkpoints: speed needs the shapes, not the knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holitom_cli.errors import DeviceError, UsageError
from holitom_cli.model.config import Config, parse_config
from holitom_cli.model.device import choose_device, choose_dtype, device_name, memory_advice
from holitom_cli.model.hub import Source
from holitom_cli.model.layers import join_language, join_tower
from holitom_cli.model.loading import Checkpoint, Model, describe, shape_of
from holitom_cli.model.memory import free_bytes
from holitom_cli.model.network import Network
from holitom_cli.model.preprocess import Preprocessor
from holitom_cli.model.quantise import STORED_AT_ONCE, Packed, Quantize, check_quantize, pieces, store
from holitom_cli.model.weights import fill, packed_places, weight_bytes

PREFIX = "shape:"

# Widths, depths and vocabularies that the published configurations state (llava-hf/llava-onevision-qwen2-*-ov-hf).
_TEXT: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152128,
        "tie_word_embeddings": False,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 152000,
        "tie_word_embeddings": True,
    },
}
_TOWER: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_PLACEHOLDERS = (151646, 151647)  # image and video
_SPREAD = 0.02  # of the weights, as the published configurations initialise them
_SMALLER = "Use shape:0.5b, --dtype bfloat16, or another --device."


@dataclass(frozen=True)
class ShapeCheckpoint(Checkpoint):
    """A shape without files: it has a preprocessor, and neither a tokenizer nor a chat template."""

    directory = None

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """As the published checkpoints' files say, by the tower's size."""
        side, half = self.config.vision_config.image_size, (0.5, 0.5, 0.5)
        return Preprocessor("none: random weights", side, side, mode="bicubic", scale=1 / 255, mean=half, std=half)


def published_config(name: str, placeholders: tuple[int, int] = _PLACEHOLDERS) -> Config:
    """The configuration of a shape.

    Args:
        name: "7b" or "0.5b".
        placeholders: ids of the image and the video token.

    Raises:
        UsageError: there is no such shape.
    """
    if name not in _TEXT:
        known = ", ".join(f"{PREFIX}{known}" for known in _TEXT)
        raise UsageError(f"There is no {PREFIX}{name}.", f"Choose one of: {known}.")
    rope = {"rope_type": "default", "rope_theta": 1e6}
    text = _TEXT[name] | {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_parameters": rope}
    return parse_config(
        {
            "model_type": "llava_onevision",
            "holitom_checkpoint": "random",
            "vision_config": _TOWER | {"model_type": "siglip_vision_model"},
            "text_config": text,
            "image_token_index": placeholders[0],
            "video_token_index": placeholders[1],
            "tie_word_embeddings": text["tie_word_embeddings"],
        }
    )


def build_shape(name: str, *, device: str = "auto", dtype: str = "auto", quantize: str | None = None) -> Model:
    """A model with random weights at a published shape, ready to run; it knows no words.

    Args:
        name: "7b" or "0.5b".
        device: as of `load_model`.
        dtype: as of `load_model`.
        quantize: as of `load_model`.

    Raises:
        UsageError: there is no such shape, or no such `quantize`.
        DeviceError: the device is absent, or its free memory does not hold the weights.
    """
    kept_as = check_quantize(quantize)
    target = choose_device(device)
    number_format = choose_dtype(dtype, target)
    config = published_config(name)
    network = random_network(config, target, number_format, label=f"{PREFIX}{name}", quantize=kept_as)
    join_tower(network.model.vision_tower)
    join_language(network.model.language_model)
    source = Source(f"{PREFIX}{name}", Path(), "local")
    checkpoint = ShapeCheckpoint(source, config, shape_of(config), random=True)
    return Model(network, checkpoint, describe(checkpoint, network, target, number_format, kept_as))


def random_network(
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    label: str,
    seed: int = 0,
    quantize: Quantize | None = None,
) -> Network:
    """A network, its weights drawn on the device in their number format: nothing is held twice.

    What is quantised is drawn and quantised piece by piece, so its weights are others than without that.

    Raises:
        DeviceError: the device's free memory does not hold them.
    """
    network = Network(config, dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    _check_memory(shapes, device, dtype, quantize, label)
    stream = torch.Generator(device).manual_seed(seed)
    with memory_advice(device_name(device), f"for {label}", _SMALLER):
        packed = packed_places(shapes, device, quantize)
        fill(network, lambda name, like: _drawn(name, like, device, stream, packed.get(name)))
        network.to(device)  # the buffers
    return network.eval()


def _drawn(
    name: str, like: Tensor, device: torch.device, stream: torch.Generator, place: Packed | None
) -> Tensor | Packed:
    if place is not None:
        for start, stop in pieces(place.shape, STORED_AT_ONCE):
            fresh = torch.empty((stop - start, like.shape[1]), dtype=like.dtype, device=device)
            store(place.rows(start, stop), fresh.normal_(0, _SPREAD, generator=stream))
        return place
    fresh = torch.empty(like.shape, dtype=like.dtype, device=device)
    if like.ndim > 1 or name.endswith("image_newline"):
        return fresh.normal_(0, _SPREAD, generator=stream)
    return fresh.fill_(1.0 if name.endswith("weight") else 0.0)  # norms and biases


def _check_memory(
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize | None,
    label: str,
) -> None:
    needed, free = weight_bytes(shapes, dtype, quantize), free_bytes(device)
    if free is None or needed <= free:
        return
    formats: tuple[Quantize, ...] = ("int8", "int4")
    smaller = [f"--quantize {kept_as}, " for kept_as in formats if weight_bytes(shapes, dtype, kept_as) <= free]
    raise DeviceError(
        f"The weights of {label} take {needed / 1024**3:.1f} GiB, but {device_name(device)} has "
        f"{free / 1024**3:.1f} GiB free.",
        _SMALLER.replace("Use ", f"Use {smaller[0] if smaller else ''}"),
    )
