"""Random weights at published shapes: the shapes are right, and nothing is drawn where there is no room."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holitom_cli.errors import DeviceError, UsageError
from holitom_cli.model import memory, shapes
from holitom_cli.model.loading import shape_of
from holitom_cli.model.network import Network

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}
TOWER = shapes._TOWER | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes._TEXT, "tiny", TINY)
    monkeypatch.setitem(shapes._TEXT, "loose", TINY | {"tie_word_embeddings": False})
    monkeypatch.setattr(shapes, "_TOWER", TOWER)


@pytest.mark.parametrize(("name", "parameters"), [("7b", 8_030_807_584), ("0.5b", 893_675_552)])
def test_published_shapes_have_their_parameters(name: str, parameters: int) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    config = shapes.published_config(name)
    with torch.device("meta"):
        librarys: Any = LlavaOnevisionForConditionalGeneration._from_config(config.librarys(), dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in librarys.parameters()) == parameters
    assert sum(parameter.numel() for parameter in Network(config, torch.bfloat16).parameters()) == parameters
    assert shape_of(config).vision_patches == 729


@pytest.mark.usefixtures("tiny")
def test_weights_are_drawn_in_the_number_format_and_shared_where_published_ones_are() -> None:
    one = shapes.build_shape("tiny", device="cpu", dtype="bfloat16")
    parameters = dict(one.network.named_parameters())
    assert {part.dtype for part in parameters.values()} == {torch.bfloat16}
    assert not any(part.is_meta for part in (*parameters.values(), *one.network.buffers()))
    assert one.lm_head.weight is one.language_model.embed_tokens.weight
    loose = shapes.build_shape("loose", device="cpu")
    assert loose.lm_head.weight is not loose.language_model.embed_tokens.weight
    assert loose.dtype == torch.float32
    spread = float(one.language_model.layers[0].mlp.down_proj.weight.float().std())
    assert spread == pytest.approx(0.02, rel=0.1)
    assert (one.language_model.norm.weight == 1).all()
    again = shapes.build_shape("tiny", device="cpu", dtype="bfloat16")
    assert all(torch.equal(part, parameters[name]) for name, part in again.network.named_parameters())
    assert (one.info.id, one.info.kind) == ("shape:tiny", "random")


@pytest.mark.usefixtures("tiny")
def test_buffers_are_those_of_a_loaded_model() -> None:
    """Rotary frequencies are no parameters; had they been left unset, positions would mean nothing."""
    model = shapes.build_shape("tiny", device="cpu")
    frequencies = model.language_model.rotary_emb.frequencies
    width = TINY["hidden_size"] // TINY["num_attention_heads"]
    torch.testing.assert_close(frequencies, 1e6 ** (-torch.arange(0, width, 2) / width))


def test_a_device_that_is_too_small_is_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "free_bytes", lambda _: 12 * 1024**3)
    with pytest.raises(DeviceError, match=r"shape:7b take 15\.0 GiB, but CPU has 12\.0 GiB free") as caught:
        shapes.build_shape("7b", device="cpu", dtype="bfloat16")
    assert caught.value.hint.startswith("Use --quantize int8, shape:0.5b, ")
    with pytest.raises(DeviceError, match=r"shape:7b take 29\.9") as caught:
        shapes.build_shape("7b", device="cpu", dtype="float32")
    assert "--quantize int8" in caught.value.hint
    monkeypatch.setattr(shapes, "free_bytes", lambda _: 1024**3)
    with pytest.raises(DeviceError, match=r"shape:7b take 5\.0 GiB") as caught:
        shapes.build_shape("7b", device="cpu", dtype="bfloat16", quantize="int4")
    assert "--quantize" not in caught.value.hint


def test_unknown_shapes_are_named() -> None:
    with pytest.raises(UsageError, match=r"no shape:70b"):
        shapes.build_shape("70b", device="cpu")


def test_free_memory_is_known_on_a_cpu() -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert free is not None
    assert free > 2**20
