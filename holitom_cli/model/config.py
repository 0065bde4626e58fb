"""What a checkpoint's config.json says, as far as running it needs that; what it leaves out is as the library has it.

Read without the library, whose import takes longer than a small checkpoint to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

C = TypeVar("C")
ACTIVATIONS = frozenset({"gelu", "gelu_pytorch_tanh", "relu", "silu"})

_TOWER = {  # where there is no vision_config at all
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Of a SigLIP tower."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Of a Qwen2 language model."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 0  # 0: the heads share hidden_size
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, slots=True)
class Config:
    """Of a LLaVA-OneVision model."""

    text_config: TextConfig
    vision_config: VisionConfig
    raw: Mapping[str, Any]  # everything that is said, for the library
    image_token_index: int = 151646
    video_token_index: int = 151647
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int = -1
    tie_word_embeddings: bool = False

    @property
    def end_token_ids(self) -> Any:
        """Of the language model: an id, several, or None."""
        return _part(self.raw, "text_config").get("eos_token_id")

    def librarys(self) -> Any:
        """The same as a LlavaOnevisionConfig."""
        from transformers import LlavaOnevisionConfig

        return LlavaOnevisionConfig.from_dict(dict(self.raw))


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Take out of config.json what is needed.

    Raises:
        ValueError: an entry is no such value, or asks for what is not supported.
    """
    text, tower = _part(raw, "text_config"), _part(raw, "vision_config")
    _check_kind(raw, text, tower)
    if text.get("num_key_value_heads", 1) is None:  # as many as there are
        text = text | {"num_key_value_heads": text.get("num_attention_heads")}
    language = _made(TextConfig, text | {"rope_theta": _rope_theta(text)})
    tied = {"tie_word_embeddings": raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")}
    ids = {f"{kind}_token_index": raw[f"{kind}_token_id"] for kind in ("image", "video") if f"{kind}_token_id" in raw}
    vision = _made(VisionConfig, _TOWER if raw.get("vision_config") is None else tower)
    if vision.hidden_size % vision.num_attention_heads:
        raise ValueError(f"{vision.num_attention_heads} heads cannot share {vision.hidden_size} features")
    if language.num_attention_heads % language.num_key_value_heads:
        raise ValueError(
            f"{language.num_attention_heads} heads cannot share {language.num_key_value_heads} heads of keys"
        )
    made = _made(Config, {**raw, **ids, **tied, "text_config": language, "vision_config": vision, "raw": raw})
    for name in (language.hidden_act, vision.hidden_act, made.projector_hidden_act):
        if name not in ACTIVATIONS:
            raise ValueError(f"the activation {name!r} is not supported")
    return made


def _part(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = raw.get(name) or {}
    if not isinstance(part, dict):
        raise ValueError(f"{name} is no object")
    return part


def _check_kind(raw: Mapping[str, Any], text: Mapping[str, Any], tower: Mapping[str, Any]) -> None:
    kinds = tower.get("model_type", "siglip_vision_model"), text.get("model_type", "qwen2")
    if kinds != ("siglip_vision_model", "qwen2"):
        raise ValueError(f"it is made of {kinds[0]} and {kinds[1]}, not SigLIP and Qwen2")
    layer, strategy = raw.get("vision_feature_layer", -1), raw.get("vision_feature_select_strategy", "full")
    if not isinstance(layer, int) or strategy != "full":
        raise ValueError(f"features of layer {layer} with strategy {strategy!r} are not supported")
    windowed = text.get("use_sliding_window") and text.get("sliding_window", 4096) is not None
    named = text.get("layer_types")
    depth, first = text.get("num_hidden_layers", 32), text.get("max_window_layers", 28)
    if "sliding_attention" in (named or ()) or (named is None and windowed and first < depth):
        raise ValueError("sliding-window attention is not supported")


def _rope_theta(text: Mapping[str, Any]) -> Any:
    """The base of rotary positions, from where releases 5 and 4 of the library write it; None where it is not said."""
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"positions of type {kind!r} are not supported")
    return rope.get("rope_theta", text.get("rope_theta"))


def _made(kind: type[C], values: Mapping[str, Any]) -> C:
    """A configuration of those values that it has and that are given."""
    given = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = values.get(field.name)
        if value is None:
            continue
        if field.default is not MISSING and not _fits(value, field.name, field.default):
            raise ValueError(f"{field.name} is {value!r}")
        given[field.name] = value
    return kind(**given)


def _fits(value: Any, name: str, default: Any) -> bool:
    """Whether a value is one of the default's kind; widths, depths and counts are at least 1."""
    if isinstance(default, float):
        return type(value) in (int, float) and value > 0
    if type(value) is not int or type(default) is not int:
        return type(value) is type(default)
    return default <= 0 or value >= (0 if name.endswith("_index") else 1)
