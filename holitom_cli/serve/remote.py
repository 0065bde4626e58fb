"""http(s):// URLs: clips from public hosts, and from those that were named, into a file."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

import httpcore2

from holitom_cli.serve.addresses import is_public
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.spool import save, too_large

if TYPE_CHECKING:
    import ssl

    from httpcore2 import SOCKET_OPTION

Resolve = Callable[[str, int], Awaitable[list[str]]]

_PORTS = {"http": 80, "https": 443}
_MOST_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_CONNECT_SECONDS = 5.0  # for each address of a host
_SILENCE_SECONDS = 10.0  # between two pieces of a response
_START_SECONDS = 5.0  # after which the mean speed counts
_SLOWEST_BYTES_PER_SECOND = 16_384  # a slow telephone line; below it a connection is held, not used
_FAILURES = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    OSError,
)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system's resolver has them; raises OSError where it knows none.

    It cannot be interrupted, so each look-up has a thread that neither other work nor the server's end waits for.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
            told = partial(_tell, answer, addresses, None)
        except (OSError, UnicodeError) as error:  # labels of more than 63 letters are no Unicode to Python
            told = partial(_tell, answer, [], error)
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(told)

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await answer


def _tell(answer: asyncio.Future[list[str]], addresses: list[str], error: Exception | None) -> None:
    if answer.done():  # nobody waits any more
        return
    if error is None:
        answer.set_result(addresses)
    else:
        answer.set_exception(OSError(str(error)))


class Remote:
    """Fetches clips. The address that was checked is the one that is connected to, for every redirect anew."""

    def __init__(
        self,
        allow_hosts: Iterable[str],
        max_bytes: int,
        fetch_seconds: float,
        *,
        resolve: Resolve = resolve,
        network: httpcore2.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Fetch from public hosts, and from `allow_hosts` whatever their addresses and ports are.

        Args:
            allow_hosts: names or addresses, without ports.
            max_bytes: of a clip.
            fetch_seconds: that a clip may take, redirects included.
            resolve: what knows the addresses of names.
            network: what connects to addresses.
            tls: whom to trust; by default those that the system trusts.
        """
        self._allow_hosts = frozenset(host.lower().strip("[]") for host in allow_hosts)
        self._max_bytes, self._fetch_seconds = max_bytes, fetch_seconds
        self._network = _Checked(self._allow_hosts, resolve, network or httpcore2.AnyIOBackend())
        self._tls = tls

    async def fetch(self, url: str, path: Path) -> None:
        """Write what a URL leads to to a new file.

        Raises:
            Refused: it must not be fetched, cannot be, is too large or takes too long.
        """
        try:
            async with asyncio.timeout(self._fetch_seconds):
                for _ in range(_MOST_REDIRECTS + 1):
                    onward = await self._request(_target(url, self._allow_hosts), path)
                    if onward is None:
                        return
                    url = _joined(url, onward)
        except TimeoutError:
            raise _failed(f"could not be fetched within {self._fetch_seconds:g} s") from None
        except _FAILURES as error:
            raise _failed("could not be fetched") from error
        raise _failed(f"leads to more than {_MOST_REDIRECTS} others in turn")

    async def _request(self, target: _Target, path: Path) -> str | None:
        """Fetch into a file, or return where else it is."""
        waits = {"connect": _CONNECT_SECONDS, "read": _SILENCE_SECONDS, "write": _SILENCE_SECONDS}
        async with (
            httpcore2.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._network) as pool,
            pool.stream("GET", target.url, headers=target.headers, extensions={"timeout": waits}) as response,
        ):
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in headers:
                return headers[b"location"]
            self._check(response.status, headers)
            await save(path, _paced(response.aiter_stream()), self._max_bytes)
            return None

    def _check(self, status: int, headers: dict[bytes, str]) -> None:
        if status != 200:
            raise _failed(f"was answered with status {status}")
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise _failed("is compressed though that was not asked for")  # a few bytes could become any number
        announced = headers.get(b"content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise too_large(self._max_bytes)


async def _paced(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass blocks on as long as they come fast enough."""
    clock = asyncio.get_running_loop().time
    began, arrived = clock(), 0
    async for block in blocks:
        arrived += len(block)
        seconds = clock() - began
        if seconds > _START_SECONDS and arrived < seconds * _SLOWEST_BYTES_PER_SECOND:
            raise _failed("comes too slowly")
        yield block


class _Checked(httpcore2.AsyncNetworkBackend):
    """The only way to the network: names are resolved here, once for a connection, and their addresses checked."""

    def __init__(self, allow_hosts: frozenset[str], resolve: Resolve, network: httpcore2.AsyncNetworkBackend) -> None:
        self._allow_hosts, self._resolve, self._network = allow_hosts, resolve, network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address of a host that answers; one that is not public keeps all from being used."""
        addresses = await self._resolve(host, port)
        if host not in self._allow_hosts and not all(map(is_public, addresses)):
            raise _not_allowed("leads to an address that is not public")
        failure: Exception = OSError("no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
        raise failure


class _Target(NamedTuple):
    """What is asked for, and of whom."""

    url: httpcore2.URL
    headers: list[tuple[bytes | str, bytes | str]]


def _joined(url: str, onward: str) -> str:
    try:
        return urljoin(url, onward)
    except ValueError as error:
        raise _no_url("leads to one that cannot be read") from error


def _target(url: str, allow_hosts: frozenset[str]) -> _Target:
    """Read a URL once, so that what is checked is what is used."""
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise _no_url("has characters in it that have to be encoded")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _no_url("cannot be read") from error
    if parts.scheme not in _PORTS or not host:
        raise _no_url("names no host, or leads to something else than http:// and https://")
    if "@" in parts.netloc:
        raise _no_url("has a user name in it")
    port = _PORTS[parts.scheme] if port is None else port
    if host not in allow_hosts and port not in _PORTS.values():
        raise _not_allowed(f"names port {port}")
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return _Target(
        httpcore2.URL(scheme=parts.scheme, host=host, port=port, target=path),
        [("Host", parts.netloc), ("User-Agent", "holitom"), ("Accept", "*/*"), ("Accept-Encoding", "identity")],
    )


def _no_url(what: str) -> Refused:
    return Refused(400, f"The clip's URL {what}.", "Send https://HOST/clip.mp4.", "invalid_url")


def _not_allowed(what: str) -> Refused:
    return Refused(
        403,
        f"The clip's URL {what}.",
        "Upload the clip, or start the server with --allow-host HOST.",
        "url_not_allowed",
    )


def _failed(what: str) -> Refused:
    # OpenAI too says 400: it is the client's URL that fails, and its library would try a 5xx again at once.
    return Refused(400, f"The clip's URL {what}.", "Check it, or upload the clip.", "url_failed")
