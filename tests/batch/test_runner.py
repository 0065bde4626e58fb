"""The loop itself, without a command line around it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli import load_model, methods, pipeline, video
from holitom_cli.batch import runner
from holitom_cli.batch.fetcher import windows
from holitom_cli.batch.ledger import Claim, Ledger
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.batch.reader import Fetched, ReadAhead
from holitom_cli.batch.runner import Item, Plan, Run
from holitom_cli.batch.speakers import Speakers
from holitom_cli.cache import Cache
from holitom_cli.errors import DeviceError, HolitomError, UsageError
from holitom_cli.model import Model, vision
from holitom_cli.types import Answer, Frames, Generation, Sampling, VideoInfo
from tests.clips import make
from tests.make_random_checkpoint import RANDOM


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(RANDOM, device="cpu")


def plan(method: str = "holitom", num_frames: int = 2, **more: Any) -> Plan:
    return Plan(methods.get(method), Generation(max_new_tokens=2), Sampling(num_frames), **more)


def questions(count: int) -> tuple[Asked, ...]:
    return tuple(Asked(f"What is number {number}?") for number in range(count))


def items(model: Model, clips: list[Path], plan: Plan, count: int = 1, ledger: Ledger | None = None) -> list[Item]:
    return list(Run(model, [Job(clip, questions(count)) for clip in clips], plan, ledger))


@pytest.mark.parametrize("readers", [1, 3])
def test_every_broken_clip_has_its_row_even_if_another_is_the_same(model: Model, tmp_path: Path, readers: int) -> None:
    clips = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    for clip in clips:
        clip.write_bytes(b"")
    rows = items(model, clips, plan(readers=readers))
    assert sorted(row.job.clip for row in rows) == clips
    for row in rows:
        assert isinstance(row.outcome, HolitomError)
        assert row.job.clip.name in row.outcome.message


def test_a_failed_question_keeps_nothing_alive(model: Model, demo_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def full_card(*_: Any, **__: Any) -> Any:
        large = torch.zeros(3)
        alive.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipeline, "prefill", full_card)
    rows = items(model, [demo_clip], plan(), 3)
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
        def refuse(info: VideoInfo, count: int) -> None:
            accept(info, count)
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


@pytest.mark.parametrize("readers", [1, 3])
def test_what_is_answered_is_not_asked_again(model: Model, demo_clip: Path, tmp_path: Path, readers: int) -> None:
    ledger, twin = Ledger(), tmp_path / "twin.mp4"
    twin.write_bytes(demo_clip.read_bytes())
    clips = [demo_clip, twin]
    outcomes = [item.outcome for item in items(model, clips, plan(readers=readers), 1, ledger)]
    assert [outcome for outcome in outcomes if isinstance(outcome, Claim)] == [Claim.ANSWERED]
    assert sum(isinstance(outcome, Answer) for outcome in outcomes) == 1
    assert [item.outcome for item in items(model, clips, plan(), 1, ledger)] == [Claim.ANSWERED] * 2


# --- several answers at a time ----------------------------------------------------------------


def said(rows: list[Item]) -> dict[str, tuple[int, ...]]:
    return {row.key: row.outcome.token_ids for row in rows if isinstance(row.outcome, Answer)}


def test_answers_made_together_are_those_made_alone(model: Model, demo_clip: Path) -> None:
    """Prompts of several lengths, more of them than rows; float32, where rounding makes no greedy token another."""
    jobs = [Job(demo_clip, questions(5), (start, start + 2.0 + start)) for start in (0.0, 1.0, 3.0)]
    one, three = (
        list(Run(model, jobs, replace(plan(num_frames=4, rows=rows), generation=Generation(max_new_tokens=12))))
        for rows in (1, 3)
    )
    assert len(said(one)) == 15
    assert said(three) == said(one)
    assert len(set(said(one).values())) > 1  # control: there are differences to be seen


def test_answers_drawn_together_are_those_drawn_alone(model: Model, demo_clip: Path) -> None:
    hot = Generation(max_new_tokens=8, temperature=2.0, seed=3)
    one, three = (
        said(list(Run(model, [Job(demo_clip, questions(4))], replace(plan(rows=rows), generation=hot))))
        for rows in (1, 3)
    )
    assert one == three
    other = replace(plan(rows=3), generation=replace(hot, seed=4))
    assert set(said(list(Run(model, [Job(demo_clip, questions(4))], other))).values()) != set(one.values())


def test_the_account_of_an_answer_is_the_same(model: Model, demo_clip: Path) -> None:
    (alone,), (beside,) = (items(model, [demo_clip], plan(rows=rows)) for rows in (1, 2))
    assert isinstance(alone.outcome, Answer)
    assert isinstance(beside.outcome, Answer)
    assert alone.outcome.tokens == beside.outcome.tokens
    assert torch.equal(alone.outcome.inner_source, beside.outcome.inner_source)
    assert set(alone.outcome.timings.stages_ms) == set(beside.outcome.timings.stages_ms)


class Card:
    """A card whose memory holds so many answers: taking one more, or a step with more, is refused."""

    def __init__(self, patch: pytest.MonkeyPatch, holds: int, where: str) -> None:
        self.tries = self.most = 0
        whole = getattr(Speakers, where)

        def cramped(speakers: Speakers[Any], *arguments: Any) -> Any:
            self.tries += 1
            if len(speakers) + (where == "begin") > holds:
                raise DeviceError("The memory is full.")
            self.most = max(self.most, len(speakers) + (where == "begin"))
            return whole(speakers, *arguments)

        patch.setattr(Speakers, where, cramped)


@pytest.mark.parametrize("where", ["begin", "step"])
@pytest.mark.parametrize("holds", [1, 2, 3])
def test_a_full_memory_makes_the_batch_smaller(
    model: Model, demo_clip: Path, monkeypatch: pytest.MonkeyPatch, where: str, holds: int
) -> None:
    expected = said(items(model, [demo_clip], plan(rows=1), 6))
    card = Card(monkeypatch, holds, where)
    rows = items(model, [demo_clip], plan(rows=4), 6)
    assert said(rows) == expected
    assert card.most == (2 if (where, holds) == ("step", 3) else holds)  # a step that fails halves the batch


@pytest.mark.parametrize("where", ["begin", "step"])
def test_where_nothing_fits_questions_fail_and_the_run_goes_on(
    model: Model, demo_clip: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    card = Card(monkeypatch, 0, where)
    rows = items(model, [demo_clip], plan(rows=4), 3)
    assert [type(row.outcome) for row in rows] == [DeviceError] * 3
    assert card.tries < 20


def test_a_clip_that_does_not_fit_beside_answers_waits_for_them(
    model: Model, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, refused = pipeline.watch, 0
    speakers: list[Speakers[Any]] = []

    def cramped(*arguments: Any, **options: Any) -> Any:
        nonlocal refused
        if speakers and len(speakers[0]):
            refused += 1
            raise DeviceError("The memory is full.")
        return watch(*arguments, **options)

    def patiently(reader: ReadAhead, *, patient: bool) -> Fetched | None:
        while not (fetched := look(reader, patient=True)) and not reader.exhausted:
            pass
        return fetched

    look = ReadAhead.next
    monkeypatch.setattr(ReadAhead, "next", patiently)  # so that clips are there while answers are under way
    monkeypatch.setattr(pipeline, "watch", cramped)
    run = Run(model, [Job(demo_clip, questions(1), (float(at), at + 1.0)) for at in range(3)], plan(rows=3))
    speakers.append(run._speakers)
    assert all(isinstance(row.outcome, Answer) for row in run)
    assert refused


class SmallCard:
    """A card whose memory holds so many frames in the vision tower: more are refused as CUDA refuses them."""

    def __init__(self, patch: pytest.MonkeyPatch, holds: dict[str, int]) -> None:
        self.asked_for: list[int] = []
        self.clip = ""
        watch, encode = pipeline.watch, vision._encode_chunk

        def watching(model: Model, frames: Frames, **options: Any) -> Any:
            self.clip = Path(frames.video.path).name if frames.video else ""
            return watch(model, frames, **options)

        def cramped(model: Model, pixels: torch.Tensor, *more: Any) -> Any:
            self.asked_for.append(len(pixels))
            if len(pixels) > holds.get(self.clip, 99):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return encode(model, pixels, *more)

        patch.setattr(runner, "CHUNK_FRAMES", 8)
        patch.setattr(pipeline, "watch", watching)
        patch.setattr(vision, "_encode_chunk", cramped)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_full_memory_means_fewer_frames_at_a_time(
    model: Model, demo_clip: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    expected = said(items(model, [demo_clip], plan(num_frames=10, rows=rows), 2))
    card = SmallCard(monkeypatch, {demo_clip.name: 3})
    assert said(items(model, [demo_clip], plan(num_frames=10, rows=rows), 2)) == expected
    assert card.asked_for == [8, 4, 2, 2, 2, 2, 2]
    # So are the clips that follow, which are refused no more.
    card.asked_for.clear()
    several = Run(model, [Job(demo_clip, questions(1), (0.0, end)) for end in (4.0, 5.0)], plan(num_frames=4))
    assert all(isinstance(item.outcome, Answer) for item in several)
    assert card.asked_for == [4, 2, 2, 2, 2]


def test_only_the_clip_that_does_not_fit_at_all_fails(
    model: Model, demo_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = make(tmp_path / "large.mp4", frames=30)
    card = SmallCard(monkeypatch, {"large.mp4": 0})
    rows = items(model, [large, demo_clip, large], plan(num_frames=10, readers=1))
    outcomes = {row.job.clip.name: row.outcome for row in rows}
    assert isinstance(outcomes["large.mp4"], DeviceError)
    assert "--num-frames" in outcomes["large.mp4"].hint
    assert isinstance(outcomes[demo_clip.name], Answer)
    assert card.asked_for == [8, 4, 2, 1, 8, 2, 8, 4, 2, 1]  # the others have as many as before


@pytest.mark.parametrize("rows", [1, 2])
def test_a_clip_has_its_time(model: Model, demo_clip: Path, rows: int) -> None:
    slow = replace(plan(rows=rows, timeout_seconds=0.4), generation=Generation(max_new_tokens=3000, temperature=5.0))
    (row,) = items(model, [demo_clip], slow)
    assert isinstance(row.outcome, HolitomError)
    assert "within 0.4 s" in row.outcome.message
    (row,) = items(model, [demo_clip], plan(rows=rows, timeout_seconds=60))  # control
    assert isinstance(row.outcome, Answer)


def test_stopped_it_finishes_what_is_under_way(model: Model, demo_clip: Path) -> None:
    run = Run(model, [Job(demo_clip, questions(6))], plan(rows=2))
    made = []
    for item in run:
        made.append(item)
        run.stop()
    assert 1 <= len(made) <= 2
    assert all(isinstance(item.outcome, Answer) for item in made)


def test_a_new_question_neither_decodes_nor_looks(
    model: Model, demo_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = plan(cache=Cache(tmp_path))
    (first,) = Run(model, [Job(demo_clip, questions(1))], kept)
    assert isinstance(first.outcome, Answer)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was looked at again")

    monkeypatch.setattr(pipeline, "read", refuse)
    monkeypatch.setattr(pipeline, "see", refuse)
    again, new = Run(model, [Job(demo_clip, questions(2))], kept)
    assert isinstance(again.outcome, Answer)
    assert isinstance(new.outcome, Answer)
    assert again.outcome.token_ids == first.outcome.token_ids
    assert again.outcome.frames.cached
    (other,) = Run(model, [Job(demo_clip, questions(1))], replace(kept, sampling=Sampling(3)))  # control
    assert isinstance(other.outcome, HolitomError)


def test_windows_cover_a_clip() -> None:
    assert windows(180.0, 60.0) == [(0.0, 60.0), (60.0, 120.0), (120.0, 180.0)]
    assert windows(182.0, 60.0)[-1] == (120.0, 182.0)  # a rest of 2 s is none of its own
    assert windows(190.0, 60.0)[-1] == (180.0, 190.0)
    assert windows(7.0, 60.0) == [(0.0, 7.0)]
    for length in (0.0, 0.04, 59.99, 1234.5):
        parts = windows(length, 60.0)
        assert parts[0][0] == 0
        assert parts[-1][1] >= length
        assert all(end > start for start, end in parts)
        assert all(one[1] == other[0] for one, other in pairwise(parts))


def test_memory_stays_flat(model: Model, demo_clip: Path) -> None:
    """No answer, and no clip's pictures, outlive their row."""
    alive: list[weakref.ref[Any]] = []
    for item in Run(model, [Job(demo_clip, questions(1), (at / 10, at / 10 + 1.0)) for at in range(15)], plan(rows=2)):
        assert isinstance(item.outcome, Answer)
        alive.append(weakref.ref(item.outcome.frames.pixels))
        gc.collect()
        assert sum(reference() is not None for reference in alive) <= 8  # those that are under way and read ahead
