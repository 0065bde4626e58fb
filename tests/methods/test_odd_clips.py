"""Clips of odd shapes, and tiny budgets, for the methods that batch segments: against the loops of test_merging."""

from __future__ import annotations

import pytest
import torch

from tests.methods.test_contract import Clip, broken_promises, features
from tests.methods.test_merging import SLOW, assert_like_the_loops, made

ODD = [
    Clip(1, 1, 3, torch.float32, 0.0),
    Clip(2, 1, 8, torch.float32, 0.0),
    Clip(2, 5, 8, torch.float32, 0.9),
    Clip(33, 1, 8, torch.float32, 0.0),
    Clip(40, 3, 8, torch.float32, 0.7),
    Clip(300, 1, 8, torch.float32, 0.0),
    Clip(70, 2, 8, torch.bfloat16, 1.0),
]
NAMES = ("fastvid", "flashvid", "prunevid")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", ODD, ids=str)
@pytest.mark.parametrize("ratio", [0.01, 0.15])
def test_odd_clips_are_what_the_loops_make(name: str, clip: Clip, ratio: float) -> None:
    video = features(clip, seed=3)
    visual = made(name, ratio).compress(video)
    assert_like_the_loops(visual, video, SLOW[name](video, ratio))
    assert broken_promises(video, visual) == []


@pytest.mark.parametrize("name", NAMES)
def test_control_another_odd_clip(name: str) -> None:
    video, other = (features(ODD[4], seed=seed) for seed in (3, 4))
    with pytest.raises(AssertionError):
        assert_like_the_loops(made(name, 0.15).compress(video), video, SLOW[name](other, 0.15))
