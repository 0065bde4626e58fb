"""What every method owes the engine; methods are found by themselves, so a new one is tested by being there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.types import CacheView, LayerView, VideoFeatures, VisualTokens


class Clip(NamedTuple):
    """A made clip's shape and how much of it stands still."""

    frames: int
    grid: int
    width: int
    dtype: torch.dtype
    still: float  # share of cells that hardly change; every fifth frame begins a new scene


CLIPS = [
    Clip(1, 1, 3, torch.float32, 0.0),
    Clip(1, 4, 8, torch.bfloat16, 0.0),
    Clip(2, 3, 5, torch.float32, 1.0),
    Clip(2, 1, 1, torch.float32, 0.5),
    Clip(7, 4, 9, torch.float32, 0.5),
    Clip(9, 5, 16, torch.float16, 0.9),
    Clip(33, 2, 7, torch.bfloat16, 0.7),
    Clip(12, 14, 24, torch.float32, 0.6),
]


def features(clip: Clip, seed: int = 0) -> VideoFeatures:
    """Scenes of five frames in which some cells stand still."""
    stream = torch.Generator().manual_seed(seed)
    patches = clip.grid**2
    scenes = torch.randn(-(-clip.frames // 5), patches, clip.width, generator=stream).repeat_interleave(5, 0)
    moving = torch.rand(patches, 1, generator=stream) >= clip.still
    fresh = torch.randn(clip.frames, patches, clip.width, generator=stream)
    tokens = torch.where(moving, fresh, scenes[: clip.frames] + 0.05 * fresh)
    attention = torch.rand(clip.frames, patches, generator=stream).softmax(-1)
    keys = torch.randn(clip.frames, patches, 4, generator=stream)
    return VideoFeatures(tokens.to(clip.dtype), attention, clip.grid, keys.to(clip.dtype))


def plain(video: VideoFeatures, method: Method) -> VideoFeatures:
    """The same clip with nothing that the method did not ask for."""
    return VideoFeatures(
        video.tokens,
        video.attention if method.needs_attention else None,
        video.grid,
        video.keys if method.needs_keys else None,
    )


def describe(clip: Clip) -> str:
    return f"{clip.frames}x{clip.grid}x{clip.grid}x{clip.width}-{str(clip.dtype).removeprefix('torch.')}-{clip.still}"


@pytest.fixture(params=methods.available())
def method(request: pytest.FixtureRequest) -> Method:
    name: str = request.param
    return methods.get(name)


@pytest.fixture(params=CLIPS, ids=describe)
def video(request: pytest.FixtureRequest) -> VideoFeatures:
    clip: Clip = request.param
    return features(clip)


def broken_promises(video: VideoFeatures, visual: VisualTokens) -> list[str]:
    """What is wrong with the account of a compressed clip."""
    frames, patches, width = video.tokens.shape
    count = len(visual)
    index = torch.arange(count)
    source = visual.source
    places = zip(visual.frame.tolist(), visual.cell.tolist(), strict=True)
    stands = [int(source[f, c]) if f < frames and c < patches else None for f, c in places]
    single = (visual.size == 1).nonzero()[:, 0]
    alone = video.tokens[visual.frame[single].clamp(0, frames - 1), visual.cell[single].clamp(0, patches - 1)]
    left = [kept for _, kept in visual.stages]
    rules = {
        "width": visual.embeds.shape[1] == width,
        "dtype": visual.embeds.dtype == video.tokens.dtype,
        "finite": bool(visual.embeds.isfinite().all()),
        "integers": {t.dtype for t in (visual.frame, visual.cell, visual.size, source)} == {torch.int64},
        "source shape": source.shape == (frames, patches),
        "source range": bool(((source >= -1) & (source < count)).all()),
        "size agrees with source": torch.equal(visual.size, torch.bincount(source[source >= 0], minlength=count)),
        "nobody stands for nothing": bool((visual.size > 0).all()),
        "every token accounted for": int(visual.size.sum()) + int((source < 0).sum()) == frames * patches,
        "frame and cell in range": bool((visual.frame < frames).all() and (visual.cell < patches).all()),
        "stands where it came from": stands == index.tolist(),
        "a single token is itself": torch.equal(visual.embeds[single], alone),
        "segments partition": [f for part in visual.segments for f in part] == list(range(frames)),
        "funnel narrows": all(a >= b for a, b in zip([frames * patches, *left], left, strict=False)),
        "funnel ends in N": not left or left[-1] == count,
    }
    return [name for name, holds in rules.items() if not holds]


def test_the_account_is_whole(method: Method, video: VideoFeatures) -> None:
    visual = method.compress(plain(video, method))
    assert broken_promises(video, visual) == []
    assert len(visual) <= method.most_tokens(*video.tokens.shape[:2])


def test_compressing_is_deterministic_and_changes_nothing(method: Method, video: VideoFeatures) -> None:
    given = plain(video, method)
    before = [None if t is None else t.clone() for t in (given.tokens, given.attention, given.keys)]
    first, second = method.compress(given), method.compress(given)
    for name in ("embeds", "frame", "cell", "size", "source"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert (first.segments, first.stages) == (second.segments, second.stages)
    for old, new in zip(before, (given.tokens, given.attention, given.keys), strict=True):
        assert (old is None and new is None) or torch.equal(old, new)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"size": -1}, "size agrees with source"),
        ({"size": 1}, "every token accounted for"),
        ({"source": 1}, "stands where it came from"),
        ({"frame": 1}, "frame and cell in range"),
        ({"cell": 1}, "frame and cell in range"),
        ({"embeds": 1}, "a single token is itself"),
    ],
)
def test_control_a_wrong_account_is_seen(change: dict[str, int], promise: str) -> None:
    video = features(CLIPS[4])
    visual = methods.get("full").compress(video)
    parts: dict[str, Any] = {name: getattr(visual, name) for name in VisualTokens.__dataclass_fields__}
    for name, amount in change.items():
        parts[name] = parts[name].clone()
        parts[name].view(-1)[-1] += amount
    assert promise in broken_promises(video, VisualTokens(**parts))


def test_control_a_missing_frame_and_a_wrong_funnel_are_seen() -> None:
    video = features(CLIPS[4])
    visual = methods.get("full").compress(video)
    parts: dict[str, Any] = {name: getattr(visual, name) for name in VisualTokens.__dataclass_fields__}
    parts |= {"segments": visual.segments[:-1], "stages": (("a", 3), ("b", 5))}
    broken = broken_promises(video, VisualTokens(**parts))
    assert {"segments partition", "funnel narrows", "funnel ends in N"} <= set(broken)


def view(rows: int, text: int, width: int, dtype: torch.dtype) -> LayerView:
    stream = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=stream).to(dtype)
    return LayerView(hidden, torch.rand(text, rows, generator=stream))


def wrong_reduction(seen: LayerView, states: Tensor, into: Tensor) -> list[str]:
    """What is wrong with what a reduction returned."""
    rows = torch.arange(len(seen.hidden))
    kept = (into == rows).nonzero()[:, 0]
    going = into[into >= 0]
    rules = {
        "one entry a row": into.shape == rows.shape and into.dtype == torch.int64,
        "range": bool(((into >= -1) & (into < len(rows))).all()),
        "into rows that are kept": torch.equal(into[going], going),
        "states count": len(states) == len(kept),
        "dtype and width": states.dtype == seen.hidden.dtype and states.shape[1] == seen.hidden.shape[1],
        "finite": bool(states.isfinite().all()),
        "something is left": len(states) > 0,
    }
    return [name for name, holds in rules.items() if not holds]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "text"), [(1, 1), (2, 3), (17, 5), (300, 9)])
@pytest.mark.parametrize("depth", [4, 24, 28])
def test_reductions_keep_the_convention(method: Method, depth: int, rows: int, text: int, dtype: torch.dtype) -> None:
    for layer, reduction in method.reductions(depth).items():
        assert (0 if reduction.layer == "this" else 1) <= layer < depth
        seen = view(rows, 1 if reduction.rows == "last" else text, 6, dtype)
        hidden, attention = seen.hidden.clone(), seen.attention.clone()
        states, into = reduction.apply(seen)
        assert wrong_reduction(seen, states, into) == []
        again = reduction.apply(seen)
        assert torch.equal(states, again[0])
        assert torch.equal(into, again[1])
        assert torch.equal(hidden, seen.hidden)
        assert torch.equal(attention, seen.attention)


def test_control_a_wrong_reduction_is_seen() -> None:
    seen = view(4, 1, 6, torch.float32)
    assert wrong_reduction(seen, seen.hidden[:2], torch.tensor([0, 0, 2, 2])) == []
    assert "into rows that are kept" in wrong_reduction(seen, seen.hidden[:2], torch.tensor([0, 3, 2, 2]))
    assert "states count" in wrong_reduction(seen, seen.hidden[:3], torch.tensor([0, 0, 2, 2]))
    assert "range" in wrong_reduction(seen, seen.hidden[:1], torch.tensor([0, -2, 0, 0]))


def layers(depth: int, rows: int, text: int) -> list[CacheView]:
    stream = torch.Generator().manual_seed(rows)
    size = (depth, text, rows + text)
    shares = (4 * torch.randn(size, generator=stream)).softmax(-1)
    return [CacheView(share[:, :rows], share[-1, rows:]) for share in shares]


def wrong_eviction(views: list[CacheView], kept: Sequence[Tensor]) -> list[str]:
    """What is wrong with what a method leaves in the caches."""
    pairs = list(zip(views, kept, strict=False))
    rules = {
        "one entry a layer": len(kept) == len(views),
        "something is left": all(len(rows) > 0 for rows in kept),
        "type": all(rows.dtype == torch.int64 and rows.dim() == 1 for rows in kept),
        "ascending": all(bool((rows.diff() > 0).all()) for rows in kept),
        "range": all(bool(((rows >= 0) & (rows < view.attention.shape[1])).all()) for view, rows in pairs),
    }
    return [name for name, holds in rules.items() if not holds]


@pytest.mark.parametrize(("rows", "text"), [(1, 1), (2, 3), (17, 5), (300, 9)])
@pytest.mark.parametrize("depth", [4, 28])
def test_pruning_the_cache_keeps_the_convention(method: Method, depth: int, rows: int, text: int) -> None:
    if not method.prunes_cache:
        with pytest.raises(NotImplementedError):
            method.after_prefill([])
        return
    views = layers(depth, rows, text)
    kept = method.after_prefill(views)
    assert wrong_eviction(views, kept) == []
    for first, second in zip(kept, method.after_prefill(views), strict=True):
        assert torch.equal(first, second)


def test_control_a_wrong_eviction_is_seen() -> None:
    views = layers(2, 4, 3)
    right = torch.tensor([0, 3])
    assert wrong_eviction(views, [right, right]) == []
    assert wrong_eviction(views, [right]) == ["one entry a layer"]
    assert wrong_eviction(views, [right, right.flip(0)]) == ["ascending"]
    assert wrong_eviction(views, [right, right + 1]) == ["range"]
    assert "something is left" in wrong_eviction(views, [right, right[:0]])


# --- finding and making methods --------------------------------------------------------------


def test_methods_are_found_by_file_name() -> None:
    assert {"full", "holitom"} <= set(methods.available())
    for name in methods.available():
        made = methods.get(name)
        assert methods.name_of(made) == name
        assert type(made).__doc__
        assert hash(made) == hash(methods.get(name))  # frozen


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(MethodError, match="no method 'holytom'") as caught:
        methods.get("holytom")
    assert ", ".join(methods.available()) in caught.value.hint
    assert caught.value.exit_code == 2


def test_an_unknown_setting_names_the_known_ones() -> None:
    with pytest.raises(MethodError, match="no setting 'ratio'") as caught:
        methods.get("holitom", ratio=0.5)
    assert "retain_ratio" in caught.value.hint
    with pytest.raises(MethodError, match="no setting 'tau'") as caught:
        methods.get("full", tau=0.5)
    assert caught.value.hint == "It has no settings."


def test_presets_and_what_overrides_them() -> None:
    ten = methods.get("holitom", preset="10")
    assert (ten.retain_ratio, ten.tau) == (0.10, 0.65)  # type: ignore[attr-defined]
    changed = methods.get("holitom", preset="10", tau=0.9)
    assert (changed.retain_ratio, changed.tau) == (0.10, 0.9)  # type: ignore[attr-defined]
    with pytest.raises(MethodError, match="no preset '12'") as caught:
        methods.get("holitom", preset="12")
    assert "10" in caught.value.hint
    with pytest.raises(MethodError, match="no preset"):
        methods.get("full", preset="10")
    for name in methods.available():
        for preset in methods.find(name).presets:
            assert methods.name_of(methods.get(name, preset=preset)) == name
