"""Which frames are picked, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holitom_cli.errors import UsageError
from holitom_cli.types import Sampling, VideoInfo
from holitom_cli.video import read
from holitom_cli.video.sampling import Timeline, most_frames, pick, spacing_warning, uniform_indices
from tests import clips


@pytest.mark.parametrize("total", [1, 2, 3, 31, 32, 33, 100, 1323, 86_399])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 16, 31, 32, 33, 64, 167])
def test_indices_are_linspace(total: int, count: int) -> None:
    indices = uniform_indices(total, count)
    assert indices == np.linspace(0, total - 1, min(count, total), dtype=int).tolist()
    assert len(set(indices)) == len(indices)
    if len(indices) > 1:
        assert indices[0] == 0
        assert indices[-1] == total - 1


def test_rounding_instead_of_flooring_would_be_noticed() -> None:
    rounded = np.linspace(0, 99, 32).round().astype(int)
    assert uniform_indices(100, 32) != rounded.tolist()


def test_spacing_names_the_widest_gap() -> None:
    assert spacing_warning(np.array([0.0, 2.0, 20.8])) == (
        "Frames are 18.8 s apart, so short events may be missed; raise --num-frames."
    )


@pytest.mark.parametrize("seconds", [[], [0.0], [0.0, 10.0, 20.0]])
def test_no_spacing_warning(seconds: list[float]) -> None:
    assert spacing_warning(np.array(seconds, dtype=np.float64)) is None


# --- other ways ------------------------------------------------------------------------------

# 100 frames, 10 a second, a key frame every 25, and the same without a steady rate
STEADY = Timeline([place / 10 for place in range(100)], range(0, 100, 25), 100)
JUMPY = Timeline([0.0, 0.1, 0.2, 5.0, 5.1, 9.0], [0, 3], 6)


@pytest.mark.parametrize(
    ("wish", "clip", "indices"),
    [
        ({"num_frames": 3}, STEADY, [0, 49, 99]),
        ({"fps": 1}, STEADY, [*range(0, 100, 10)]),
        ({"fps": 1, "max_frames": 4}, STEADY, [0, 30, 60, 90]),
        ({"fps": 1}, JUMPY, [0, 2, 3, 4, 5]),  # what is on the screen at 0, 1, ... 9 s
        ({"fps": 1000}, JUMPY, [*range(6)]),
        ({"fps": 1e6}, Timeline([0.0, 3e6, 6e6], [0], 3), [0, 1, 2]),  # in a moment: 6e12 instants are not walked
        ({"fps": 0.01}, STEADY, [0]),
        ({"num_frames": 3, "start_seconds": 2}, STEADY, [20, 59, 99]),
        ({"num_frames": 3, "start_seconds": 2, "end_seconds": 4}, STEADY, [20, 30, 40]),
        ({"num_frames": 2, "start_seconds": -1.0}, STEADY, [89, 99]),
        ({"num_frames": 2, "start_seconds": 1.04, "end_seconds": 1.36}, STEADY, [10, 13]),
        ({"num_frames": 2, "start_seconds": 0.15, "end_seconds": 6}, JUMPY, [1, 4]),
        ({"num_frames": 2, "start_seconds": 1, "end_seconds": 4}, JUMPY, [2]),  # on the screen; the next one is at 5 s
        ({"num_frames": 3, "start_seconds": 1, "end_seconds": 9}, JUMPY, [2, 3, 5]),
        ({"fps": 2, "start_seconds": 1, "end_seconds": 2}, STEADY, [10, 15, 20]),
        ({"fps": 2, "start_seconds": 1.09, "end_seconds": 2.09}, STEADY, [10, 15, 20]),  # at 1.09, 1.59 and 2.09 s
        ({"fps": 1, "start_seconds": 1, "end_seconds": 4}, JUMPY, [2]),
        ({"fps": 1, "start_seconds": 7, "end_seconds": 9}, JUMPY, [4, 5]),
        ({"fps": 1, "start_seconds": 4.5}, JUMPY, [2, 4]),  # at 4.5, 5.5, 6.5, 7.5 and 8.5 s
        ({"fps": 1, "start_seconds": -30, "end_seconds": 99}, JUMPY, [0, 2, 3, 4, 5]),
        ({"at_seconds": (3.0, 1.05, -0.1)}, STEADY, [10, 30, 98]),
        ({"at_seconds": (4.9,)}, JUMPY, [2]),
        ({"num_frames": 4, "keyframes": True}, STEADY, [0, 25, 75]),
        ({"num_frames": 2, "keyframes": True, "start_seconds": 3, "end_seconds": 8}, STEADY, [50, 75]),
    ],
)
def test_ways_of_sampling(wish: dict[str, Any], clip: Timeline, indices: list[int]) -> None:
    picked = pick(Sampling(**wish), clip)
    assert picked.indices == indices
    info = VideoInfo("", "", "", 1, 1, 0, clip.seconds[-1] + 0.1, clip.total, 10.0, 1)
    assert len(indices) <= most_frames(Sampling(**wish), info) <= clip.total


@pytest.mark.parametrize(
    ("wish", "indices", "note"),
    [
        ({"num_frames": 200}, range(100), "The clip has only 100 of the 200 frames that were asked for."),
        ({"num_frames": 9, "end_seconds": 0.2}, [0, 1, 2], "The range has only 3 of the 9 frames"),
        ({"num_frames": 2, "end_seconds": 60}, [0, 99], "The range ends at 60.0 s, but the clip's frames are from 0.0"),
        ({"num_frames": 1, "start_seconds": 60}, [99], "The range starts at 60.0 s"),
        ({"num_frames": 1, "start_seconds": -60}, [0], "The range starts at -50.1 s"),
        ({"num_frames": 1, "start_seconds": 6, "end_seconds": -6}, [39], "starts at 6.0 s and ends at 3.9 s"),
        ({"at_seconds": (1, 77)}, [10, 99], "There is no frame at 77.0 s: the clip's are from 0.0 to 9.9 s"),
        ({"at_seconds": (1, 1.01)}, [10], "2 times name 1 different frames."),
        ({"fps": 5, "max_frames": 2}, [0, 98], "50 frames (5 a second) are too many: 2 are spread evenly."),
        ({"num_frames": 2, "keyframes": True}, [0, 75], "up to 2.4 s from where frames were asked for"),
    ],
)
def test_what_is_not_as_it_was_asked_for_is_said(wish: dict[str, Any], indices: Sequence[int], note: str) -> None:
    picked = pick(Sampling(**wish), STEADY)
    assert picked.indices == list(indices)
    assert note in picked.notes[0]


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv"])
@pytest.mark.parametrize(
    ("wish", "numbers"),
    [
        ({"num_frames": 8, "start_seconds": 3.0}, [2, 3, 4, 5]),  # frame 2 is on the screen from 0.2 to 5 s
        ({"num_frames": 8, "start_seconds": 5.0}, [3, 4, 5]),
        ({"num_frames": 8, "start_seconds": 3.0, "end_seconds": 4.0}, [2]),
        ({"num_frames": 8, "start_seconds": -1.0}, [4, 5]),
        ({"at_seconds": (0.15, 4.999, 5.0, 8.9)}, [1, 2, 3, 4]),
        ({"fps": 1, "start_seconds": 4.5}, [2, 4]),
    ],
)
def test_a_time_means_the_frame_that_is_on_the_screen_then(
    tmp_path: Path, name: str, wish: dict[str, Any], numbers: list[int]
) -> None:
    """In a file of uneven rate, that started well before its time was asked for."""
    path = clips.make(tmp_path / name, 6, ticks=[0, 100, 200, 5000, 5100, 9000])
    frames = read(path, Sampling(**wish))
    assert clips.numbers_in(frames.pixels) == numbers
    assert [JUMPY.seconds[number] for number in numbers] == pytest.approx(frames.seconds.tolist(), abs=1e-3)


def test_what_is_as_it_was_asked_for_needs_no_word() -> None:
    for wish in ({"num_frames": 4}, {"fps": 2}, {"at_seconds": (1.0,)}, {"start_seconds": 0, "end_seconds": 9.9}):
        assert pick(Sampling(**wish), STEADY).notes == []


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"num_frames": 0}, "0 frames were asked for"),
        ({"fps": 0}, "0 frames a second cannot be taken"),
        ({"fps": math.nan}, "nan frames a second"),
        ({"fps": 1e308}, "1e[+]308 frames a second"),
        ({"start_seconds": math.inf}, "inf is no time"),
        ({"start_seconds": 5, "end_seconds": 5}, "from 5 s to 5 s is empty"),
        ({"start_seconds": -5, "end_seconds": -9}, "is empty"),
        ({"fps": 1, "num_frames": 3}, "--fps and --num-frames exclude each other"),
        ({"fps": 1, "keyframes": True}, "--fps and --sampling keyframes exclude each other"),
        ({"at_seconds": (1,), "end_seconds": 4}, "a range has no effect"),
        ({"max_frames": 3}, "--max-frames limits what --fps gives"),
    ],
)
def test_wishes_that_mean_nothing(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**wish)
