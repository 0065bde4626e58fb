"""The benchmark of reading runs, and sees a reader that is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

from holitom_cli import video
from holitom_cli.video.plan import cores
from tests import bench_video


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    bench_video.main(["--lengths", "2", "--repeats", "1", "--preset", "ultrafast"])
    (result,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert (result["cores"], result["clip_s"]) == (cores(), 2)
    assert {"worker started", "worker there"} <= set(result["seconds"])
    assert min(result["seconds"].values()) > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not restrict processes to cores")
def test_it_uses_as_many_cores_as_it_says() -> None:
    allowed = os.sched_getaffinity(0)
    seen = [(number, cores()) for number in bench_video.on_cores([1, len(allowed)])]
    assert seen == [(1, 1), (len(allowed), len(allowed))]
    assert os.sched_getaffinity(0) == allowed


def test_a_long_clip_repeats_a_part_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame is there and keys stand where they would; no seam is seen by who decodes across it."""
    monkeypatch.setattr(bench_video, "PART_FRAMES", 30)
    path = bench_video.clip(tmp_path, 3, "ultrafast")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].frames == len(frames) == 90
    assert np.array_equal(frames[0], frames[30])
    assert not np.array_equal(frames[0], frames[29])
    assert np.array_equal(video.read(path, 7).pixels, np.stack(frames)[np.linspace(0, 89, 7, dtype=int)])


def test_a_frame_that_differs_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = video.read
    monkeypatch.setattr(bench_video, "read", lambda path, count: real(path, count + 1))
    with pytest.raises(SystemExit, match="differs from full decoding"):
        bench_video.main(["--lengths", "2", "--repeats", "1", "--preset", "ultrafast"])
