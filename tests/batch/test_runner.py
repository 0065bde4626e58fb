"""The loop itself, without a command line around it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli import load_model, methods, pipeline, video
from holitom_cli.batch.runner import Item, Plan, run
from holitom_cli.errors import DeviceError, HolitomError, UsageError
from holitom_cli.model import Model
from holitom_cli.types import Answer, Generation, Sampling
from tests.make_random_checkpoint import RANDOM


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(RANDOM, device="cpu")


def plan(method: str = "holitom", num_frames: int = 2, questions: int = 1) -> Plan:
    asked = [f"What is number {number}?" for number in range(questions)]
    return Plan(asked, methods.get(method), Generation(max_new_tokens=2), Sampling(num_frames))


def items(model: Model, clips: list[Path], plan: Plan) -> list[Item]:
    return [item for some in run(model, clips, plan, set()) for item in some]


def test_every_broken_clip_has_its_row_even_if_another_is_the_same(model: Model, tmp_path: Path) -> None:
    clips = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for clip in clips:
        clip.write_bytes(b"")
    rows = items(model, clips, plan())
    assert [row.clip for row in rows] == clips
    assert all(isinstance(row.outcome, HolitomError) for row in rows)


def test_a_failed_question_keeps_nothing_alive(model: Model, demo_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def full_card(*_: Any, **__: Any) -> Any:
        large = torch.zeros(3)
        alive.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipeline, "prefill", full_card)
    rows = items(model, [demo_clip], plan(questions=3))
    assert [type(row.outcome) for row in rows] == [DeviceError] * 3
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3
    # Control: an error as it was raised does keep them.
    with pytest.raises(DeviceError) as caught:
        pipeline.ask(model, pipeline.watch(model, demo_clip, num_frames=2), "Why?")
    gc.collect()
    assert caught.value.__traceback__ is not None
    assert alive[-1]() is not None


def test_too_many_frames_are_refused_before_they_are_decoded(
    model: Model, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    read = video.read

    def reading(*arguments: Any, accept: Any, **options: Any) -> Any:
        def refuse(count: int) -> None:
            accept(count)
            decoded.append(count)

        return read(*arguments, accept=refuse, **options)

    monkeypatch.setattr(video, "read", reading)
    (row,) = items(model, [demo_clip], plan("full", 170))
    assert isinstance(row.outcome, UsageError)
    assert "--num-frames" in row.outcome.hint
    assert decoded == []
    (row,) = items(model, [demo_clip], plan("full", 2))  # control: a few frames are decoded
    assert isinstance(row.outcome, Answer)
    assert decoded == [2]


def test_what_is_answered_is_not_asked_again(model: Model, demo_clip: Path) -> None:
    def rounds() -> Iterator[int]:
        finished: set[str] = set()
        for _ in range(2):
            yield sum(len(some) for some in run(model, [demo_clip], plan(), finished))

    assert list(rounds()) == [1, 0]
