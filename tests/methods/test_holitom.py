"""HoliTom's settings, its edges, and the whole of it against a version in plain loops."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli import methods
from holitom_cli.algebra.kernels import segment_means
from holitom_cli.errors import MethodError
from holitom_cli.methods.full import Full
from holitom_cli.methods.holitom import HoliTom
from holitom_cli.types import LayerView, VideoFeatures, VisualTokens
from tests.algebra.test_merge import slow_blend, slow_fold, slow_peaks
from tests.algebra.test_segments import slow_segment
from tests.gpu import compress
from tests.methods.test_contract import CLIPS, Clip, features


def made(**settings: Any) -> HoliTom:
    method = methods.get("holitom", **settings)
    assert isinstance(method, HoliTom)
    return method


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("retain_ratio", [0, -0.1, 1.01, math.nan, math.inf, "0.0", "nan", "2.0", None, True, [0.5]]),
        ("tau", [-1.01, 1.01, math.nan, "inf", None]),
        ("beta", [-0.01, 1.01, math.nan, "-inf"]),
        ("neighbours", [0, -3, "0", 2.5, math.nan, None, False]),
        ("max_window", [0, -1, "-1", 1.5, None]),
        ("inner_layer", [0, -2, "0", "on", "", "1.5", 2.0, None, True]),
        ("inner_ratio", [1, 1.0, -0.01, "1.0", math.nan]),
    ],
)
def test_a_value_outside_its_range_is_named(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(MethodError, match=rf"^Setting {name} is '?{re.escape(str(value))}'?,") as caught:
            methods.get("holitom", **{name: value})
        assert caught.value.hint


@pytest.mark.parametrize("name", ["retain_ratio", "tau", "neighbours", "max_window"])
def test_text_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(MethodError, match=f"^Setting {name} is 'much', which is not a"):
        methods.get("holitom", **{name: "much"})


def test_the_ends_of_the_ranges_are_allowed() -> None:
    low = made(retain_ratio=1e-9, tau=-1, beta=0, neighbours=1, max_window=1, inner_layer=1, inner_ratio=0)
    high = made(retain_ratio=1, tau=1, beta=1, neighbours=10**6, max_window=10**6, inner_layer="auto", inner_ratio=0.99)
    for method in (low, high):
        assert len(method.compress(features(CLIPS[4]))) > 0


def test_text_becomes_numbers() -> None:
    method = made(retain_ratio="0.25", neighbours="5", inner_layer="12", inner_ratio="0.4", tau="1")
    assert method == HoliTom(retain_ratio=0.25, neighbours=5, inner_layer=12, inner_ratio=0.4, tau=1.0)
    assert isinstance(method.inner_layer, int)
    assert made(inner_layer="off").inner_layer == "off"


def test_defaults_are_the_papers() -> None:
    assert HoliTom() == HoliTom(0.15, 0.8, 0.6, 7, 1024, "auto", 0.5)


@pytest.mark.parametrize(("depth", "layer"), [(28, 18), (24, 15), (80, 51), (6, 4), (4, 3), (2, 1)])
def test_auto_is_the_same_share_of_any_depth(depth: int, layer: int) -> None:
    assert list(HoliTom().reductions(depth)) == [layer] == [round(depth * 18 / 28)]


def test_a_numbered_layer_is_literal_and_off_is_off() -> None:
    assert list(HoliTom(inner_layer=5).reductions(28)) == [5]
    assert HoliTom(inner_layer="off").reductions(28) == {}


@pytest.mark.parametrize(("layer", "depth"), [(28, 28), (30, 28), (6, 6), ("auto", 1)])
def test_a_layer_beyond_the_model_is_refused(layer: int | str, depth: int) -> None:
    with pytest.raises(MethodError, match=rf"this language model has {depth} layers"):
        HoliTom(inner_layer=layer).reductions(depth)


# --- edges -----------------------------------------------------------------------------------


def still(frames: int = 4, patches: int = 9, width: int = 6) -> VideoFeatures:
    """A clip in which nothing moves."""
    one = torch.randn(1, patches, width, generator=torch.Generator().manual_seed(0))
    return VideoFeatures(one.repeat(frames, 1, 1), torch.full((frames, patches), 1 / patches), math.isqrt(patches))


def test_keeping_everything_of_a_lively_clip_is_full() -> None:
    video = features(Clip(6, 4, 8, torch.float32, 0.0))
    visual, full = HoliTom(retain_ratio=1.0).compress(video), Full().compress(video)
    for name in ("embeds", "frame", "cell", "size", "source"):
        assert torch.equal(getattr(visual, name), getattr(full, name))


def test_keeping_everything_of_a_still_clip_still_merges_over_time() -> None:
    video = still()
    visual = HoliTom(retain_ratio=1.0).compress(video)
    assert visual.size.tolist() == [4] * 9
    assert (visual.source == torch.arange(9)).all()
    torch.testing.assert_close(visual.embeds, video.tokens[0])
    assert visual.stages == (("temporal merge", 9), ("spatial merge", 9))


def test_a_still_clip_with_no_centre_drops_its_cells() -> None:
    visual = HoliTom(retain_ratio=1e-4).compress(still())
    assert (len(visual), visual.embeds.shape) == (0, (0, 6))
    assert (visual.source == -1).all()


def test_a_tiny_ratio_keeps_one_token_of_each_frame_that_moves() -> None:
    visual = HoliTom(retain_ratio=1e-6).compress(features(Clip(6, 4, 8, torch.float32, 0.0)))
    assert visual.frame.tolist() == list(range(6))


def test_when_nothing_is_static_no_frames_join() -> None:
    visual = HoliTom(tau=1.0).compress(features(CLIPS[4]))
    assert visual.segments == tuple(range(f, f + 1) for f in range(7))
    assert (visual.size == 1).all()


def test_equal_attention_keeps_the_lower_cells() -> None:
    video = features(Clip(3, 4, 8, torch.float32, 0.0))
    flat = VideoFeatures(video.tokens, torch.full((3, 16), 1 / 16), 4)
    visual = HoliTom(retain_ratio=0.25).compress(flat)
    assert visual.cell.tolist() == [0, 1, 2, 3] * 3


def test_without_attention_it_cannot_choose() -> None:
    video = features(CLIPS[4])
    with pytest.raises(ValueError, match="attention"):
        HoliTom().compress(VideoFeatures(video.tokens, None, video.grid))


# --- as a GPU is held against a CPU ----------------------------------------------------------


def test_the_comparison_of_devices_runs(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--device", "cpu", "--model", str(tiny_checkpoint), "--frames", "12", "--repeats", "1"]
    assert compress.main(asked) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["equal_share"] for row in record["clips"]] == [1.0] * 5
    assert record["parts"]["merge inside ms"] > 0

    def other(tokens: torch.Tensor, *bounds: Any) -> torch.Tensor:
        means = segment_means(tokens, *bounds)
        other.calls += 1  # type: ignore[attr-defined]
        return means.flip(1) if other.calls % 2 else means  # type: ignore[attr-defined]

    other.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr("holitom_cli.methods.holitom.segment_means", other)
    assert compress.main(asked) == 1  # control


# --- the whole of it, in loops ---------------------------------------------------------------


def slow_holitom(video: VideoFeatures, method: HoliTom) -> tuple[list[list[float]], list[list[int]]]:
    """Rows in reading order, and the row that each original token went to, from the specification."""
    assert video.attention is not None
    frames, patches, _ = video.tokens.shape
    tokens = video.tokens.double()
    similarity = torch.cosine_similarity(tokens[:-1], tokens[1:], dim=-1)
    unchanged = similarity > method.tau
    segments, saved = slow_segment(unchanged, method.max_window)
    ratio = min(float(method.retain_ratio) / ((frames * patches - saved) / (frames * patches)), 1)
    rows: list[list[float]] = []
    source = [[-1] * patches for _ in range(frames)]
    for part in segments:
        together = len(part) > 1
        static = [p for p in range(patches) if together and bool(unchanged[part.start : part.stop - 1, p].all())]
        means = [tokens[part.start : part.stop, p].mean(0).tolist() for p in static]
        chosen, member_of = slow_peaks(means, round(len(static) * ratio), method.neighbours)
        for member, centre in enumerate(member_of):
            for f in part:
                source[f][static[member]] = len(rows) + chosen.index(centre)
        rows += [slow_blend(means, centre, member_of, method.beta) for centre in chosen]
        for f in part:
            moving = [p for p in range(patches) if p not in static]
            ranked = sorted(moving, key=lambda p, f=f: -float(video.attention[f, p]))  # type: ignore[misc]
            for p in sorted(ranked[: math.ceil(len(moving) * ratio)]):
                source[f][p] = len(rows)
                rows.append(tokens[f, p].tolist())
    return rows, source


def assert_like_the_loops(visual: VisualTokens, video: VideoFeatures, method: HoliTom) -> None:
    rows, source = slow_holitom(video, method)
    assert visual.source.tolist() == source
    expected = torch.tensor(rows).reshape(len(rows), video.tokens.shape[2])
    near = 2e-6 if video.tokens.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(visual.embeds.float(), expected, atol=1e-5, rtol=near)


MOVING = [
    Clip(1, 3, 4, torch.float32, 0.0),
    Clip(2, 4, 6, torch.float32, 1.0),
    Clip(7, 4, 9, torch.float32, 0.5),
    Clip(11, 5, 16, torch.bfloat16, 0.8),
    Clip(23, 6, 12, torch.float32, 0.7),
]


@pytest.mark.parametrize("clip", MOVING, ids=str)
@pytest.mark.parametrize("retain_ratio", [1e-3, 0.1, 0.33, 1.0])
def test_it_is_what_the_loops_make(clip: Clip, retain_ratio: float) -> None:
    video = features(clip, seed=3)
    for settings in ({}, {"tau": 0.2, "neighbours": 2}, {"max_window": 3, "beta": 0.3}):
        method = made(retain_ratio=retain_ratio, **settings)
        assert_like_the_loops(method.compress(video), video, method)


def test_control_the_loops_notice_another_setting() -> None:
    video = features(MOVING[4], seed=3)
    method = made(retain_ratio=0.33)
    for changed in ({"beta": 0.5}, {"max_window": 3}, {"neighbours": 2}, {"retain_ratio": 0.3}, {"tau": 0.999}):
        with pytest.raises(AssertionError):
            assert_like_the_loops(made(**({"retain_ratio": 0.33} | changed)).compress(video), video, method)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("rows", [1, 2, 5, 50])
def test_the_merge_inside_folds_the_least_attended(rows: int, ratio: float) -> None:
    stream = torch.Generator().manual_seed(rows)
    hidden, attention = torch.randn(rows, 7, generator=stream), torch.rand(3, rows, generator=stream)
    (reduction,) = HoliTom(inner_layer=2, inner_ratio=ratio).reductions(4).values()
    assert (reduction.rows, reduction.heads, reduction.layer) == ("last", "mean", "before")
    states, into = reduction.apply(LayerView(hidden, attention))
    count = max(1, round(rows * (1 - ratio)))
    ranked = sorted(range(rows), key=lambda row: -float(attention[-1, row]))
    expected, expected_into = slow_fold(hidden, sorted(ranked[:count]))
    assert into.tolist() == expected_into
    torch.testing.assert_close(states.double(), expected, atol=1e-6, rtol=1e-6)
