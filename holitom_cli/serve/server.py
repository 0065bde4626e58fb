"""The process's side of the server: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from holitom_cli.errors import UsageError, reason

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from holitom_cli.serve.app import Service
    from holitom_cli.serve.local import Local

# The grace time in three: answers may end; those that have not are told so; the engine ends the step that it is in.
_ANSWERS, _WORDS, _STEP = 0.7, 0.1, 0.15
_WAITING_CONNECTIONS = 2048  # that the system holds until they are accepted
_HEAD_SECONDS = 10.0  # that a connection may take until a request's headers are there
_STUCK_SECONDS = 30.0  # that a client may leave what is there for it


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address; port 0 is any that is free.

    Raises:
        UsageError: nothing can listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_WAITING_CONNECTIONS)
    except (OSError, OverflowError) as error:
        told = reason(error)
        raise UsageError(f"Nothing can listen at {host} port {port}: {told}.", "Choose another --port.") from error


def prepare(service: Service, app: ASGIApp, grace_seconds: float, local: Local | None = None) -> Server:
    """A server that at its end gives answers under way some seconds to finish; `local` is for this user alone."""
    config = uvicorn.Config(
        app, loop="asyncio", http=Connection, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False,
        timeout_graceful_shutdown=(_ANSWERS + _WORDS) * grace_seconds,  # type: ignore[arg-type]  # asyncio takes parts
    )  # fmt: skip
    return Server(config, service, grace_seconds, local)


def run(server: Server, at: socket.socket) -> None:
    """Serve until a signal comes or the engine fails.

    Raises:
        Exception: that ended the engine, as where the model cannot be loaded.
    """
    asyncio.run(server.serve([at]))
    if failure := server.service.engine.failure:
        raise failure


class Connection(H11Protocol):
    """Goes when it does nothing: clients that say or take nothing would hold all that the system allows, without a key.

    uvicorn itself closes what is silent behind a response, but neither before it nor in the middle.
    """

    _silent: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(_STUCK_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._silent, self._stuck):
            if timer:
                timer.cancel()

    def _wait_for_head(self) -> None:
        if self._silent:
            self._silent.cancel()
        self._silent = self.loop.call_later(_HEAD_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]  # before the first one
            self.transport.close()
            self._stuck = self.loop.call_later(_STUCK_SECONDS, self.transport.abort)  # what is left may never be taken


class Server(uvicorn.Server):
    """Ends as `holitom` does, not by raising the signal once more."""

    def __init__(self, config: uvicorn.Config, service: Service, grace_seconds: float, local: Local | None) -> None:
        super().__init__(config)
        self.service, self._local = service, local
        self.signal: int | None = None  # that ended it
        self._grace_seconds = grace_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.service.engine.on_failure = self._end
        self.service.engine.start(asyncio.get_running_loop())
        if self._local:
            self._local.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.answering.draining = True
        engine, loop = self.service.engine, asyncio.get_running_loop()
        cutting = loop.call_later(_ANSWERS * self._grace_seconds, engine.cut_off)
        local = self._local.close((_ANSWERS + _WORDS) * self._grace_seconds) if self._local else asyncio.sleep(0)
        await asyncio.gather(super().shutdown(sockets), local)
        cutting.cancel()
        self.service.watching.close()
        # In a thread of its own: the engine may have something to tell the loop.
        await asyncio.to_thread(engine.stop, _STEP * self._grace_seconds)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # a signal handler's arguments
        if self.signal is not None:
            self.force_exit = True  # the second one waits for nobody
        self.signal = self.signal or sig
        self._end()

    def _end(self) -> None:
        self.should_exit = True
