"""Who may ask: the key, and the names that the server answers to."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holitom_cli.serve.refusals import Refused

OPEN = ("/health", "/ready")  # what a supervisor asks has no secret
_DRAIN_SECONDS = 2.0  # for the rest of a request that is refused
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def respond(refused: Refused) -> JSONResponse:
    """A refusal as a response."""
    headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
    if refused.retry_after_s is not None:
        headers["Retry-After"] = str(refused.retry_after_s)
    return JSONResponse(refused.as_json(), refused.status, headers)


class Gate:
    """Turns away who may not ask, before anything else of a request is read."""

    def __init__(
        self,
        app: ASGIApp,
        api_key: str | None,
        host: str,
        names: Iterable[str],
        on_response: Callable[[str, int], None],
    ) -> None:
        """Guard `app`.

        Args:
            app: what is behind.
            api_key: that requests have to bring, if there is one.
            host: the address that the server listens at.
            names: other names that it may be called by.
            on_response: hears the path and the status of each response.
        """
        self._app, self._key, self._on_response = app, api_key.encode() if api_key else None, on_response
        named = {name.lower() for name in names}
        # With a key, a page of another site cannot ask, whatever name it gives this address.
        self._hosts = None if self._key and not named else {*_LOOPBACK, host.lower(), *named}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # nothing else is served
            return

        body = _Body(receive)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._on_response(scope["path"], message["status"])
                if not await body.ends_soon():
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        try:
            self._check(Headers(scope=scope), scope["path"])
        except Refused as refused:
            await respond(refused)(scope, body.receive, counted)
            return
        await self._app(scope, body.receive, counted)

    def _check(self, headers: Headers, path: str) -> None:
        if self._hosts is not None:
            # A name that an attacker lets point to this machine, or a page of another site: their browsers tell.
            if _name(f"//{headers.get('host', '')}") not in self._hosts:
                raise Refused(403, "This server is not known by that name.", "Add it with --server-name.", "wrong_host")
            if (origin := headers.get("origin")) and _name(origin) not in self._hosts:
                raise Refused(403, "Pages of that site may not ask here.", "Add it with --server-name.", "wrong_origin")
        if self._key is not None and path not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                raise Refused(
                    401, "The API key is missing or wrong.", "Send it as Authorization: Bearer KEY.", "invalid_api_key"
                )


class _Body:
    """A request's body on its way, which may go on when the response is there, and without an end."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._ended = receive, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message

    async def ends_soon(self) -> bool:
        """Whether the client has sent everything, or will in a while: many read no response before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._ended:
                    await self.receive()
        return self._ended


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
