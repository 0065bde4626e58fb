"""A chat completion from its request to its response: a place, a clip, a row, and tokens as they come."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from holitom_cli.errors import HolitomError
from holitom_cli.serve import wishes
from holitom_cli.serve.clips import known
from holitom_cli.serve.engine import Asking, stopped
from holitom_cli.serve.refusals import Refused, refusal
from holitom_cli.serve.replies import Reply, event
from holitom_cli.serve.stops import Stops
from holitom_cli.types import Answer

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from holitom_cli.model.loading import Model
    from holitom_cli.serve.clips import Clip
    from holitom_cli.serve.engine import Engine
    from holitom_cli.serve.metrics import Metrics
    from holitom_cli.serve.watching import Watching
    from holitom_cli.serve.wishes import Ceilings, Defaults, Wish

T = TypeVar("T")
_WORDS_BYTES = 1024**2
_LARGE_REQUESTS = 4  # that are in memory at a time; others are read when their clips are in files
# As where clips are fetched from others.
_SILENCE_SECONDS = 10.0  # between two parts of a body
_START_SECONDS = 5.0  # after which the mean speed counts
_SLOWEST_BYTES_PER_SECOND = 16_384
CLIENT_LEFT = 499  # nobody sees it but the metrics; nginx's number for it


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests may take of the server."""

    places: int  # requests at a time, those included whose answers are generated
    upload_bytes: int  # of a clip that is sent
    timeout_seconds: float  # from the request to the end of its answer

    @property
    def body_bytes(self) -> int:
        """Of a question: its clip in base64, and words."""
        return self.upload_bytes * 4 // 3 + _WORDS_BYTES


class Place:
    """A request's place; it is given back once, whoever does it first."""

    def __init__(self, places: Places) -> None:
        self._places, self._began = places, time.monotonic()
        self._held = True

    def free(self) -> None:
        if self._held:
            self._held = False
            self._places.given_back(time.monotonic() - self._began)


class Places:
    """So many requests at a time; others are told when to come again."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.taken = 0
        self._mean_seconds = 1.0  # that a request had its place, lately

    def take(self) -> Place:
        """A place.

        Raises:
            Refused: there is none.
        """
        if self.taken >= self._count:
            wait = max(1, math.ceil(self._mean_seconds))
            raise Refused(429, "Too many requests wait.", "Try again later.", "queue_full", retry_after_s=wait)
        self.taken += 1
        return Place(self)

    def given_back(self, seconds: float) -> None:
        """Count a place that was held for so long as free."""
        self.taken -= 1
        self._mean_seconds += (seconds - self._mean_seconds) / 8


class Answering:
    """The endpoint of chat completions."""

    def __init__(
        self,
        engine: Engine,
        watching: Watching,
        defaults: Defaults,
        ceilings: Ceilings,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._engine, self._watching, self._metrics = engine, watching, metrics
        self._defaults, self._ceilings, self._limits = defaults, ceilings, limits
        self.places = Places(limits.places)
        self._large = asyncio.Semaphore(_LARGE_REQUESTS)
        self.draining = False  # those who come now are too late
        self.timeout_seconds = limits.timeout_seconds

    async def create(self, request: Request) -> Response:
        """Answer a request, in one piece or as a stream.

        Raises:
            Refused: it is not answered.
        """
        model = self._engine.model
        if model is None or not self._engine.ready:
            raise Refused(503, "The model is not ready.", "Try again soon.", "not_ready", retry_after_s=1)
        if self.draining:
            raise refusal(stopped())
        check_type(request, "application/json")
        began = time.monotonic()
        deadline = asyncio.get_running_loop().time() + self.timeout_seconds
        try:
            async with asyncio.timeout_at(deadline):
                return await self._create(request, model, began, deadline)
        except TimeoutError:
            raise self._late() from None
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)

    async def _create(self, request: Request, model: Model, began: float, deadline: float) -> Response:
        with ExitStack() as giving_up:  # however this ends, but with a stream that goes on
            place = self.places.take()
            giving_up.callback(place.free)
            wish, clip, seen_before = await self._read(request, model)
            asking = Asking(
                clip=clip,
                watched=known(clip.watched, model) if seen_before else clip.watched,
                text=wish.text,
                turns=wish.turns,
                system=wish.system,
                generation=wish.generation,
                stops=Stops(wish.stops),
                on_end=place.free,
            )
            giving_up.callback(asking.leave)
            reply = Reply(model.info.id, wish.include_usage)
            if wish.stream:
                begun = await unless_gone(request.receive, self._begin(asking, began))
                giving_up.pop_all()
                return Stream(reply, asking, *begun, place, deadline, self._late)
            answer = await unless_gone(request.receive, self._whole(asking, began))
            return JSONResponse(reply.whole(answer, asking.reused_tokens))

    async def _read(self, request: Request, model: Model) -> tuple[Wish, Clip, bool]:
        """What is wished for, its clip, and whether that was there before; of the request nothing is held any more."""
        announced = request.headers.get("content-length", "")
        small = announced.isdecimal() and int(announced) <= _WORDS_BYTES
        async with nullcontext() if small else self._large:
            body = await read_body(request, self._limits.body_bytes)
            wish = wishes.wish(wishes.parse(body), model.info.id, self._defaults, self._ceilings)
            clip, seen_before = await unless_gone(request.receive, self._watching.clip(wish, model))
        return replace(wish, url=""), clip, seen_before

    async def _whole(self, asking: Asking, began: float) -> Answer:
        """The answer, once it is whole."""
        told, events = await self._begin(asking, began)
        while not isinstance(told, Answer):
            told = await anext(events)
        return told

    async def _begin(self, asking: Asking, began: float) -> tuple[str | Answer, AsyncIterator[str | Answer]]:
        """The first event of an answer, and those that follow; what goes wrong until then has a status of its own."""
        events = self._events(asking, began)
        try:
            self._engine.ask(asking)
            return await anext(events), events
        except HolitomError as error:
            raise refusal(error) from error

    async def _events(self, asking: Asking, began: float) -> AsyncIterator[str | Answer]:
        """Pieces of an answer, the answer last.

        Raises:
            Refused: there is none.
        """
        while True:
            told = await asking.events.get()
            if isinstance(told, HolitomError):
                raise refusal(told)
            if isinstance(told, Answer):
                self._metrics.answered(told, time.monotonic() - began)
            yield told

    def _late(self) -> Refused:
        seconds = self.timeout_seconds
        return Refused(504, f"There was no answer within {seconds:g} s.", "Ask for less, or try later.", "timeout")


class Stream(Response):
    """An answer as server-sent events."""

    def __init__(
        self,
        reply: Reply,
        asking: Asking,
        first: str | Answer,
        events: AsyncIterator[str | Answer],
        place: Place,
        deadline: float,
        late: Callable[[], Refused],
    ) -> None:
        """To begin with what is there already; it ends at the deadline, by the event loop's clock, at the latest."""
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]  # nobody knows it
        self._reply, self._asking, self._first, self._events = reply, asking, first, events
        self._place, self._deadline, self._late = place, deadline, late

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # as ASGI has it
        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout_at(self._deadline):
                await unless_gone(receive, self._write_all(write))
        except TimeoutError:
            self._asking.leave()  # before the reader hears of it, who may have stopped
            self._place.free()
            await write(event(self._late().as_json()))  # a reader that is slow learns, too, that this is not all
        except ClientDisconnect:
            pass
        finally:
            self._asking.leave()
            self._place.free()
        await write(b"", more=False)

    async def _write_all(self, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        await write(self._reply.first())
        told = self._first
        try:
            while not isinstance(told, Answer):
                await write(self._reply.piece(told))
                told = await anext(self._events)
        except Refused as refused:
            await write(event(refused.as_json()))
            return
        await write(self._reply.last(told, self._asking.reused_tokens))


# --- requests --------------------------------------------------------------------------------------


def check_type(request: Request, kind: str) -> None:
    """Refuse a body that is announced as something else, as pages of other sites can send it without asking.

    Raises:
        Refused: it is.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != kind:
        raise Refused(415, f"The request's type is {given or 'not given'!r}.", f"Send {kind}.", "unsupported_type")


async def read_body(request: Request, most_bytes: int) -> bytes:
    """A request's body.

    Raises:
        Refused: it is too large, or comes too slowly.
        ClientDisconnect: nobody waits for an answer.
    """
    body = bytearray()
    async for part in counted(request, most_bytes):
        body += part
    return bytes(body)


async def counted(request: Request, most_bytes: int) -> AsyncIterator[bytes]:
    """A request's body as it arrives.

    Raises:
        Refused: it is too large, by its own account or as it turns out, or comes too slowly.
        ClientDisconnect: nobody waits for an answer.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most_bytes:
        raise _too_large(most_bytes)
    arrived = 0
    async for part in in_time(request.stream()):
        arrived += len(part)
        if arrived > most_bytes:
            raise _too_large(most_bytes)
        yield part


async def in_time(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass parts of a body on as long as they come fast enough: a request has its place while it does.

    Raises:
        Refused: they do not.
    """
    clock = asyncio.get_running_loop().time
    began, arrived = clock(), 0
    while True:
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                part = await anext(parts, None)
        except TimeoutError:
            raise _too_slow() from None
        if part is None:
            return
        arrived, seconds = arrived + len(part), clock() - began
        if part and seconds > _START_SECONDS and arrived < seconds * _SLOWEST_BYTES_PER_SECOND:
            raise _too_slow()
        yield part


def _too_large(most_bytes: int) -> Refused:
    return Refused(
        413, f"The request is larger than {most_bytes:,} bytes.", "Send a smaller clip.", "request_too_large"
    )


def _too_slow() -> Refused:
    return Refused(408, "The request comes too slowly.", "Send it faster, or a smaller clip.", "timeout")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What work comes to, which is broken off when the client closes the connection.

    Raises:
        ClientDisconnect: it did.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
