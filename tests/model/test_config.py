"""What we read of a config.json is what the library reads of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from holitom_cli.model.config import Config, parse_config
from tests.make_random_checkpoint import RANDOM

# As releases 4 of the library wrote it: what equals a default is left out, positions have their base at the top.
PUBLISHED = {
    "model_type": "llava_onevision",
    "image_token_index": 151646,
    "projector_hidden_act": "gelu",
    "text_config": {
        "model_type": "qwen2",
        "eos_token_id": 151645,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": True,
        "vocab_size": 152000,
    },
    "video_token_index": 151647,
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
CASES: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "nothing": {},
    "ours": json.loads((RANDOM / "config.json").read_text()),
    "some text": {"text_config": {"hidden_size": 64, "num_attention_heads": 32}},
    "some vision": {"vision_config": {"hidden_size": 96, "layer_norm_eps": 1e-5}},
    "rope at the top": {"text_config": {"rope_theta": 5.0}},
    "rope of release 5": {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}},
    "rope scaled by nothing": {"text_config": {"rope_scaling": None, "rope_theta": 9.0}},
    "as many heads of keys": {"text_config": {"num_attention_heads": 28, "num_key_value_heads": None}},
    "vision of nothing": {"vision_config": {}},
    "rope of both": {
        "text_config": {
            "rope_scaling": {"rope_type": "default", "rope_theta": 3.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
        }
    },
    "wide heads": {"text_config": {"head_dim": 12}},
    "other names": {"image_token_id": 5, "video_token_id": 9},
    "tied outside": {"tie_word_embeddings": True},
    "window that is off": {"text_config": {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1}},
    "window above all layers": {
        "text_config": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 32}
    },
    "nulls": {"text_config": {"head_dim": None, "eos_token_id": None}, "multimodal_projector_bias": False},
    "several ends": {"text_config": {"eos_token_id": [1, 2]}},
    "another layer": {"vision_feature_layer": -2, "projector_hidden_act": "relu"},
}


def facts(config: Any) -> dict[str, Any]:
    """What the library makes of a configuration, in our names."""
    text, vision = config.text_config, config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    language = {name: getattr(text, name) for name in asdict(parse_config({}).text_config) if hasattr(text, name)}
    tower = {name: getattr(vision, name) for name in asdict(parse_config({}).vision_config)}
    names = ("projector_hidden_act", "multimodal_projector_bias", "vision_feature_layer", "tie_word_embeddings")
    return {
        "text": language | {"rope_theta": text.rope_parameters["rope_theta"], "head_dim": head},
        "vision": tower,
        "ids": (config.image_token_id, config.video_token_id, text.eos_token_id),
        **{name: getattr(config, name) for name in names},
    }


def ours(config: Config) -> dict[str, Any]:
    names = ("projector_hidden_act", "multimodal_projector_bias", "vision_feature_layer", "tie_word_embeddings")
    return {
        "text": asdict(config.text_config) | {"head_dim": config.text_config.head_width},
        "vision": asdict(config.vision_config),
        "ids": (config.image_token_index, config.video_token_index, config.end_token_ids),
        **{name: getattr(config, name) for name in names},
    }


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_the_library_reads(case: str) -> None:
    from transformers import LlavaOnevisionConfig

    librarys = LlavaOnevisionConfig.from_dict(json.loads(json.dumps(CASES[case])))
    config = parse_config(CASES[case])
    assert ours(config) == facts(librarys)
    assert facts(config.librarys()) == facts(librarys)
    assert ours(parse_config(CASES[case] | {"vision_feature_layer": -3})) != facts(librarys)  # control


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"text_config": "qwen2"}, "text_config is no object"),
        ({"text_config": {"hidden_size": "64"}}, "hidden_size is '64'"),
        ({"text_config": {"hidden_size": 64.0}}, "hidden_size is 64.0"),
        ({"text_config": {"num_hidden_layers": True}}, "num_hidden_layers is True"),
        ({"text_config": {"num_hidden_layers": 0}}, "num_hidden_layers is 0"),
        ({"text_config": {"rms_norm_eps": -1.0}}, "rms_norm_eps is -1.0"),
        ({"text_config": {"rope_theta": "big"}}, "rope_theta is 'big'"),
        ({"text_config": {"num_key_value_heads": 5}}, "32 heads cannot share 5 heads of keys"),
        ({"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, "positions of type 'linear'"),
        (
            {"text_config": {"rope_scaling": {"type": "yarn"}, "rope_parameters": {"rope_type": "default"}}},
            "positions of type 'yarn'",
        ),
        ({"text_config": {"use_sliding_window": True}}, "sliding-window"),
        ({"text_config": {"layer_types": ["sliding_attention"]}}, "sliding-window"),
        ({"vision_config": {"image_size": [384, 384]}}, r"image_size is \[384, 384\]"),
        ({"vision_config": {"patch_size": -1}}, "patch_size is -1"),
        ({"vision_config": {"hidden_size": 770}}, "12 heads cannot share 770 features"),
        ({"vision_feature_layer": "last"}, "features of layer last"),
        ({"video_token_index": -1}, "video_token_index is -1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    ],
)
def test_what_is_no_such_value_is_named(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_config(raw)


def test_both_bundled_configurations_are_read() -> None:
    demo = Path(__file__).parents[2] / "holitom_cli" / "assets" / "demo" / "config.json"
    assert parse_config(json.loads(demo.read_text())).text_config.num_hidden_layers == 7
