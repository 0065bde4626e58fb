"""A short run of the fuzzing script; the long one is run by hand."""

from __future__ import annotations

import sys

import pytest

from holitom_cli import pipeline
from tests import fuzz_video


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_damaged_files_are_answers_or_sentences() -> None:
    tally = fuzz_video.fuzz(60, seed=1, say=print)
    assert tally["answered"] + tally["refused"] == 60
    assert min(tally["answered"], tally["refused"]) > 10  # the damage is neither too small nor too large


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_error_that_is_not_for_users_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(pipeline, "read", broken)
    with pytest.raises(IndexError):
        fuzz_video.fuzz(1, seed=1, say=print)
