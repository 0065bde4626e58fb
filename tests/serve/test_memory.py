"""Where a device's memory is not enough: who can wait does, who cannot is told, and the server goes on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from holitom_cli import pipeline
from holitom_cli.batch.speakers import Speakers
from holitom_cli.errors import DeviceError
from holitom_cli.model.decode import RowDecoder
from holitom_cli.model.loading import Model
from tests.serve.served import Served, asked, load_endless, serving, stream, wait_until
from tests.serve.test_answers import QUESTIONS, alone
from tests.serve.test_refusals import refused


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Served]:
    with serving(load_endless, tmp_path) as served:
        yield served


def full(where: Any, name: str, times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a function find the memory full for so many calls; returns a list that grows with each of them."""
    whole = getattr(where, name)
    failed: list[int] = []

    def cramped(*args: Any, **more: Any) -> Any:
        if len(failed) < times:
            failed.append(1)
            raise DeviceError("The memory of the GPU is full.", "Use a smaller --rows.")
        return whole(*args, **more)

    monkeypatch.setattr(where, name, cramped)
    return failed


def test_question_waits_for_memory(
    there: Served, random: Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its first token was there already: nothing is said twice."""
    own = [alone(random, clips[1], question).text for question in QUESTIONS[:3]]
    stream(there, messages=[asked(clips[1], QUESTIONS[0])])
    failed = full(RowDecoder, "enter", 2, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        heard = pool.map(lambda question: stream(there, messages=[asked(clips[1], question)]).text, QUESTIONS[:3])
        assert list(heard) == own
    assert len(failed) == 2
    there.settle()


def test_question_that_never_fits_is_told(there: Served, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        full(RowDecoder, "enter", 10, patch)
        response = there.post(there.body(clips[1], QUESTIONS[0]))
        said = refused(response, 503, "out_of_memory")
        assert "--rows" not in said  # which is the server's own affair
        assert response.headers["retry-after"]
    assert there.post(there.body(clips[1], QUESTIONS[0])).status_code == 200
    there.settle()


def test_clip_is_looked_at_again_without_those_kept(
    there: Served, random: Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(there, messages=[asked(clips[1], QUESTIONS[0])])
    assert len(there.engine.clips) == 1
    failed = full(pipeline, "watch", 1, monkeypatch)
    heard = there.post(there.body(clips[2], QUESTIONS[0])).json()["choices"][0]["message"]["content"]
    assert failed
    monkeypatch.undo()
    assert heard == alone(random, clips[2], QUESTIONS[0]).text
    assert len(there.engine.clips) == 1
    full(pipeline, "watch", 9, monkeypatch)
    refused(there.post(there.body(clips[0], QUESTIONS[0])), 503, "out_of_memory")


def test_answers_under_way_are_ended(there: Served, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    body = there.body(clips[1], QUESTIONS[0], max_tokens=900)
    with ThreadPoolExecutor(2) as pool:
        under_way = [pool.submit(there.post, body) for _ in range(2)]
        wait_until(lambda: there.engine.speaking == 2)
        with monkeypatch.context() as patch:
            full(Speakers, "step", 1, patch)
            for response in under_way:
                refused(response.result(), 503, "out_of_memory")
    there.settle()
    assert there.post({**body, "max_tokens": 3}).status_code == 200
