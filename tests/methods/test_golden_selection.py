"""HoliTom before the language model, against arrays that the published implementation made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli.algebra.segments import neighbour_similarity
from holitom_cli.methods.holitom import HoliTom
from holitom_cli.types import VideoFeatures, VisualTokens
from tests.model.golden import Golden, differs, golden_paths, read_golden


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        paths = golden_paths(metafunc.config, "stage1/*.npz")
        offered = [path for path in paths if "no_beta" not in path.name]  # beta can be 0 or 1, but not be left out
        metafunc.parametrize("case", offered, ids=lambda path: path.stem, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Golden:
    path: Path = request.param
    return read_golden(path)


def features(case: Golden) -> VideoFeatures:
    tokens = case.tensor("features")
    return VideoFeatures(tokens=tokens, attention=case.tensor("attention"), grid=math.isqrt(tokens.shape[1]))


def compress(case: Golden, **changed: Any) -> VisualTokens:
    meta = case.meta
    settings = {
        "retain_ratio": meta["retain_ratio"],
        "tau": meta["tau"],
        "beta": meta["beta"],
        "neighbours": meta["K"],
        "max_window": meta["max_window_size"],
    }
    return HoliTom(**(settings | changed)).compress(features(case))


def static_mask(visual: VisualTokens, part: range) -> torch.Tensor:
    """Cells that all frames of a segment send to one row."""
    rows = visual.source[part.start : part.stop]
    return (rows[0] >= 0) & (rows == rows[0]).all(0) & (len(part) > 1)


def assert_same_segment(case: Golden, visual: VisualTokens, index: int) -> None:
    """Counts, positions and frames of one segment's rows."""
    start, cut, stop = case.arrays["segment_rows"][index]
    name, part = f"seg{index:02}", visual.segments[index]
    static, dynamic = case.tensor(f"{name}_static_pos"), case.tensor(f"{name}_dynamic_pos")
    assert (cut - start, stop - cut) == (len(static), dynamic.numel())
    assert (visual.frame[start:cut] == part.start).all()
    assert visual.cell[cut:stop].tolist() == dynamic.flatten().tolist()
    frames = torch.arange(part.start, part.stop).repeat_interleave(dynamic.shape[1])
    assert torch.equal(visual.frame[cut:stop], frames)
    if len(static) or not case.arrays[f"{name}_static_mask"].any():
        assert torch.equal(static_mask(visual, part), case.tensor(f"{name}_static_mask"))
    if case.meta["strict"] or index not in case.meta["segments_that_differ"]:
        assert visual.cell[start:cut].tolist() == static.tolist()


def chance_rows(case: Golden) -> torch.Tensor:
    """Rows (M,) that the reference's own noise decides; their number is fixed, their values are not."""
    chance = torch.zeros(len(case.arrays["final_tokens"]), dtype=torch.bool)
    for index in case.meta["segments_that_differ"]:
        start, cut, _ = case.arrays["segment_rows"][index]
        chance[start:cut] = True
    return chance


def test_selection_and_merging_are_the_reference(case: Golden) -> None:
    visual = compress(case)
    reduced = int(case.arrays["total_reduced"])
    segments = [(part.start, part.stop - 1) for part in visual.segments]
    assert segments == [tuple(pair) for pair in case.arrays["segments"].tolist()]
    assert visual.stages[0] == ("temporal merge", visual.source.numel() - reduced)
    for index in range(len(segments)):
        assert_same_segment(case, visual, index)
    expected = case.tensor("final_tokens")
    assert len(visual) + 1 == len(expected)
    assert torch.equal(expected[-1], case.tensor("image_newline"))
    fixed = ~chance_rows(case)[:-1]
    torch.testing.assert_close(visual.embeds[fixed], expected[:-1][fixed], atol=1e-5, rtol=0)


def test_similarity_and_ratio_are_the_reference(case: Golden) -> None:
    similarity = neighbour_similarity(features(case).tokens)
    torch.testing.assert_close(similarity, case.tensor("similarity"), atol=2e-6, rtol=0)
    visual = compress(case)
    total, left = visual.source.numel(), dict(visual.stages)["temporal merge"]
    ratio = min(case.meta["retain_ratio"] / (left / total), 1)
    assert ratio == pytest.approx(float(case.arrays["adjusted_retain_ratio"]), abs=1e-12)


def changes(case: Golden, visual: VisualTokens) -> bool:
    return differs(visual.embeds, case.tensor("final_tokens")[:-1], 1e-5)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("c05_all_static8", {"beta": 0.5}),
        ("c05_all_static8", {"tau": 0.999}),
        ("c05_all_static8", {"neighbours": 6}),
        ("c05_all_static8", {"max_window": 7}),
        ("c04_two_half", {"tau": 0.999}),
        ("c14_tiny_ratio", {"retain_ratio": 0.06}),
        ("c01_one_frame", {"retain_ratio": 0.2}),
    ],
)
def test_control_a_wrong_setting_does_not_match(golden_root: Path, name: str, changed: dict[str, float]) -> None:
    case = read_golden(golden_root / "stage1" / f"{name}.npz")
    assert not changes(case, compress(case))
    assert changes(case, compress(case, **changed))


def test_control_attention_of_another_frame_does_not_match(golden_root: Path) -> None:
    case = read_golden(golden_root / "stage1" / "c04_two_half.npz")
    attention = case.arrays["attention"]
    swapped = Golden(case.meta, case.arrays | {"attention": attention[::-1]})
    assert changes(case, compress(swapped))
