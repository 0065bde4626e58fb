"""How much a device is asked for while three methods compress: little, and no more where a clip has more segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.algebra.merge import segment_sums
from holitom_cli.types import VideoFeatures
from tests.methods.launching import CLIPS, DEVICE, Counted, counted, cuts, here, watched
from tests.methods.test_contract import Clip, features

BOUNDS = {"fastvid": (111, 1, 1), "flashvid": (211, 2, 2), "prunevid": (68, 2, 3)}  # launches, waits, uploads
PARTS = ("embeds", "frame", "cell", "size", "source", "segments", "stages")
SHORT = [kind for kind in CLIPS if not kind.startswith("256")]


@pytest.mark.parametrize("name", sorted(BOUNDS))
@pytest.mark.parametrize("kind", SHORT)
def test_32_frames_take_few_launches(name: str, kind: str) -> None:
    asked, _ = counted(methods.get(name), CLIPS[kind]())
    assert all(found <= bound for found, bound in zip(asked.numbers, BOUNDS[name], strict=True)), asked


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_more_segments_take_no_more_launches(name: str) -> None:
    """FlashVID follows chains of links, whose steps double: longer segments take a launch more for each."""
    found = {}
    for every in (2, 4, 16):
        asked, visual = counted(methods.get(name), cuts(32, 6, 24, every))
        found[len(visual.segments)] = asked.numbers
    few, *_, many = sorted(found)
    assert many >= few + 4
    assert found[many][0] <= found[few][0]
    assert found[many][1:] == found[few][1:]


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_frames_cost_next_to_nothing(name: str) -> None:
    """FastVID compares the tokens of 32 frames at a time, which bounds its memory."""
    short, long = (counted(methods.get(name), cuts(frames, 3, 8, 4))[0].numbers for frames in (32, 256))
    assert long[0] <= short[0] + 8 * 17
    assert long[1:] == short[1:]


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_counting_changes_nothing(name: str) -> None:
    video = features(Clip(12, 4, 8, torch.float32, 0.6))
    _, visual = counted(methods.get(name), video)
    plain = methods.get(name).compress(video)
    for part in PARTS:
        one, other = getattr(visual, part), getattr(plain, part)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


# --- what counts -----------------------------------------------------------------------------

Step = Callable[[Tensor], Any]
STEPS: dict[str, tuple[Step, tuple[int, int, int]]] = {
    "views": (lambda t: t[1:].view(-1)[:4].unsqueeze(0).expand(3, -1).transpose(0, 1), (0, 0, 0)),
    "one operation": (lambda t: t + 1, (1, 0, 0)),
    "in place": (lambda t: t.add_(1), (1, 0, 0)),
    "made there": (lambda t: torch.arange(3, device=t.device), (1, 0, 0)),
    "read": (lambda t: t[0].tolist(), (1, 1, 0)),
    "one number": (lambda t: float(t[0, 0]), (1, 1, 0)),
    "to the host": (lambda t: t.cpu(), (1, 1, 0)),
    "mask": (lambda t: t[t > 0], (2, 1, 0)),
    "positions of a mask": (lambda t: (t > 0).nonzero(), (2, 1, 0)),
    "a length unknown": (lambda t: t[:, 0].repeat_interleave(torch.ones(3, dtype=torch.int64).to(t.device)), (3, 1, 1)),
    "from the host": (lambda t: torch.ones(3).to(t.device), (1, 0, 1)),
    "numbers": (lambda t: torch.tensor([1, 2], device=t.device), (1, 0, 1)),
    "a list of rows": (lambda t: t[[0, 2]], (2, 0, 1)),
    "on the host": (lambda _: torch.ones(3).sum().item(), (0, 0, 0)),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_counts(name: str) -> None:
    step, expected = STEPS[name]
    tensor = Counted(torch.randn(3, 4))
    assert tensor.device == DEVICE
    with watched() as asked:
        step(tensor)
    assert asked.numbers == expected, asked


def looped(tokens: Tensor, lengths: list[int]) -> Tensor:
    return torch.stack([part.sum(0) for part in tokens.split(lengths)])


def batched(tokens: Tensor, lengths: list[int]) -> Tensor:
    return segment_sums(tokens, torch.tensor(lengths, device=tokens.device))


def test_control_a_loop_over_segments_is_seen() -> None:
    tokens = features(Clip(32, 3, 8, torch.float32, 0.5)).tokens
    launches: dict[Callable[[Tensor, list[int]], Tensor], list[int]] = {looped: [], batched: []}
    for count in (2, 8, 32):
        sums = []
        for way, found in launches.items():
            with watched() as asked:
                sums.append(here(way(Counted(tokens), [32 // count] * count)))
            found.append(asked.numbers[0])
        torch.testing.assert_close(*sums)
    assert launches[looped] == [3, 9, 33]
    assert len(set(launches[batched])) == 1


def test_the_clips_differ() -> None:
    def unlike(video: VideoFeatures) -> int:
        return len(methods.get("fastvid").compress(video).segments)

    assert len({unlike(CLIPS[kind]()) for kind in SHORT}) > 2
