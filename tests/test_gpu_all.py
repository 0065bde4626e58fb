"""The script that measures everything: what fails or hangs is told and keeps nothing else from running."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.gpu import all as everything
from tests.gpu.all import Step


def test_each_step_is_a_module_of_ours() -> None:
    found = everything.steps("clip", "checkpoint")
    assert len({step.name for step in found}) == len(found) > 10
    for step in found:
        assert importlib.util.find_spec(step.command[0]) is not None, step
    assert importlib.util.find_spec("tests.gpu.nothing") is None  # control


def test_failures_and_hangs_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        Step("fails", ("json.tool", "no such file"), 20),
        Step("hangs", ("http.server", "0", "--bind", "127.0.0.1"), 1),
        Step("works", ("platform",), 20),
        Step("needs two", ("platform",), 20, gpus=2),
        Step("unwanted", ("platform",), 20),
    ]
    monkeypatch.setattr(everything, "steps", lambda *_: made)
    assert everything.main([str(tmp_path), "--only", "fails,hangs,works,needs two"]) == 1
    ended = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ended == {"fails": "exit 2", "hangs": "stopped after 1 s", "works": "done"}
    assert (tmp_path / "works.log").read_text().strip()
    assert everything.main([str(tmp_path), "--only", "works"]) == 0


def test_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        everything.main([str(tmp_path), "--only", "colt"])
    assert "there is no colt: choose from write, cold" in capsys.readouterr().err
