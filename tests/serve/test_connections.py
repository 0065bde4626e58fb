"""Connections that do nothing are closed: they would take all that the system allows, even of those without a key."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holitom_cli.serve import answering, server
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.replies import Reply
from tests.serve.served import SMALL_BUFFER_BYTES, Served, load_endless, serving, wait_until
from tests.serve.test_answers import QUESTIONS, raw

HEAD_SECONDS, STUCK_SECONDS, TIMEOUT_SECONDS = 0.5, 3.0, 2.5
HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
END = b"\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that soon has had enough."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(server, "_HEAD_SECONDS", HEAD_SECONDS)
        changed.setattr(server, "_STUCK_SECONDS", STUCK_SECONDS)
        with serving(load_endless, tmp_path_factory.mktemp("hasty"), timeout_seconds=TIMEOUT_SECONDS) as there:
            yield there


def test_client_that_takes_nothing_is_cut_off(hasty: Served, clips: list[Path]) -> None:
    body = hasty.body(clips[1], QUESTIONS[0], stream=True, max_tokens=900)
    with raw(hasty, body):
        wait_until(lambda: hasty.connections == 1)
        wait_until(lambda: hasty.connections == 0, TIMEOUT_SECONDS + STUCK_SECONDS + 5)
    assert hasty.is_idle()


def test_others_have_the_place_of_a_client_that_takes_nothing_at_its_deadline() -> None:
    """Nobody waits until it has been told, or is cut off."""

    class Spoken:
        reused_tokens, left = 0, False

        def leave(self) -> None:
            self.left = True

    async def words() -> AsyncIterator[str]:
        while True:
            yield "and "

    async def play() -> None:
        places, asking, full = answering.Places(1), Spoken(), asyncio.Event()

        async def send(_: Any) -> None:
            await asyncio.sleep(0.01)
            if asyncio.get_running_loop().time() > deadline:  # its buffer is full
                full.set()
                await asyncio.Event().wait()  # for ever

        deadline = asyncio.get_running_loop().time() + 0.2
        late = partial(Refused, 504, "Late.", "Ask for less.")
        stream = answering.Stream(Reply("demo", False), asking, "a", words(), places.take(), deadline, late)  # type: ignore[arg-type]
        telling = asyncio.create_task(stream({"type": "http"}, asyncio.Event().wait, send))  # type: ignore[arg-type]
        await asyncio.wait_for(full.wait(), 10)
        while not (asking.left and places.taken == 0):
            assert asyncio.get_running_loop().time() < deadline + 2
            await asyncio.sleep(0.01)
        telling.cancel()

    asyncio.run(play())


def test_client_that_never_reads_what_is_done_is_cut_off(hasty: Served) -> None:
    """Little enough that the server could think it is sent: the last of it waits for ever."""
    with ExitStack() as unread:
        for number in range(1, 31):
            idle = unread.enter_context(socket.socket())
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.connect(("127.0.0.1", hasty.port))
            idle.sendall((HEAD + b"\r\n") * 100 * number)
        wait_until(lambda: hasty.connections > 0)
        wait_until(lambda: hasty.connections == 0, 30)


def test_client_that_takes_little_is_served(hasty: Served, clips: list[Path]) -> None:
    """A control: whoever takes something all the time has the whole of what there was until its time was over."""
    body = hasty.body(clips[1], QUESTIONS[0], stream=True, max_tokens=200)
    with raw(hasty, body) as slow:
        got = read_all(slow, seconds_between=0.01)
    assert got.endswith(b"data: [DONE]\n\n" + END)


def test_slow_reader_learns_that_its_time_is_over(hasty: Served, clips: list[Path]) -> None:
    """Though its answer was ready long before: what it has is not all, and must not look like it."""
    body = hasty.body(clips[1], QUESTIONS[0], stream=True, max_tokens=900)
    with raw(hasty, body) as slow:
        wait_until(lambda: hasty.engine.speaking == 1)
        got, deadline = b"", time.monotonic() + TIMEOUT_SECONDS + 0.3
        while time.monotonic() < deadline:  # little enough that it could never have all of it
            got += slow.recv(1024)
            time.sleep(0.03)
        got += read_all(slow)
    assert got.endswith(END)
    last = [line for line in got.splitlines() if line.startswith(b"data: ")][-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "timeout"
    wait_until(lambda: hasty.connections == 0)


@pytest.mark.parametrize(
    "said", [b"", HEAD, HEAD + b"\r\n" + HEAD], ids=["nothing", "half a head", "half a second head"]
)
def test_connection_without_a_request_is_closed(hasty: Served, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=20) as idle:
        idle.sendall(said)
        wait_until(lambda: hasty.connections == 1)
        assert b"HTTP/1.1 200" in (heard := read_all(idle)) or b"\r\n\r\n" not in said
        assert heard.count(b"HTTP/1.1 200") == said.count(b"\r\n\r\n")
    wait_until(lambda: hasty.connections == 0)


@pytest.mark.parametrize("seconds_between", [None, 0.05], ids=["silent", "a byte now and then"])
def test_slow_bodies_hold_nobody_up(
    hasty: Served, clips: list[Path], monkeypatch: pytest.MonkeyPatch, seconds_between: float | None
) -> None:
    """As many as may be large at a time: clips of others would have to wait for them."""
    monkeypatch.setattr(answering, "_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(answering, "_START_SECONDS", 0.5)
    body = hasty.body(clips[1], QUESTIONS[0], max_tokens=1)
    large = json.dumps(body).encode() + b" " * 2**20
    with ExitStack() as open_too_long:
        slow = [open_too_long.enter_context(raw(hasty, body, length=f"Content-Length: {len(large)}")) for _ in range(4)]
        wait_until(lambda: hasty.places_taken == 4)
        began = time.monotonic()
        while seconds_between and hasty.places_taken and time.monotonic() < began + TIMEOUT_SECONDS:
            for each in slow:
                each.sendall(b" ")
            time.sleep(seconds_between)
        assert hasty.post(large).status_code == 200
        assert time.monotonic() - began < TIMEOUT_SECONDS - 0.5
        for each in slow:
            assert each.recv(64).startswith(b"HTTP/1.1 408 ")
    wait_until(hasty.is_idle)


def test_slow_body_is_taken_where_it_is_fast_enough(hasty: Served, clips: list[Path]) -> None:
    """A control: the same pauses, and no more than a server bears with."""
    content = json.dumps(hasty.body(clips[1], QUESTIONS[0], max_tokens=1)).encode()
    with raw(hasty, {}, length=f"Content-Length: {len(content)}") as there:
        for start in range(0, len(content), len(content) // 8 + 1):
            there.sendall(content[start : start + len(content) // 8 + 1])
            time.sleep(0.05)
        assert there.recv(64).startswith(b"HTTP/1.1 200 ")


def test_request_that_takes_longer_keeps_its_connection(hasty: Served, clips: list[Path]) -> None:
    """A control: nothing is sent for a while on this connection either, since it waits for its answer."""
    began = time.monotonic()
    answer = hasty.post(hasty.body(clips[1], QUESTIONS[0], max_tokens=500))
    assert answer.status_code == 200
    assert time.monotonic() - began > HEAD_SECONDS


def read_all(connection: socket.socket, seconds_between: float = 0.0) -> bytes:
    """What comes until the other side closes, or says that this was all."""
    got = b""
    while not got.endswith(END) and (part := connection.recv(SMALL_BUFFER_BYTES)):
        got += part
        time.sleep(seconds_between)
    return got
