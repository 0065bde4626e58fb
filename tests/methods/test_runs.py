"""Runs against plain loops, its budget, and clips whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holitom_cli import methods
from holitom_cli.errors import MethodError
from holitom_cli.methods.inner import Inner
from holitom_cli.methods.runs import Runs
from holitom_cli.types import VideoFeatures, VisualTokens
from tests.methods.test_contract import Clip, features
from tests.methods.test_picking import cosine, picked, rows_of

SHAPES = [
    Clip(1, 3, 8, torch.float32, 0.0),
    Clip(2, 4, 6, torch.float32, 1.0),
    Clip(7, 4, 9, torch.float32, 0.5),
    Clip(13, 5, 16, torch.bfloat16, 0.8),
    Clip(22, 6, 12, torch.float32, 0.7),
]


def slow_runs(video: VideoFeatures, ratio: float, still: float) -> list[list[tuple[int, int]]]:
    """The runs that are kept, each with the frames and cells of its tokens, in reading order."""
    assert video.attention is not None
    rows, attention = rows_of(video), video.attention.tolist()
    frames, patches = len(rows), len(rows[0])
    steps = [(cosine(rows[f][p], rows[f + 1][p]), f, p) for f in range(frames - 1) for p in range(patches)]
    ranked_steps = sorted(steps, reverse=True)
    most = round(still * len(steps))
    unchanged = {(f, p) for place, (cos, f, p) in enumerate(ranked_steps) if most and (place < most or cos >= 0.99)}
    runs: list[list[tuple[int, int]]] = []
    for p in range(patches):
        for f in range(frames):
            if f and (f - 1, p) in unchanged:
                runs[-1].append((f, p))
            else:
                runs.append([(f, p)])
    ranked = [sorted(range(patches), key=lambda p, f=f: -attention[f][p]) for f in range(frames)]  # type: ignore[misc]
    kept: list[list[tuple[int, int]]] = []
    for turn in range(patches):
        for f in sorted(range(frames), key=lambda f: -attention[f][ranked[f][turn]]):
            (run,) = (run for run in runs if (f, ranked[f][turn]) in run)
            if run not in kept and len(kept) < max(1, round(ratio * frames * patches)):
                kept.append(run)
    return sorted(kept)


def assert_like_the_loops(visual: VisualTokens, video: VideoFeatures, ratio: float, still: float) -> None:
    kept = slow_runs(video, ratio, still)
    source = torch.full(video.tokens.shape[:2], -1)
    for row, run in enumerate(kept):
        for place in run:
            source[place] = row
    assert torch.equal(visual.source, source)
    means = [video.tokens[[f for f, _ in run], run[0][1]].double().mean(0).to(video.tokens.dtype) for run in kept]
    torch.testing.assert_close(visual.embeds, torch.stack(means))


@pytest.mark.parametrize("clip", SHAPES, ids=str)
@pytest.mark.parametrize("ratio", [1e-3, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("still", [0.0, 0.3, 0.5])
def test_it_is_what_the_loops_make(clip: Clip, ratio: float, still: float) -> None:
    video = features(clip, seed=3)
    assert_like_the_loops(Runs(ratio, still).compress(video), video, ratio, still)


@pytest.mark.parametrize("other", [Runs(0.1, 0.6), Runs(0.2, 0.5)])
def test_control_the_loops_see_another_setting(other: Runs) -> None:
    video = features(SHAPES[4], seed=3)
    visual = other.compress(video)
    with pytest.raises(AssertionError):
        assert_like_the_loops(visual, video, 0.1, 0.5)


def test_the_budget_is_exact_but_for_a_clip_of_fewer_runs() -> None:
    video = features(Clip(12, 14, 24, torch.float32, 0.6))
    for ratio in (0.05, 0.1, 0.15, 0.4):
        assert len(Runs(ratio).compress(video)) == round(ratio * 12 * 196)
    assert len(Runs("100t").compress(video)) == 100
    runs = 12 * 196 - round(0.5 * 11 * 196)
    assert Runs(1.0).compress(video).stages == (("runs", runs), ("attended", runs))


def test_nothing_is_merged_where_nothing_counts_as_unchanged() -> None:
    video = features(SHAPES[2])
    visual = Runs(1.0, still=0).compress(video)
    assert picked(visual) == list(range(7 * 16))
    assert torch.equal(visual.embeds, video.tokens.flatten(0, 1))


def test_a_clip_that_stands_still_is_one_frame() -> None:
    one = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0))
    video = VideoFeatures(one.repeat(4, 1, 1), torch.full((4, 9), 1 / 9), 3)
    visual = Runs(1.0).compress(video)
    assert visual.size.tolist() == [4] * 9
    torch.testing.assert_close(visual.embeds, video.tokens[0])


def test_a_still_thing_is_kept_once_and_one_that_appears_is_kept_too() -> None:
    """Cell 0 shows something all the time; cell 1 something else in frame 2 alone, where cell 0 has more attention."""
    tokens = torch.zeros(4, 4, 5)
    tokens[:, :, 0] = 1
    tokens[:, 0, 1] = 3
    tokens[2, 1, 2] = 3
    tokens[:, 2:, 3:] = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))  # these change all the time
    attention = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(4, 1)
    attention[2] = torch.tensor([0.5, 0.3, 0.1, 0.1])
    video = VideoFeatures(tokens, attention, 2)
    assert picked(Runs("2t", still=0.5).compress(video)) == [0, 2 * 4 + 1]
    assert picked(Runs("2t", still=0).compress(video)) != [0, 2 * 4 + 1]  # control: cell 0 once in every frame


def test_equal_attention_goes_to_the_earlier_frame_and_cell() -> None:
    video = features(SHAPES[2])
    flat = VideoFeatures(video.tokens, torch.full((7, 16), 1 / 16), 4)
    assert picked(Runs("9t", still=0).compress(flat)) == [0, 1, 16, 17, 32, 48, 64, 80, 96]


def test_inside_it_does_what_holitom_does() -> None:
    (ours,), (holitoms,) = Runs().reductions(28).items(), methods.get("holitom").reductions(28).items()
    assert ours[0] == holitoms[0] == 18
    assert Runs(inner_layer="off").reductions(28) == {}
    assert list(Runs(inner_layer=5, inner_ratio=0.3).reductions(28)) == list(Inner(5, 0.3).reductions(28)) == [5]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("still", -0.01),
        ("still", 1.01),
        ("still", math.nan),
        ("retain_ratio", 0),
        ("inner_layer", 0),
        ("inner_ratio", 1),
    ],
)
def test_a_value_outside_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(MethodError, match=f"^Setting {name} is {value},"):
        methods.get("runs", **{name: value})


def test_without_attention_it_cannot_choose() -> None:
    video = features(SHAPES[2])
    with pytest.raises(ValueError, match="attention"):
        Runs().compress(VideoFeatures(video.tokens, None, video.grid))
