"""The controls `random` and `uniform` against plain loops: the same budget, and no thought."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from holitom_cli import methods
from holitom_cli.errors import MethodError
from holitom_cli.types import VideoFeatures, VisualTokens

SHAPES = [(1, 1), (1, 16), (3, 25), (8, 196), (33, 4)]
RATIOS = [1e-9, 0.05, 0.15, 1 / 3, 0.5, 0.999, 1.0]


def clip(frames: int, patches: int) -> VideoFeatures:
    """Every token's one number is its own place in reading order."""
    tokens = torch.arange(frames * patches, dtype=torch.float32).view(frames, patches, 1)
    return VideoFeatures(tokens, None, round(patches**0.5))


def places(visual: VisualTokens) -> list[int]:
    """Where the kept tokens came from, as their embeddings say."""
    return [int(value) for value in visual.embeds[:, 0]]


def evenly(total: int, count: int) -> list[int]:
    """The middle of each of `count` stretches, by looking at every token."""
    kept = []
    for stretch in range(count):
        middle = (stretch + 0.5) * total / count
        kept.append(max(place for place in range(total) if place <= middle + 1e-9))
    return kept


@pytest.mark.parametrize(("frames", "patches"), SHAPES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_uniform_takes_the_middle_of_equal_stretches(frames: int, patches: int, ratio: float) -> None:
    count = max(1, round(ratio * frames * patches))
    visual = methods.get("uniform", retain_ratio=ratio).compress(clip(frames, patches))
    expected = evenly(frames * patches, count)
    assert places(visual) == expected
    assert len(set(expected)) == count
    if count < frames * patches:
        assert places(visual) != list(range(count))  # control: the first ones are others


@pytest.mark.parametrize(("frames", "patches"), SHAPES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_random_keeps_the_budget_in_reading_order(frames: int, patches: int, ratio: float) -> None:
    visual = methods.get("random", retain_ratio=ratio).compress(clip(frames, patches))
    kept = places(visual)
    assert len(kept) == max(1, round(ratio * frames * patches))
    assert kept == sorted(set(kept))
    assert [int(f) * patches + int(c) for f, c in zip(visual.frame, visual.cell, strict=True)] == kept
    assert visual.source.flatten().tolist() == [kept.index(p) if p in kept else -1 for p in range(frames * patches)]


def test_random_follows_its_seed_and_nobody_elses() -> None:
    video = clip(8, 196)
    before = torch.random.get_rng_state()
    first, again, other = (places(methods.get("random", seed=seed).compress(video)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_draws_every_place_alike() -> None:
    video = clip(2, 9)
    counts = torch.zeros(18)
    for seed in range(900):
        counts[places(methods.get("random", retain_ratio=1 / 3, seed=seed).compress(video))] += 1
    # each place is drawn with probability 1/3: 300 of 900, standard deviation 14
    assert (counts - 300).abs().max() < 5 * 14
    lopsided = counts + torch.linspace(-90, 90, 18)
    assert (lopsided - 300).abs().max() >= 5 * 14  # control


@pytest.mark.parametrize("name", ["random", "uniform"])
def test_controls_have_the_budget_of_holitoms_outer_stage(name: str) -> None:
    stream = torch.Generator().manual_seed(0)
    tokens = torch.randn(12, 196, 8, generator=stream)
    video = VideoFeatures(tokens, torch.rand(12, 196, generator=stream), 14)
    for ratio in (0.25, 0.1):
        outer = len(methods.get("holitom", retain_ratio=ratio).compress(video))
        control = methods.get(name, retain_ratio=ratio)
        ours = len(control.compress(replace(video, attention=None)))
        assert abs(outer - ours) <= 12  # holitom rounds up once a frame
        assert control.reductions(28) == {}


@pytest.mark.parametrize("name", ["random", "uniform"])
@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(name: str, ratio: float) -> None:
    with pytest.raises(MethodError, match="Setting retain_ratio is"):
        methods.get(name, retain_ratio=ratio)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_outside_its_range_is_refused(seed: int) -> None:
    with pytest.raises(MethodError, match="Setting seed is"):
        methods.get("random", seed=seed)
