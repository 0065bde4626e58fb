"""The paper's published figures, and the true count against what torch counts while the model runs."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from holitom_cli import flops
from holitom_cli.model import vision
from holitom_cli.model.loading import Model, load_model
from holitom_cli.model.prefill import prefill
from holitom_cli.types import ModelShape

TERA = 1e12

# LLaVA-OneVision 7B, as its configuration states.
SEVEN_B = ModelShape(
    layers=28,
    hidden=3584,
    intermediate=18944,
    heads=28,
    kv_heads=4,
    head_dim=128,
    vocab=152128,
    vision_layers=26,
    vision_hidden=1152,
    vision_intermediate=4304,
    vision_patches=729,
    patch_pixels=3 * 14**2,
)


def published(visual: list[int]) -> float:
    """TFLOPs of the prefill by the paper's formula, to the digit that it prints."""
    return round(flops.paper_prefill(SEVEN_B, visual) / TERA, 1)


@pytest.mark.parametrize(
    ("share", "without", "with_merge"), [(0.25, 8.7, 7.1), (0.20, 7.0, 5.8), (0.15, 5.2, 4.3), (0.10, 3.4, 2.8)]
)
def test_the_papers_table(share: float, without: float, with_merge: float) -> None:
    n = 32 * ceil(196 * share)
    assert published([n] * 28) == without
    assert published([n] * 18 + [n // 2] * 10) == with_merge
    assert published([n] * 17 + [n // 2] * 11) != with_merge or share == 0.10  # control: a layer is seen


def test_the_papers_other_rows() -> None:
    assert published([6272] * 28) == 40.8  # every token
    assert published([6272] * 2 + [1254] * 26) == 9.3  # FastV: four fifths dropped after layer 2
    assert published([6272] * 7 + [3136] * 7 + [1568] * 7 + [784] * 7) != 40.8


def test_the_papers_formula_by_hand() -> None:
    tiny = replace(SEVEN_B, hidden=2, intermediate=5)
    assert flops.paper_prefill(tiny, [3]) == 4 * 3 * 4 + 2 * 9 * 2 + 2 * 3 * 2 * 5
    assert flops.paper_prefill(tiny, [3, 3, 1]) == 2 * flops.paper_prefill(tiny, [3]) + flops.paper_prefill(tiny, [1])


@pytest.fixture(scope="module")
def model(tiny_checkpoint: object) -> Model:
    return load_model(str(tiny_checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def eager(tiny_checkpoint: object) -> Model:
    """The library's own layers in plain products, which torch counts, as it does not the CPU's fused attention."""
    spread = load_model(str(tiny_checkpoint), device_map={"": "cpu"}, dtype="float32")
    spread.network.set_attn_implementation("eager")
    return spread


@pytest.mark.parametrize("tokens", [1, 7, 150])
def test_prefill_is_what_torch_counts(eager: Model, tokens: int) -> None:
    shape = eager.info.shape
    embeds = torch.randn(tokens, shape.hidden)
    with FlopCounterMode(display=False) as counter:
        prefill(eager.language_model, eager.lm_head, embeds, range(0), {})
    masked = shape.layers * 4 * shape.heads * shape.head_dim * (tokens * (tokens - 1) // 2)  # eager computes it too
    assert flops.true_prefill(shape, [tokens] * shape.layers) == counter.get_total_flops() - masked


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_vision_is_what_torch_counts(eager: Model, attention: bool, keys: bool) -> None:
    shape, frames = eager.info.shape, 3
    with FlopCounterMode(display=False) as counter:
        vision.encode(eager, torch.randn(frames, 3, 384, 384), attention=attention, keys=keys)
    assert flops.true_vision(shape, frames, attention, keys) == counter.get_total_flops()


def test_true_figures_at_the_7b_shape() -> None:
    """Weights of 7B are read once a token: about 2 FLOPs a parameter."""
    parameters = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    one = flops.true_prefill(SEVEN_B, [1] * 28)
    assert one == pytest.approx(2 * parameters + 2 * 3584 * 152128, rel=1e-4)
    full = flops.true_prefill(SEVEN_B, [6273] * 28) + flops.true_vision(SEVEN_B, 32, attention=False)
    assert 80 < flops.true_prefill(SEVEN_B, [6273] * 28) / TERA < 100
    assert full > flops.true_prefill(SEVEN_B, [6273] * 28)
