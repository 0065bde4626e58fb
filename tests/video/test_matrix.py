"""A short run of the matrix of codecs, containers and groups, and that it sees a frame that is another one."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from holitom_cli import video
from tests.video import matrix


def run(capsys: pytest.CaptureFixture[str], only: str) -> tuple[object, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        matrix.main(["--only", only])
    return ended.value.code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "MPEG-1")
    assert (code, found["wrong"]) == (False, [])
    assert found["clips"]["av"] >= 9
    assert found["control"] is None if find_spec("decord") is None else 0 < found["control"] < 32


def test_a_neighbour_instead_of_a_frame_is_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(*arguments: Any, **more: Any) -> Any:
        frames = video.read(*arguments, **more)
        return replace(frames, pixels=np.concatenate([frames.pixels[:10], frames.pixels[9:-1]]))

    monkeypatch.setattr(matrix, "read", shifted)
    code, found = run(capsys, "ProRes")
    assert code == 1
    assert found["wrong"][0].endswith("av 10 of 32")
