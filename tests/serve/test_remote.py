"""Fetching clips from others: what is connected to, and how much of what comes is taken. No test leaves this machine.

"public.test" is a name with public addresses; the network stands at those and leads to a port of this machine.
"""

from __future__ import annotations

import asyncio
import gzip
import secrets
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import httpcore2
import pytest

from holitom_cli.serve import remote as remote_module
from holitom_cli.serve.addresses import is_public
from holitom_cli.serve.media import MediaRules
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.remote import Remote, resolve
from tests.serve.elsewhere import (
    Behaviour,
    Elsewhere,
    elsewhere,
    gives,
    head_without_end,
    leads_to,
    never_ends,
    raw,
    says_nothing,
)

if TYPE_CHECKING:
    from httpcore2 import SOCKET_OPTION

MOST = 100_000
CLIP = bytes(range(256)) * 100
PUBLIC, PUBLIC_6 = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


class Network(httpcore2.AsyncNetworkBackend):
    """Public addresses lead to a port of this machine; it remembers what was connected to."""

    def __init__(self, port: int, unreachable: frozenset[str] = frozenset()) -> None:
        self._port, self._unreachable = port, unreachable
        self.connected: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.connected.append((host, port))
        if host in self._unreachable:
            raise httpcore2.ConnectError("unreachable")
        return await httpcore2.AnyIOBackend().connect_tcp(
            "127.0.0.1", self._port, timeout, local_address, socket_options
        )


class Names:
    """A resolver that gives a name its next answer each time, and its last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): found for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self._answers:
            return await resolve(host, port)  # addresses, and names of this machine
        answers = self._answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Trial:
    """A fetch from a server elsewhere."""

    def __init__(self, tmp_path: Path, behaviours: dict[str, Behaviour], **options: object) -> None:
        self.path = tmp_path / secrets.token_hex(8)
        self._behaviours = behaviours
        self.names = Names(public_test=[[PUBLIC]], private_test=[["10.1.2.3"]], named_test=[["127.0.0.1"]])
        self.allow_hosts = ["named.test"]
        self.most, self.seconds = MOST, 20.0
        self.unreachable: frozenset[str] = frozenset()
        self.server_tls: ssl.SSLContext | None = None
        self.client_tls: ssl.SSLContext | None = None
        vars(self).update(options)
        self.network: Network
        self.there: Elsewhere

    def fetch(self, url: str) -> bytes:
        """What is fetched; PORT in a URL or a redirect is the server's."""
        return asyncio.run(self._fetch(url))

    async def _fetch(self, url: str) -> bytes:
        async with elsewhere(self._behaviours, self.server_tls) as self.there:
            self.network = Network(self.there.port, self.unreachable)
            remote = Remote(
                self.allow_hosts, self.most, self.seconds, resolve=self.names, network=self.network,
                tls=self.client_tls,
            )  # fmt: skip
            await remote.fetch(url.replace("PORT", str(self.there.port)), self.path)
            return self.path.read_bytes()

    def refused(self, url: str) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            self.fetch(url)
        assert not self.path.exists()
        assert caught.value.message.endswith(".")
        return caught.value.status, caught.value.code


@pytest.fixture
def trial(tmp_path: Path) -> Callable[..., Trial]:
    return lambda behaviours=None, **options: Trial(tmp_path, behaviours or {"/clip": gives(CLIP)}, **options)


# --- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC, PUBLIC_6, "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1",
        "192.167.1.1", "223.255.255.255", f"::ffff:{PUBLIC}", "64:ff9b::808:808", "2a00:1450:4001:800::200e",
    ],
)  # fmt: skip
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1",
        "172.31.255.255", "192.168.0.1", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.127.255.255",
        "100.100.100.200", "192.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
        "192.88.99.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1",
        "64:ff9b:1::8.8.8.8", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1", "2001::1",
        "2001:0:7f00:1::", "fe80::1", "fe80::1%eth0", f"{PUBLIC_6}%1", "fec0::1", "fc00::1", "fd00:ec2::254",
        "ff02::1", "ff0e::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1", "4000::1",
        "", "localhost", "8.8.8", "0x08080808", "08.8.8.8",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


# --- what is connected to --------------------------------------------------------------------------


def test_public_host(trial: Callable[..., Trial]) -> None:
    fetching = trial({"/clip?a=%20b": gives(CLIP)})
    assert fetching.fetch("http://Public.test/clip?a=%20b#c") == CLIP
    assert fetching.network.connected == [(PUBLIC, 80)]
    (request,) = fetching.there.requests
    assert "Host: Public.test\r\n" in request
    assert "Accept-Encoding: identity\r\n" in request
    assert fetching.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "169.254.169.254", "10.0.0.1", "private.test",
        "100.64.0.1", "[fe80::1%25lo]", "localhost.", "127.0.0.1.",
    ],
)  # fmt: skip
def test_private_hosts_are_never_connected_to(trial: Callable[..., Trial], host: str) -> None:
    fetching = trial()
    status, code = fetching.refused(f"http://{host}/clip")
    assert (status, code) in ((403, "url_not_allowed"), (400, "url_failed"))  # the latter where it is no name here
    assert fetching.network.connected == []
    assert fetching.there.requests == []


def test_hosts_that_are_this_machine_are_refused_for_it(trial: Callable[..., Trial]) -> None:
    for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "private.test"):
        assert trial().refused(f"http://{host}/clip") == (403, "url_not_allowed")


@pytest.mark.parametrize("private", ["10.0.0.1", "127.0.0.1", "::1", "fe80::1%eth0", "169.254.169.254"])
def test_name_with_public_and_private_addresses(trial: Callable[..., Trial], private: str) -> None:
    for addresses in ([PUBLIC, private], [private, PUBLIC]):
        fetching = trial(names=Names(mixed_test=[addresses]))
        assert fetching.refused("http://mixed.test/clip") == (403, "url_not_allowed")
        assert fetching.network.connected == []
    assert trial(names=Names(mixed_test=[[PUBLIC_6, PUBLIC]])).fetch("http://mixed.test/clip") == CLIP  # control


def test_the_address_that_was_checked_is_connected_to(trial: Callable[..., Trial]) -> None:
    """A name whose second answer is private: it is asked for once for a connection."""
    fetching = trial(names=Names(changing_test=[[PUBLIC], ["127.0.0.1"]]))
    assert fetching.fetch("http://changing.test/clip") == CLIP
    assert fetching.names.asked == ["changing.test"]
    assert fetching.network.connected == [(PUBLIC, 80)]


def test_name_that_changes_between_redirects(trial: Callable[..., Trial]) -> None:
    behaviours = {"/start": leads_to("/clip"), "/clip": gives(CLIP)}
    fetching = trial(behaviours, names=Names(changing_test=[[PUBLIC], ["127.0.0.1"]]))
    assert fetching.refused("http://changing.test/start") == (403, "url_not_allowed")
    assert len(fetching.there.requests) == 1
    assert trial(behaviours).fetch("http://public.test/start") == CLIP  # control


def test_next_address_where_one_does_not_answer(trial: Callable[..., Trial]) -> None:
    names = Names(two_test=[[PUBLIC_6, PUBLIC]])
    fetching = trial(names=names, unreachable=frozenset([PUBLIC_6]))
    assert fetching.fetch("http://two.test/clip") == CLIP
    assert fetching.network.connected == [(PUBLIC_6, 80), (PUBLIC, 80)]
    unreachable = trial(names=names, unreachable=frozenset([PUBLIC, PUBLIC_6]))
    assert unreachable.refused("http://two.test/clip") == (400, "url_failed")


def test_named_hosts_may_be_private(trial: Callable[..., Trial]) -> None:
    fetching = trial()
    assert fetching.fetch("http://NAMED.test:PORT/clip") == CLIP
    assert fetching.network.connected == [("127.0.0.1", fetching.there.port)]
    for other in ("other.named.test", "named.test.", "xnamed.test", "127.0.0.1"):
        assert trial(names=Names(**{other: [["127.0.0.1"]]})).refused(f"http://{other}/clip")[0] == 403
    assert trial(allow_hosts=["127.0.0.1"]).fetch("http://127.0.0.1:PORT/clip") == CLIP
    assert trial(allow_hosts=["[::1]"]).fetch("http://[::1]:PORT/clip") == CLIP


@pytest.mark.parametrize("port", [22, 25, 6379, 8000, 8080, 0, 65535])
def test_ports(trial: Callable[..., Trial], port: int) -> None:
    fetching = trial()
    assert fetching.refused(f"http://public.test:{port}/clip") == (403, "url_not_allowed")
    assert fetching.network.connected == []
    assert trial().fetch("http://public.test:443/clip") == CLIP  # control
    assert trial().fetch("http://public.test:/clip") == CLIP


@pytest.mark.parametrize(
    "url",
    [
        "http://user@public.test/clip", "http://user:word@public.test/clip", "http://@public.test/clip",
        "http://127.0.0.1@public.test/clip", "http://public.test:99999/clip", "http://public.test:x/clip",
        "http://[::1/clip", "http:///clip", "http:public.test/clip", "http://public.test/a b",
        "http://public.test/\r\nX: y",
        "http://public.test/\x00", "http://public.test/\t", "http://publ\N{CYRILLIC SMALL LETTER I}c.test/clip",
        "http://\N{FULLWIDTH DIGIT ONE}27.0.0.1/clip", "https://", "http://public.test\\@127.0.0.1:PORT/clip",
    ],
)  # fmt: skip
def test_urls_that_are_none(trial: Callable[..., Trial], url: str) -> None:
    fetching = trial()
    assert fetching.refused(url) == (400, "invalid_url")
    assert fetching.network.connected == []


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test", "nothing.invalid", "-", "%31.test", "a_b.invalid"])
def test_names_that_nobody_has(trial: Callable[..., Trial], host: str) -> None:
    assert trial().refused(f"http://{host}/clip") == (400, "url_failed")


# --- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("onward", "said"),
    [
        ("http://127.0.0.1/clip", (403, "url_not_allowed")),
        ("http://private.test/clip", (403, "url_not_allowed")),
        ("//169.254.169.254/latest/meta-data", (403, "url_not_allowed")),
        ("http://[::ffff:7f00:1]/clip", (403, "url_not_allowed")),
        ("http://public.test:22/", (403, "url_not_allowed")),
        ("http://user@public.test/clip", (400, "invalid_url")),
        ("file:///etc/passwd", (400, "invalid_url")),
        ("data:video/mp4;base64,AAAA", (400, "invalid_url")),
        ("ftp://public.test/clip", (400, "invalid_url")),
        ("http://\xe9.test/", (400, "invalid_url")),
        ("http://[", (400, "invalid_url")),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_that_are_not_followed(
    trial: Callable[..., Trial], onward: str, said: tuple[int, str], status: int
) -> None:
    fetching = trial({"/start": leads_to(onward, status), "/clip": gives(CLIP)})
    assert fetching.refused("http://public.test/start") == said
    assert len(fetching.there.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("onward", ["clip", "/clip", "//public.test/clip", "http://public.test/clip"])
def test_redirects_that_are_followed(trial: Callable[..., Trial], onward: str, status: int) -> None:
    fetching = trial({"/start": leads_to(onward, status), "/clip": gives(CLIP)})
    assert fetching.fetch("http://public.test/start") == CLIP


def test_named_host_leads_no_further(trial: Callable[..., Trial]) -> None:
    """A host that may be private does not make another one so."""
    fetching = trial({"/start": leads_to("http://127.0.0.1/clip"), "/clip": gives(CLIP)})
    assert fetching.refused("http://named.test:PORT/start") == (403, "url_not_allowed")
    control = trial({"/start": leads_to("/clip"), "/clip": gives(CLIP)})
    assert control.fetch("http://named.test:PORT/start") == CLIP


def test_three_redirects_and_no_more(trial: Callable[..., Trial]) -> None:
    behaviours = {f"/{step}": leads_to(f"/{step + 1}") for step in range(4)}
    assert trial({**behaviours, "/4": gives(CLIP)}).fetch("http://public.test/1") == CLIP
    assert trial({**behaviours, "/4": gives(CLIP)}).refused("http://public.test/0") == (400, "url_failed")
    assert trial({"/": leads_to("/")}).refused("http://public.test/") == (400, "url_failed")


# --- what comes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oh", "206 Partial Content", "204 No Content", "302 Found"])
def test_other_answers(trial: Callable[..., Trial], status: str) -> None:
    assert trial({"/clip": gives(b"", status=status)}).refused("http://public.test/clip") == (400, "url_failed")


def test_as_many_bytes_as_are_allowed(trial: Callable[..., Trial]) -> None:
    assert trial({"/clip": gives(bytes(MOST))}).fetch("http://public.test/clip") == bytes(MOST)
    assert trial({"/clip": gives(bytes(MOST + 1))}).refused("http://public.test/clip") == (413, "clip_too_large")


def test_announced_as_too_large(trial: Callable[..., Trial]) -> None:
    """Nothing of it is waited for."""
    fetching = trial({"/clip": gives(b"", length=10**15)})
    assert fetching.refused("http://public.test/clip") == (413, "clip_too_large")


def test_body_without_end(trial: Callable[..., Trial]) -> None:
    assert trial({"/clip": never_ends()}).refused("http://public.test/clip") == (413, "clip_too_large")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "gzip, gzip", "x"])
def test_compressed_bodies(trial: Callable[..., Trial], encoding: str) -> None:
    bomb = gzip.compress(bytes(10**7))
    assert len(bomb) < MOST
    fetching = trial({"/clip": gives(bomb, f"Content-Encoding: {encoding}")})
    assert fetching.refused("http://public.test/clip") == (400, "url_failed")
    control = trial({"/clip": gives(bomb, "Content-Encoding: Identity", "Content-Type: application/gzip")})
    assert control.fetch("http://public.test/clip") == bomb  # as it came


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\0" * 100, b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,
        b"HTTP/1.1 999999999 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
)  # fmt: skip
def test_answers_that_are_no_http(trial: Callable[..., Trial], answer: bytes) -> None:
    assert trial({"/clip": raw(answer)}).refused("http://public.test/clip") == (400, "url_failed")


@pytest.mark.parametrize(
    "behaviour",
    [
        says_nothing(), never_ends(0.05, b"x"), head_without_end(), raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 3),
    ],
    ids=["silence", "drip", "head", "continue"],
)  # fmt: skip
def test_total_time(trial: Callable[..., Trial], behaviour: Behaviour) -> None:
    began = time.monotonic()
    assert trial({"/clip": behaviour}, seconds=0.4).refused("http://public.test/clip") == (400, "url_failed")
    assert time.monotonic() - began < 5


def test_slow_drip_ends_before_the_time_does(trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "_START_SECONDS", 0.2)
    began = time.monotonic()
    assert trial({"/clip": never_ends(0.05, b"x")}).refused("http://public.test/clip") == (400, "url_failed")
    assert time.monotonic() - began < 10
    monkeypatch.setattr(remote_module, "_SLOWEST_BYTES_PER_SECOND", 0)
    control = trial({"/clip": never_ends(0.05, bytes(MOST // 8))})  # as slow, for longer, until it is too large
    assert control.refused("http://public.test/clip") == (413, "clip_too_large")


def test_silence_ends_before_the_time_does(trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "_SILENCE_SECONDS", 0.2)
    began = time.monotonic()
    assert trial({"/clip": says_nothing()}).refused("http://public.test/clip") == (400, "url_failed")
    assert time.monotonic() - began < 10


def test_resolver_that_hangs(trial: Callable[..., Trial]) -> None:
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return [PUBLIC]

    assert trial(names=hang, seconds=0.3).refused("http://public.test/clip") == (400, "url_failed")


def test_fetch_that_is_cancelled_leaves_nothing(trial: Callable[..., Trial]) -> None:
    fetching = trial({"/clip": never_ends(0.01, b"x" * 100)})

    async def cancel() -> None:
        task = asyncio.ensure_future(fetching._fetch("http://public.test/clip"))
        while not fetching.path.exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not fetching.path.exists()


def test_figures_in_the_text_are_the_programs(tmp_path: Path) -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8").split())
    seconds = MediaRules(tmp_path, MOST).fetch_seconds
    silence, start = remote_module._SILENCE_SECONDS, remote_module._START_SECONDS
    slowest = remote_module._SLOWEST_BYTES_PER_SECOND // 1000
    assert f"may take {seconds:g} s in all, ends after {silence:g} s of silence" in text
    assert f"less than {slowest} kB/s have come after {start:g} s" in text
    assert {1: "one", 2: "two", 3: "three"}[remote_module._MOST_REDIRECTS] + " redirects" in text


# --- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server that is public.test, and what has to be trusted to believe it."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=public.test", "-addext", "subjectAltName=DNS:public.test",
            "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def test_certificate_is_checked_for_the_name(
    trial: Callable[..., Trial], certified: tuple[ssl.SSLContext, Path]
) -> None:
    """The address is connected to, and yet it has to be the name that the certificate is for."""
    server, certificate = certified
    names = Names(public_test=[[PUBLIC]], other_test=[[PUBLIC]])
    tls = {"server_tls": server, "client_tls": ssl.create_default_context(cafile=str(certificate)), "names": names}
    fetching = trial(**tls)
    assert fetching.fetch("https://public.test/clip") == CLIP
    assert fetching.network.connected == [(PUBLIC, 443)]
    assert trial(**tls).refused("https://other.test/clip") == (400, "url_failed")
    assert trial(**tls).refused(f"https://{PUBLIC}/clip") == (400, "url_failed")
    assert trial(server_tls=server, names=names).refused("https://public.test/clip") == (
        400,
        "url_failed",
    )  # a stranger
