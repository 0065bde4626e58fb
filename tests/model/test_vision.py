"""What the tower hands to methods, against the library's own modules run whole."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from holitom_cli import load_model, methods, watch
from holitom_cli.methods import Method
from holitom_cli.model import Model
from holitom_cli.model.vision import encode, pool, project
from holitom_cli.types import Frames, VideoFeatures, VisualTokens


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(tiny_checkpoint, device="cpu", dtype="float32")


@pytest.mark.parametrize("grid", [27, 14, 7, 1])
def test_pool_is_the_librarys_resize(grid: int) -> None:
    maps = torch.randn(2, grid**2, 5, generator=torch.Generator().manual_seed(grid))
    planes = maps.view(2, grid, grid, 5).permute(0, 3, 1, 2).contiguous()
    half = (grid + 1) // 2
    resized = F.interpolate(planes, size=(half, half), mode="bilinear").permute(0, 2, 3, 1).reshape(2, half**2, 5)
    assert torch.equal(pool(maps), resized)
    assert grid == 1 or not torch.allclose(pool(maps.flip(1)), resized)  # control: another order of patches


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_pooling_early_is_pooling_late(model: Model, dtype: torch.dtype, bound: float) -> None:
    """Relative, in the Frobenius norm; the library pools what leaves the projector."""
    projector = deepcopy(model.stock.model.multi_modal_projector).to(dtype)
    torch.nn.init.normal_(projector.linear_2.bias)
    hidden = torch.randn(2, 729, model.info.shape.vision_hidden, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = pool(projector.float()(hidden.float()))
    part: Any = SimpleNamespace(projector=projector.to(dtype), device=model.device)
    found = project(part, hidden)

    def off(other: torch.Tensor) -> float:
        return float((found.float() - other).norm() / exact.norm())

    assert off(exact) < bound
    assert off(pool(projector.float()(hidden.float().flip(1)))) > 10 * bound  # control: another order of patches


def test_keys_are_the_last_layers_mean_over_heads(model: Model) -> None:
    pixels = torch.randn(3, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    tower = model.stock.model.vision_tower
    projection = tower.encoder.layers[model.info.shape.vision_layers - 1].self_attn.k_proj
    hook = projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    try:
        tower(pixels)
    finally:
        hook.remove()
    heads = model.checkpoint.config.vision_config.num_attention_heads
    expected = pool(seen[0].unflatten(-1, (heads, -1)).mean(2))
    keys = encode(model, pixels, keys=True).keys
    assert keys is not None
    torch.testing.assert_close(keys, expected)
    assert not torch.allclose(keys, pool(seen[0].unflatten(-1, (-1, heads)).mean(3)))  # control: heads split otherwise


def test_features_nobody_asked_for_are_not_computed(model: Model) -> None:
    features = encode(model, torch.zeros(1, 3, 384, 384), attention=False)
    assert features.attention is None
    assert features.keys is None


def test_a_method_that_asks_for_keys_gets_them(model: Model) -> None:
    @dataclass(frozen=True)
    class Curious(Method):
        needs_keys: ClassVar[bool] = True
        seen: ClassVar[list[VideoFeatures]] = []

        def compress(self, video: VideoFeatures) -> VisualTokens:
            self.seen.append(video)
            return methods.get("full").compress(video)

    Curious.__module__ = "holitom_cli.methods.full"  # where messages take a method's name from
    frames = Frames(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2.0))
    watch(model, frames, method=Curious())
    assert [video.keys is None for video in Curious.seen] == [False]
    assert Curious.seen[0].attention is None
