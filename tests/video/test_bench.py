"""The benchmark of reading runs, and sees a reader that is wrong."""

from __future__ import annotations

import json

import pytest

from holitom_cli import video
from tests import bench_video


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    bench_video.main(["--lengths", "2", "--repeats", "1", "--preset", "ultrafast"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"worker started", "worker there"} <= set(result["seconds"]["2"])
    assert min(result["seconds"]["2"].values()) > 0


def test_a_frame_that_differs_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = video.read
    monkeypatch.setattr(bench_video, "read", lambda path, count: real(path, count + 1))
    with pytest.raises(SystemExit, match="differs from full decoding"):
        bench_video.main(["--lengths", "2", "--repeats", "1", "--preset", "ultrafast"])
