"""Kept clips: the same answer without looking, and nothing but whole entries whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holitom_cli import cache as room
from holitom_cli.cache import Cache
from holitom_cli.types import Frames, Sampling, VideoInfo, VisualTokens
from tests.program import FAST, Invoke, invoke  # noqa: F401  a fixture

CPU = torch.device("cpu")


def entry(tokens: int = 5) -> tuple[Frames, VisualTokens]:
    """Four frames of 2 x 2 patches, of which some tokens are left."""
    visual = VisualTokens(
        embeds=torch.randn(tokens, 8).bfloat16(),
        frame=torch.arange(tokens),
        cell=torch.zeros(tokens, dtype=torch.int64),
        size=torch.ones(tokens, dtype=torch.int64),
        source=torch.full((4, 4), -1),
        segments=(range(3), range(3, 4)),
        stages=(("temporal merge", 9), ("spatial merge", tokens)),
    )
    frames = Frames(
        np.zeros((4, 6, 6, 3), np.uint8),
        np.arange(4) / 3,
        np.arange(4) * 7,
        VideoInfo("/a/clip.mp4", "mp4", "h264", 6, 6, 90, 1.5, 30, 20.0, 999, mirrored=True),
        "av",
        "why",
        1,
        Sampling(at_seconds=(1.0, 2.0)),
        0.5,
        warnings=("A sentence.",),
    )
    return frames, visual


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    frames, visual = entry()
    kept = Cache(tmp_path / "new" / "folder")
    assert kept.get("key", CPU, "x.mp4") is None
    kept.put("key", frames, visual)
    found = kept.get("key", CPU, "/b/other name.mp4")
    assert found is not None
    for name in ("embeds", "frame", "cell", "size", "source"):
        assert torch.equal(getattr(found[1], name), getattr(visual, name))
    assert found[1].embeds.dtype == torch.bfloat16
    assert (found[1].segments, found[1].stages) == (visual.segments, visual.stages)
    assert frames.video is not None
    assert found[0].video == replace(frames.video, path="/b/other name.mp4")
    for name in ("decoder", "decoder_reason", "frames_missing", "sampling", "moved_seconds", "warnings"):
        assert getattr(found[0], name) == getattr(frames, name)
    np.testing.assert_array_equal(found[0].seconds, frames.seconds)
    np.testing.assert_array_equal(found[0].indices, frames.indices)
    assert found[0].cached
    assert found[0].pixels.shape == (4, 0, 0, 3)
    assert kept.get("another", CPU, "x.mp4") is None


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda data: b"{}" + data])
def test_a_damaged_entry_is_no_entry(tmp_path: Path, damage: Any) -> None:
    kept = Cache(tmp_path)
    kept.put("key", *entry())
    (path,) = kept.sizes()
    path.write_bytes(damage(path.read_bytes()))
    assert kept.get("key", CPU, "x.mp4") is None
    assert kept.sizes() == {}
    kept.put("key", *entry())
    assert kept.get("key", CPU, "x.mp4") is not None


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    Cache(tmp_path).put("probe", *entry(1000))
    one = sum(Cache(tmp_path).sizes().values())
    Cache(tmp_path).clear()
    kept = Cache(tmp_path, limit_bytes=3 * one)
    for number, key in enumerate("abc"):
        kept.put(key, *entry(1000))
        os.utime(tmp_path / f"{key}.safetensors", (number, number))
    kept.get("a", CPU, "x.mp4")  # used now
    kept.put("d", *entry(1000))
    assert [path.stem for path in kept.sizes()] == ["c", "a", "d"]


def test_what_a_killed_writer_left_goes_later(tmp_path: Path) -> None:
    kept = Cache(tmp_path)
    (tmp_path / "old.unfinished").touch()
    (tmp_path / "new.unfinished").touch()
    os.utime(tmp_path / "old.unfinished", (0, 0))
    kept.put("key", *entry())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.safetensors", "new.unfinished"]
    assert kept.clear()[0] == 1
    assert [*tmp_path.iterdir()] == []


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    kept = Cache(tmp_path / "file" / "folder")
    kept.put("key", *entry())
    assert kept.trouble.endswith(": not a directory.")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    kept = Cache(tmp_path / "folder")
    monkeypatch.setattr(os, "fsync", full)
    kept.put("key", *entry())
    assert kept.trouble.endswith("no space left on device.")
    assert [*kept.folder.iterdir()] == []


WRITER = """
import sys
from pathlib import Path
from holitom_cli.cache import Cache
from tests.test_cache import CPU, entry
kept = Cache(Path(sys.argv[1]), limit_bytes=60_000)
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    key = str(number % 7)
    found = kept.get(key, CPU, "x.mp4")
    assert found is None or len(found[1]) == 500
    kept.put(key, *entry(500))
    assert not kept.trouble, kept.trouble
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files in use cannot be replaced there")
def test_writers_at_once_and_a_kill_leave_whole_entries(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    started = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, count], cwd=root, stdout=subprocess.PIPE)
        for count in ("150", "150", "1000000")
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    time.sleep(0.5)
    started[2].kill()
    assert [process.wait() for process in started[:2]] == [0, 0]
    started[2].communicate()
    for process in started:
        assert process.stdout is not None
        process.stdout.close()
    kept = Cache(tmp_path, limit_bytes=60_000)
    kept.put("last", *entry(500))  # the killed one may have left an entry that it had made no room for
    assert 0 < sum(kept.sizes().values()) <= 60_000
    for path in kept.sizes():
        assert kept.get(path.stem, CPU, "x.mp4") is not None


# --- holitom ask -------------------------------------------------------------------------------


def ask(invoke: Invoke, clip: Path, *more: str) -> Any:  # noqa: F811
    done = invoke("ask", clip, "What?", *FAST, "--json", *more)
    assert done.code == 0, done.err
    return done.document()


def test_the_second_question_needs_no_look(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:  # noqa: F811
    place = ("--cache-dir", str(tmp_path))
    first, second = ask(invoke, demo_clip, *place), ask(invoke, demo_clip, *place)
    assert (first["sampling"].pop("cached"), second["sampling"].pop("cached")) == (False, True)
    for name in ("video", "sampling", "settings"):
        assert first[name] == second[name]
    ours, theirs = second["results"][0], first["results"][0]
    for name in ("answer", "tokens", "segments", "method_settings"):
        assert ours[name] == theirs[name]
    stages = ours["timings"]["stages_ms"]
    assert [name for name, ms in stages.items() if ms is not None] == ["prefill", "sample"]
    assert ours["timings"]["ttft_ms"] == pytest.approx(stages["prefill"] + stages["sample"])


@pytest.mark.parametrize(
    "other",
    [("--no-cache",), ("--tau", "0.7"), ("--method", "full"), ("--start", "1"), ("--num-frames", "3"), ("--baseline",)],
)
def test_another_question_of_the_pixels_looks_again(
    invoke: Invoke,  # noqa: F811
    demo_clip: Path,
    tmp_path: Path,
    other: tuple[str, ...],
) -> None:
    place = ("--cache-dir", str(tmp_path))
    ask(invoke, demo_clip, *place)
    assert not ask(invoke, demo_clip, *place, *other)["sampling"]["cached"]


def test_another_file_under_the_same_name_is_looked_at(
    invoke: Invoke,  # noqa: F811
    demo_clip: Path,
    tmp_path: Path,
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(demo_clip.read_bytes())
    ask(invoke, clip, "--cache-dir", str(tmp_path))
    clip.write_bytes(demo_clip.read_bytes() + b"x")
    assert not ask(invoke, clip, "--cache-dir", str(tmp_path))["sampling"]["cached"]


def test_batch_uses_it_too(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:  # noqa: F811
    ask(invoke, demo_clip, "--cache-dir", str(tmp_path))
    done = invoke("batch", demo_clip, "-q", "Why?", *FAST, "--cache-dir", tmp_path)
    assert '"cached": true' in done.out


def test_info_and_clear(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:  # noqa: F811
    place = ("--cache-dir", tmp_path)
    folder = tmp_path / "holitom"
    assert invoke("cache", "info", *place).out == f"{folder}: 0 entries, 0 B, at most 2.0 GiB\n"
    ask(invoke, demo_clip, "--cache-dir", str(tmp_path))
    assert invoke("cache", "info", *place).out.startswith(f"{folder}: 1 entry, ")
    assert invoke("cache", "clear", *place).out.startswith(f"{folder}: removed 1 entry, ")
    assert [*folder.iterdir()] == []


def test_a_cache_that_cannot_be_written_is_a_warning(
    invoke: Invoke,  # noqa: F811
    demo_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room.Cache, "_write", lambda *_: os.open(tmp_path / "none" / "none", os.O_RDONLY))
    done = invoke("ask", demo_clip, "What?", *FAST, "--cache-dir", tmp_path)
    assert done.code == 0
    assert "is not kept in" in " ".join(done.err.split())
