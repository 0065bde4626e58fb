"""Servers of others, as a client's URL may name them: on this machine, each doing what it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Elsewhere:
    """A server that answers by path, and remembers what it was asked."""

    port: int
    behaviours: dict[str, Behaviour]
    requests: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, as told."""
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(request)
            await self.behaviours[request.split()[1]](writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has heard enough
        finally:
            writer.close()


@asynccontextmanager
async def elsewhere(behaviours: dict[str, Behaviour], tls: ssl.SSLContext | None = None) -> AsyncIterator[Elsewhere]:
    """A server on a port of this machine, with these answers."""
    there = Elsewhere(0, behaviours)
    server = await asyncio.start_server(there.serve, "127.0.0.1", 0, ssl=tls)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()


def gives(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> Behaviour:
    """A response with a body, whose length may be another than it says."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)

    return behave


def leads_to(url: str, status: int = 302) -> Behaviour:
    return gives(b"", f"Location: {url}", status=f"{status} Found")


def never_ends(seconds_between: float = 0.0, block: bytes = bytes(65536)) -> Behaviour:
    """A body in pieces, without an end."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"%x\r\n%s\r\n" % (len(block), block))
            await writer.drain()
            await asyncio.sleep(seconds_between)

    return behave


def head_without_end(seconds_between: float = 0.01) -> Behaviour:
    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"X-More: and more\r\n")
            await writer.drain()
            await asyncio.sleep(seconds_between)

    return behave


def says_nothing(seconds: float = 30.0) -> Behaviour:
    async def behave(writer: asyncio.StreamWriter) -> None:
        for _ in range(int(seconds * 100)):
            if writer.is_closing():
                return
            await asyncio.sleep(0.01)

    return behave


def raw(answer: bytes) -> Behaviour:
    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return behave
