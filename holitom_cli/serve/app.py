"""The routes of the server."""

from __future__ import annotations

import http
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from holitom_cli.serve import replies
from holitom_cli.serve.answering import Answering, Limits
from holitom_cli.serve.gate import Gate, respond
from holitom_cli.serve.metrics import Metrics
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.uploads import Uploads
from holitom_cli.serve.watching import Watching

if TYPE_CHECKING:
    from holitom_cli.serve.engine import Engine
    from holitom_cli.serve.files import FileStore
    from holitom_cli.serve.media import Media
    from holitom_cli.serve.wishes import Ceilings, Defaults


class Service:
    """All that requests are answered with."""

    def __init__(
        self,
        engine: Engine,
        media: Media,
        files: FileStore,
        defaults: Defaults,
        ceilings: Ceilings,
        limits: Limits,
    ) -> None:
        """Put together what answers requests; the engine is started by whoever runs the server."""
        self.engine = engine
        self.metrics = Metrics(engine)
        self.watching = Watching(engine, media, ceilings, limits.timeout_seconds)
        self.answering = Answering(engine, self.watching, defaults, ceilings, limits, self.metrics)
        self.metrics.waiting.set_function(lambda: self.answering.places.taken)
        self._uploads = Uploads(files, self.answering.places, limits)
        self._began = int(time.time())

    def app(self, *, api_key: str | None, host: str, names: Sequence[str]) -> Starlette:
        """The application, behind its gate (see `Gate`)."""
        routes = [
            Route("/v1/chat/completions", self.answering.create, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/files", self._uploads.create, methods=["POST"]),
            Route("/v1/files", self._uploads.list),
            Route("/v1/files/{name}", self._uploads.get),
            Route("/v1/files/{name}", self._uploads.delete, methods=["DELETE"]),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
        ]
        self._routes = {route.path for route in routes}
        gate: Any = Middleware(Gate, api_key=api_key, host=host, names=names, on_response=self._count)
        handlers: Any = {Refused: _refused, HTTPException: _not_served, Exception: self._broken}
        return Starlette(routes=routes, middleware=[gate], exception_handlers=handlers)

    def _count(self, path: str, status: int) -> None:
        """Count a response; paths that nobody has named share a label, so that labels stay few."""
        self.metrics.requests.labels(path if path in self._routes else "other", status).inc()

    async def _broken(self, request: Request, error: Exception) -> Response:
        """What nobody has thought of; its response does not pass the gate, which counts the others."""
        self._count(request.scope["path"], 500)
        return respond(Refused(500, f"This should not have happened: {type(error).__name__}.", code="internal_error"))

    async def _models(self, _: Request) -> Response:
        model = self.engine.model
        return JSONResponse(replies.models(model.info.id, self._began) if model else {"object": "list", "data": []})

    async def _model(self, request: Request) -> Response:
        name, model = request.path_params["name"], self.engine.model
        if model is None or name != model.info.id:
            raise Refused(404, f"There is no model {name!r} here.", "See /v1/models.", "model_not_found")
        return JSONResponse(replies.model(name, self._began))

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        ready = self.engine.ready and not self.answering.draining
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return respond(error)


async def _not_served(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = http.HTTPStatus(error.status_code).phrase
    response = respond(Refused(error.status_code, f"{said}.", "See docs/serve.md.", said.lower().replace(" ", "_")))
    response.headers.update(error.headers or {})
    return response
