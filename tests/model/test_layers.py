"""Joined and fused layers against the library's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from holitom_cli import load_model
from holitom_cli.model import Model, layers
from holitom_cli.model.layers import Joined, decoder_layer, tower_layers
from holitom_cli.model.vision import encode


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(tiny_checkpoint, device="cpu", dtype="float32")


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_are_the_layers_and_share_their_weights(bias: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, width, bias=bias) for width in (4, 2, 3)]
    states = torch.randn(2, 5, 6)
    apart = torch.cat([layer(states) for layer in layers], -1)
    joined = Joined(*layers)
    torch.testing.assert_close(joined(states), apart)
    torch.testing.assert_close(torch.cat([layer(states) for layer in layers], -1), apart)  # the layers still work
    whole = joined.weight.untyped_storage()
    assert all(layer.weight.untyped_storage().data_ptr() == whole.data_ptr() for layer in layers)
    assert (Joined(*reversed(layers))(states) - apart).abs().max() > 0.1  # control


@torch.no_grad()
def test_tower_layers_are_the_librarys(model: Model) -> None:
    states = torch.randn(2, 20, model.info.shape.vision_hidden, generator=torch.Generator().manual_seed(1))
    layers = model.vision_tower.encoder.layers
    expected, entering = states, states
    for layer in model.stock.model.vision_tower.encoder.layers:
        entering, expected = expected, layer(expected, None)
    assert len(layers) > 1
    left, entered = tower_layers(layers, states)
    torch.testing.assert_close(left, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entered, entering, atol=1e-5, rtol=1e-5)
    assert (tower_layers(layers, states.flip(1))[0] - expected).abs().max() > 0.1  # control


def test_a_spread_tower_is_not_joined(tiny_checkpoint: Path) -> None:
    spread = load_model(tiny_checkpoint, device_map={"": "cpu"}, dtype="float32")
    assert not any(isinstance(module, Joined) for module in spread.network.modules())


def encoded_frames(model: Model, pixels: Tensor) -> tuple[int, Tensor]:
    """How many frames went through the tower, and their tokens."""
    seen: list[int] = []
    hook = model.vision_tower.embeddings.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        tokens = encode(model, pixels).tokens
    finally:
        hook.remove()
    return sum(seen), tokens


def test_a_frame_again_is_not_encoded_again(model: Model) -> None:
    """Only right after itself; the same picture later on is one more."""
    pictures = torch.randn(3, 3, 384, 384, generator=torch.Generator().manual_seed(2))
    order = [0, 0, 1, 1, 1, 2, 0, 0, 2]
    count, tokens = encoded_frames(model, pictures[order])
    assert count == 5
    alone = torch.stack([encode(model, picture[None]).tokens[0] for picture in pictures])
    torch.testing.assert_close(tokens, alone[order], atol=1e-5, rtol=1e-5)
    nearly = pictures[order].clone()
    nearly[4, 1, 200, 200] += 1e-3  # one value of one pixel
    assert encoded_frames(model, nearly)[0] == 6


# --- decoder layers --------------------------------------------------------------------------------


class Everything:
    """A cache that keeps what it is given, as the library's does."""

    def __init__(self) -> None:
        self.parts: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if layer in self.parts:
            old = self.parts[layer]
            key, value = torch.cat((old[0], key), 2), torch.cat((old[1], value), 2)
        self.parts[layer] = (key, value)
        return key, value


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
@pytest.mark.parametrize("at_once", [8192, 3])
def test_a_decoder_layer_is_the_librarys(
    model: Model, masked: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of two rows, then a token of each; with a mask the second row's first keys are hidden from it."""
    monkeypatch.setattr(layers, "_MLP_TOKENS", at_once)
    language, (batch, length) = model.language_model, (2, 9)
    generator = torch.Generator().manual_seed(3)
    prompt, token = (torch.randn(batch, count, model.info.shape.hidden, generator=generator) for count in (length, 1))
    causal = torch.full((length, length), -torch.inf).triu(1).expand(batch, 1, -1, -1)
    hidden = torch.zeros(batch, 1, 1, length + 1)
    hidden[1, ..., :4] = -torch.inf
    stock = model.stock.model.language_model
    assert len(stock.layers) == len(language.layers) > 1
    for layer, librarys in zip(language.layers, stock.layers, strict=True):
        ours, theirs = Everything(), Everything()
        for states, start, mask in ((prompt, 0, causal), (token, length, hidden)):
            places = torch.arange(start, start + states.shape[1])[None]
            rope = language.rotary_emb(states, places)
            assert all(map(torch.equal, rope, stock.rotary_emb(states, places)))
            seen = mask if masked else None
            wanted = librarys(states, attention_mask=seen, position_embeddings=rope, past_key_values=theirs)
            got = decoder_layer(layer, states, rope, seen, ours)
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
            shifted = language.rotary_emb(states, places + 5)
        off = decoder_layer(layer, token, shifted, None, Everything())
        assert (off - wanted).abs().max() > 1e-3  # control: another place, nothing to attend to
        for mine, other in zip(
            ours.parts[layer.self_attn.layer_idx], theirs.parts[layer.self_attn.layer_idx], strict=True
        ):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_queries_and_gates_are_joined_when_a_checkpoint_is_loaded(model: Model) -> None:
    for layer in model.language_model.layers:
        assert isinstance(layer.self_attn.qkv, Joined)
        assert isinstance(layer.mlp.gate_up, Joined)
        assert layer.mlp.up_proj.weight.untyped_storage().data_ptr() == layer.mlp.gate_up.weight.data_ptr()
