"""The options that say which frames are looked at, from the command line to the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import clips
from tests.program import FAST, Invoke, invoke  # noqa: F401  a fixture

CLIP_FRAMES, RATE = 100, 10
QUICK = [part for part in FAST if part not in ("--num-frames", "4")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds, a key frame every 25 frames."""
    return clips.make(tmp_path_factory.mktemp("sampling") / "clip.mp4", CLIP_FRAMES, group=25, rate=RATE)


def sampling(invoke: Invoke, clip: Path, *options: str) -> Any:  # noqa: F811
    done = invoke("ask", clip, "What?", *QUICK, "--no-cache", "--json", *options)
    assert done.code == 0, done.err
    return done.document()["sampling"]


@pytest.mark.parametrize(
    ("options", "mode", "indices"),
    [
        (["--num-frames", "3"], "uniform", [0, 49, 99]),
        (["--fps", "0.5"], "fps", [0, 20, 40, 60, 80]),
        (["--fps", "5", "--max-frames", "3"], "fps", [0, 48, 98]),
        (["--num-frames", "3", "--start", "0:02", "--end", "4.0"], "uniform", [20, 30, 40]),
        (["--num-frames", "2", "--start", "-1"], "uniform", [89, 99]),
        (["--frames-at", "3,00:00:01.5,-0.4"], "at", [15, 30, 95]),
        (["--num-frames", "3", "--sampling", "keyframes"], "keyframes", [0, 50, 75]),
    ],
)
def test_ways_of_sampling(invoke: Invoke, clip: Path, options: list[str], mode: str, indices: list[int]) -> None:  # noqa: F811
    found = sampling(invoke, clip, *options)
    assert (found["mode"], found["frame_indices"]) == (mode, indices)
    assert found["frame_times_s"] == pytest.approx([index / RATE for index in indices])


def test_what_was_asked_and_what_was_done_are_in_the_record(invoke: Invoke, clip: Path) -> None:  # noqa: F811
    found = sampling(invoke, clip, "--num-frames", "2", "--sampling", "keyframes", "--start", "3", "--end", "99")
    assert found["settings"] == {"num_frames": 2, "start_seconds": 3.0, "end_seconds": 99.0, "keyframes": True}
    assert found["moved_s"] == pytest.approx(2.4)
    assert found["warnings"][0] == "The range ends at 99.0 s, but the clip's frames are from 0.0 to 9.9 s."


def test_the_report_says_how_it_was_sampled(invoke: Invoke, clip: Path) -> None:  # noqa: F811
    done = invoke("ask", clip, "What?", *QUICK, "--no-cache", "--fps", "1", "--start", "2", "--end", "5")
    assert "4 of 100, one every 1.0 s, asked for 1 a second, from 2.0 s to 5.0 s" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--start", "soon"], "--start 'soon' is no time."),
        (["--end", "1:75"], "--end '1:75' is no time."),
        (["--frames-at", "1,,2"], "--frames-at '' is no time."),
        (["--start", "5", "--end", "2"], "The range from 5 s to 2 s is empty."),
        (["--fps", "1", "--frames-at", "2"], "--frames-at and --fps exclude each other."),
        (["--fps", "1", "--num-frames", "2"], "--fps says how many frames there are, so --num-frames has no effect."),
        (["--max-frames", "2"], "--max-frames limits what --fps gives."),
        (["--fps", "0"], "0 frames a second cannot be taken."),
    ],
)
def test_wrong_usage(invoke: Invoke, clip: Path, options: list[str], said: str) -> None:  # noqa: F811
    invoke("ask", clip, "What?", *QUICK, *options).sentence(2, said)


def test_too_many_frames_a_second_are_refused_before_the_weights_are_read(
    invoke: Invoke,  # noqa: F811
    tmp_path: Path,
) -> None:
    long = clips.make(tmp_path / "long.mp4", 250, group=250, rate=RATE)
    done = invoke("ask", long, "What?", *QUICK, "--method", "full", "--fps", "10")
    done.sentence(2, "250 frames need up to")
    assert "Loading" not in done.err
