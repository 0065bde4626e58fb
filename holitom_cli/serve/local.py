"""Questions of the same user's `ask`, over a socket that nobody else can open: frames come decoded, records go back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holitom_cli import methods, pipeline
from holitom_cli.batch.manifest import watched_key, weights_identity
from holitom_cli.errors import HolitomError, UsageError
from holitom_cli.model.device import choose_device, choose_dtype
from holitom_cli.model.hub import default_model
from holitom_cli.model.preprocess import shrinker
from holitom_cli.serve import sockets, wire
from holitom_cli.serve.clips import known
from holitom_cli.serve.engine import Asking
from holitom_cli.serve.refusals import Refused
from holitom_cli.types import Answer, Frames, Generation, Sampling

if TYPE_CHECKING:
    import numpy as np

    from holitom_cli.methods import Method
    from holitom_cli.model.hub import Source
    from holitom_cli.model.loading import Model
    from holitom_cli.serve.app import Service
    from holitom_cli.serve.clips import Clip

_MOST_PIXELS = 100_000_000  # of a picture, as many as decoders give
_HELLO_SECONDS = 30.0  # for the first word of who has connected


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is to be answered."""

    clip: str  # an identity of its content; empty where it has none
    sampling: Sampling
    method: Method
    generation: Generation
    questions: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Caller:
    """A connection to an `ask`."""

    socket: socket.socket
    patience_seconds: float  # with an `ask` that was stopped, by Ctrl-Z say
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def tell(self, message: Mapping[str, Any]) -> None:
        async with asyncio.timeout(self.patience_seconds), self._writing:
            await asyncio.get_running_loop().sock_sendall(self.socket, wire.packed(message))

    async def hear(self, most_behind: int = 0) -> tuple[wire.Message, bytearray]:
        """The next message.

        Raises:
            OSError: there is none in time, or it is not one of ours.
        """
        async with asyncio.timeout(self.patience_seconds):
            size, behind = wire.HEAD.unpack(await self._read(wire.HEAD.size))
            if size > wire.MOST_JSON_BYTES or behind > most_behind:
                raise ConnectionError("a message that is too large")
            message = json.loads(await self._read(size))
            return message, await self._read(behind)

    async def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        view, loop = memoryview(content), asyncio.get_running_loop()
        while view:
            arrived = await loop.sock_recv_into(self.socket, view)
            if not arrived:
                raise ConnectionError("the other end has left")
            view = view[arrived:]
        return content

    async def leaves(self) -> None:
        """Wait until the other end closes its connection; it has nothing more to say."""
        with suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self.socket, 1)


class Local:
    """Answers `ask` from a listening socket."""

    def __init__(self, service: Service, listener: socket.socket, source: Source) -> None:
        """Be ready to answer; `source` is where the model's weights will be read from."""
        self._service, self._listener = service, listener
        self._weights = weights_identity(source.path)  # as they were before they were read
        self._calls: set[asyncio.Task[None]] = set()
        self._about: wire.Message | None = None  # of the model, once it is there
        listener.setblocking(False)

    def start(self) -> None:
        """Answer whoever connects, in the running loop."""
        self._accepting = asyncio.create_task(self._accept())

    async def close(self, patience_seconds: float) -> None:
        """Take nobody new, and let answers under way end for so long."""
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        if self._calls:
            await asyncio.wait(self._calls, timeout=patience_seconds)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:  # too many open files, say
                await asyncio.sleep(0.1)
                continue
            call = asyncio.create_task(self._call(connection))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError, LookupError, TypeError, sockets.UnsafeError):
            # What is none of our messages ends the connection, and nothing else.
            connection.setblocking(False)
            sockets.check_peer(connection)
            caller = _Caller(connection, self._service.answering.timeout_seconds)
            await caller.tell(await self._hello())
            async with asyncio.timeout(_HELLO_SECONDS):
                asked, _ = await caller.hear()
            try:
                await self._answer(caller, asked)
            except HolitomError as error:
                await caller.tell({"refused": [error.message, error.hint, error.stage]})
            except Refused as refused:
                await caller.tell({"refused": [refused.message, refused.hint, "serve"]})

    # --- who answers -----------------------------------------------------------------------------

    async def _hello(self) -> wire.Message:
        model = self._service.engine.model
        ready = model is not None and self._service.engine.ready and not self._service.answering.draining
        hello: wire.Message = {"program": wire.program(), "pid": os.getpid(), "ready": ready}
        if model is None or not ready:
            return hello
        if self._about is None:
            self._about = await asyncio.to_thread(self._describe, model)
        return hello | self._about

    def _describe(self, model: Model) -> wire.Message:
        """The model, and which options on the command line would lead to it."""
        source, info, device = model.checkpoint.source, model.info, model.device
        usual, why = default_model(device, info.quantize)
        ceilings = self._service.watching.ceilings
        return {
            "model": {
                "id": source.id,
                "kind": source.kind,
                "path": str(source.path),
                "revision": source.revision,
                "usual": usual == source.id,
                "why": why,
            },
            "weights": self._weights,
            "quantize": info.quantize,
            "devices": [name for name in ("auto", "cpu", "cuda", "mps", info.device) if _leads_to(name, device)],
            "dtypes": [
                name for name in ("auto", "bfloat16", "float16", "float32") if choose_dtype(name, device) == model.dtype
            ],
            "methods": {
                name: [[item.name for item in methods.settings_of(cls)], bool(cls.presets)]
                for name in methods.available()
                if (cls := methods.find(name))
            },
            "most_frames": ceilings.frames,
            "most_tokens": ceilings.tokens,
        }

    # --- answers ---------------------------------------------------------------------------------

    async def _answer(self, caller: _Caller, asked: wire.Message) -> None:
        model = self._service.engine.model
        assert model is not None
        wish = self._read(asked)
        place = self._service.answering.places.take()
        try:
            key = self._key(wish, model)
            clip = self._service.engine.clips.get(key)
            await caller.tell({"frames": "known" if clip else "wanted"})
            frames = None if clip else await self._frames(caller, model)
            work = asyncio.ensure_future(self._speak(caller, wish, key, clip, frames, model))
            others = [asyncio.ensure_future(self._beat(caller)), asyncio.ensure_future(caller.leaves())]
            try:
                await asyncio.wait((work, *others), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
            finally:
                for task in (work, *others):
                    task.cancel()
                await asyncio.gather(work, *others, return_exceptions=True)
        finally:
            place.free()

    def _read(self, asked: wire.Message) -> _Wish:
        generation = pipeline.check_generation(Generation(**asked["generation"]))
        if generation.max_new_tokens > self._service.watching.ceilings.tokens:
            raise UsageError("The answer may be longer than the server allows.")
        method = methods.by_words(**asked["method"])
        sampling = wire.sampling(asked["sampling"])
        return _Wish(str(asked["clip"]), sampling, method, generation, tuple(map(str, asked["questions"])))

    def _key(self, wish: _Wish, model: Model) -> str:
        # Apart from the clips of others, who are not trusted with names of content.
        content = f"local {wish.clip}" if wish.clip else f"local {os.urandom(16).hex()}"
        return watched_key(content, model.checkpoint, (model.info.dtype, model.device.type), wish.method, wish.sampling)

    async def _frames(self, caller: _Caller, model: Model) -> Frames:
        """Frames as they arrive, each made small at once, so that only one is in memory at full size."""
        import numpy as np

        shrink = shrinker(model.preprocessor, model.device)
        small: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        while True:
            message, content = await caller.hear(3 * _MOST_PIXELS)
            if "frames" in message:
                break
            height, width = message["size"]
            picture = np.frombuffer(content, np.uint8).reshape(height, width, 3)
            small.append(await asyncio.to_thread(shrink, picture))
        facts = wire.frames_facts(message["frames"])
        facts["seconds"] = np.array(facts["seconds"], np.float64)
        facts["indices"] = None if facts["indices"] is None else np.array(facts["indices"], np.int64)
        return Frames(pixels=np.stack([small[place] for place in message["order"]]), **facts)

    async def _speak(
        self, caller: _Caller, wish: _Wish, key: str, clip: Clip | None, frames: Frames | None, model: Model
    ) -> None:
        engine = self._service.engine
        watched = known(clip.watched, model) if clip else None
        if clip is None or watched is None:
            assert frames is not None
            clip = await engine.look(key, frames, wish.method)
            watched = clip.watched
        for question in wish.questions:
            asking = Asking(clip=clip, watched=watched, text=question, generation=wish.generation, on_end=lambda: None)
            try:
                engine.ask(asking)
                await self._tell_all(caller, asking)
            finally:
                asking.leave()

    async def _tell_all(self, caller: _Caller, asking: Asking) -> None:
        """An answer's pieces as they come, and its record.

        Raises:
            HolitomError: there is none.
        """
        began = asyncio.get_running_loop().time()
        while True:
            told = await asking.events.get()
            if isinstance(told, HolitomError):
                raise told
            if isinstance(told, Answer):
                self._service.metrics.answered(told, asyncio.get_running_loop().time() - began)
                await caller.tell({"answer": wire.record_as_json(told)})
                return
            await caller.tell({"text": told})

    async def _beat(self, caller: _Caller) -> None:
        while True:
            await asyncio.sleep(wire.BEAT_SECONDS)
            await caller.tell({"alive": True})


def _leads_to(name: str, device: Any) -> bool:
    try:
        chosen = choose_device(name)
    except HolitomError:
        return False
    return (chosen.type, chosen.index or 0) == (device.type, device.index or 0)
