"""A server in this process, in a thread of its own, and clients that do what clients do."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import openai

from holitom_cli import methods
from holitom_cli.model.hub import locate
from holitom_cli.model.loading import Model, load_model
from holitom_cli.serve import server, sockets
from holitom_cli.serve.answering import Limits
from holitom_cli.serve.app import Service
from holitom_cli.serve.engine import Engine
from holitom_cli.serve.files import FileRules, FileStore
from holitom_cli.serve.local import Local
from holitom_cli.serve.media import Media, MediaRules
from holitom_cli.serve.wishes import Ceilings, Defaults
from holitom_cli.types import Generation
from tests.make_random_checkpoint import RANDOM

FRAMES = 4
CEILINGS = Ceilings(frames=16, tokens=1000)
PATIENCE_SECONDS = 60.0
SMALL_BUFFER_BYTES = 4096  # of a socket, so that a client that does not read is noticed soon


def load(name: str | Path) -> Model:
    """A model as the tests compare with: on the CPU, in one thread, in float32."""
    import torch

    torch.set_num_threads(1)
    return load_model(str(name), device="cpu", dtype="float32")


def load_endless() -> Model:
    """A model that says something at random for as long as it may."""
    model = load(RANDOM)
    vars(model.checkpoint)["chat"] = replace(model.chat, end_ids=frozenset())  # where it is remembered
    return model


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    service: Service
    port: int
    api_key: str | None
    running: server.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def places_taken(self) -> int:
        return self.service.answering.places.taken

    @property
    def connections(self) -> int:
        """Connections that are open, whatever they are waiting for."""
        return len(self.running.server_state.connections)

    @property
    def model_id(self) -> str:
        assert self.engine.model
        return self.engine.model.info.id

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.api_key or "any", max_retries=0, timeout=PATIENCE_SECONDS
        )

    def post(self, body: Any, **options: Any) -> httpx2.Response:
        """A question as `body` has it, JSON or bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        path = f"{self.url}/v1/chat/completions"
        return httpx2.post(path, content=content, headers=headers, timeout=PATIENCE_SECONDS, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", timeout=PATIENCE_SECONDS, **options)

    def body(self, clip: Path | str, question: str, **more: Any) -> dict[str, Any]:
        """A question about a clip."""
        return {"model": self.model_id, "messages": [asked(clip, question)], **more}

    def is_idle(self) -> bool:
        """Whether no place and no row is taken."""
        return self.places_taken == 0 and self.engine.speaking == 0

    def settle(self) -> None:
        """Wait until no place and no row is taken."""
        wait_until(self.is_idle)


def asked(clip: Path | str, question: str) -> dict[str, Any]:
    """The message that asks about a file, or about what a URL names."""
    url = clip if isinstance(clip, str) else data_url(clip)
    return {
        "role": "user",
        "content": [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}],
    }


def data_url(clip: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"


def wait_until(true: Any, seconds: float = 20.0) -> None:
    """Wait for what is soon so.

    Raises:
        AssertionError: it is not.
    """
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@contextmanager
def serving(
    loaded: Callable[[], Model],
    tmp_path: Path,
    *,
    rows: int = 4,
    places: int = 100,
    keep_bytes: int = 2**28,
    timeout_seconds: float = PATIENCE_SECONDS,
    upload_bytes: int = 2**22,
    api_key: str | None = None,
    ceilings: Ceilings = CEILINGS,
    engine: Engine | None = None,
    local: Path | None = None,
    name: str | Path = "demo",
    wait: bool = True,
) -> Iterator[Served]:
    """A server with a model, at a port of its own, until the block ends.

    With a folder in `local` it can be asked by this user, too, about the checkpoint of that name.
    """
    engine = engine or Engine(loaded, rows, keep_bytes)
    defaults = Defaults(methods.get("holitom"), Generation(max_new_tokens=16), FRAMES)
    files = FileStore(FileRules(tmp_path, upload_bytes, 2**24, 60.0))
    media = Media(MediaRules(tmp_path, upload_bytes, (tmp_path,)), files)
    limits = Limits(places, upload_bytes, timeout_seconds)
    service = Service(engine, media, files, defaults, ceilings, limits)
    app = service.app(api_key=api_key, host="127.0.0.1", names=[])
    at = server.listen("127.0.0.1", 0)
    at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
    port: int = at.getsockname()[1]
    with ExitStack() as ending:
        listener = ending.enter_context(sockets.listening(local)) if local else None
        near = Local(service, listener, locate(str(name))) if listener else None
        running = server.prepare(service, app, 4.0, near)
        thread = threading.Thread(target=server.run, args=(running, at))
        thread.start()
        try:
            served = Served(service, port, api_key, running)
            if wait:
                wait_until(lambda: engine.ready or engine.failure)
            yield served
        finally:
            running.should_exit = True
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


@dataclass
class Spoken:
    """A stream, put together."""

    text: str
    finish_reason: str | None
    usage: Mapping[str, Any] | None


def stream(served: Served, **request: Any) -> Spoken:
    """Ask with OpenAI's client, and read the answer as it comes."""
    text, reason, usage = "", None, None
    with served.client() as client:
        for chunk in client.chat.completions.create(model=served.model_id, stream=True, **request):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
            usage = chunk.usage.model_dump() if chunk.usage else usage
    return Spoken(text, reason, usage)
