"""What attackers send to a server that runs: each is refused with the right status, its twin is answered, and the
server is there for the next one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx2
import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest

from holitom_cli.batch.reader import reader_count
from holitom_cli.serve.media import Media, MediaRules
from holitom_cli.serve.remote import Remote
from holitom_cli.serve.wishes import Ceilings
from holitom_cli.video.worker_link import Worker
from tests.clips import make
from tests.serve.elsewhere import Behaviour, elsewhere, gives, leads_to, never_ends
from tests.serve.served import PATIENCE_SECONDS, Served, load, serving, wait_until
from tests.video.test_memory import announcing

MOST = 2**21  # bytes of a clip
KEY = "a long random key"


@dataclass(frozen=True)
class Fort:
    """A server with a key and every door that there is, and what lies inside and outside of its folder."""

    served: Served
    root: Path
    spool: Path
    clip: Path  # inside

    def ask(self, url: str, key: str | None = KEY, **headers: str) -> httpx2.Response:
        """A question about a clip."""
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return self.served.post(self.served.body(url, "What happens?", max_tokens=4), headers=headers)

    def answers(self, url: str) -> bool:
        """Whether a URL leads to a clip that is answered about."""
        response = self.ask(url)
        assert response.status_code == 200, response.text
        return bool(response.json()["choices"])

    def refuses(self, url: str, status: int, code: str) -> None:
        """It says so in a sentence without names of its own, keeps nothing, and goes on."""
        check(self.ask(url), status, code)
        self.served.settle()
        assert [path.name for path in self.spool.glob("clip-*")] == []
        assert self.answers(self.clip.as_uri())

    def upload(self, body: Any, **headers: str) -> httpx2.Response:
        return httpx2.post(
            f"{self.served.url}/v1/files",
            content=body,
            headers={"authorization": f"Bearer {KEY}", **headers},
            timeout=PATIENCE_SECONDS,
        )


def check(response: httpx2.Response, status: int, code: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert "Traceback" not in response.text
    assert "holitom-serve" not in response.text
    assert "clip-" not in response.text


def data_url(content: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    place = tmp_path_factory.mktemp("fort")
    root, spool = place / "clips", place / "spool"
    root.mkdir()
    spool.mkdir()
    clip = make(root / "clip.mp4", frames=20)
    (root / "out.mp4").symlink_to(place / "secret.mp4")
    (root / "outer").symlink_to(place)
    os.mkfifo(root / "fifo.mp4")
    make(place / "secret.mp4", frames=20)
    ceilings = Ceilings(frames=16, clip_seconds=60.0, clip_pixels=2_000_000)
    with serving(lambda: load("demo"), spool, upload_bytes=MOST, api_key=KEY, ceilings=ceilings) as served:
        open_doors(served, MediaRules(spool, MOST, (root,), allow_remote=True))
        yield Fort(served, root, spool, clip)


def open_doors(served: Served, rules: MediaRules, remote: Remote | None = None) -> None:
    """Let a server open clips by other rules from now on."""
    served.service.watching._media = Media(rules, served.service.watching._media._files, remote)


# --- who may ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        None, b"Bearer", b"Bearer wrong", f"Bearer {KEY}x".encode(), f"Bearer {KEY[:-1]}".encode(), KEY.encode(),
        f"Bearer {KEY.upper()}".encode(), f"Basic {KEY}".encode(), b"Bearer \xc3\xa9\xff",
    ],
)  # fmt: skip
def test_key(fort: Fort, given: bytes | None) -> None:
    headers = {} if given is None else {b"authorization": given}
    url = f"{fort.served.url}/v1"
    body = json.dumps(fort.served.body(fort.clip.as_uri(), "What?")).encode()
    for method, path in (("POST", "chat/completions"), ("POST", "files"), ("GET", "files"), ("GET", "models")):
        check(httpx2.request(method, f"{url}/{path}", content=body, headers=headers), 401, "invalid_api_key")
    assert fort.answers(fort.clip.as_uri())  # control


def test_nothing_is_read_of_those_who_have_no_key(fort: Fort) -> None:
    """A body is not waited for, however large it is said to be."""
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {2**50}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", fort.served.port), 10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


# --- files of this machine -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "status"),
    [
        ("../secret.mp4", 403), ("%2e%2e/secret.mp4", 403), ("..%2Fsecret.mp4", 403), ("x/../../secret.mp4", 403),
        ("out.mp4", 403), ("outer/secret.mp4", 403), ("%252e%252e%252fsecret.mp4", 404), ("fifo.mp4", 404),
        ("..\\secret.mp4", 404), ("clip.mp4%00.png", 400), ("clip.mp4?x", 400),
    ],
)  # fmt: skip
def test_ways_out_of_the_folder(fort: Fort, way: str, status: int) -> None:
    code = {403: "path_not_allowed", 404: "file_not_found", 400: "invalid_url"}[status]
    fort.refuses(f"file://{fort.root}/{way}", status, code)


def test_secret_is_a_clip_that_could_be_read(fort: Fort) -> None:
    """Control: it is where it lies that it is refused for."""
    assert fort.answers(data_url((fort.root.parent / "secret.mp4").read_bytes()))


# --- hosts of others -------------------------------------------------------------------------------


class Outside:
    """A server of others in a thread of its own; "named.test" leads there, "public.test" to a public address."""

    def __init__(self, behaviours: dict[str, Behaviour]) -> None:
        self._behaviours = behaviours
        self._ready, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> Outside:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    async def _serve(self) -> None:
        async with elsewhere(self._behaviours) as there:
            self.port, self.requests = there.port, there.requests
            self._ready.set()
            while not self._over.is_set():
                await asyncio.sleep(0.01)

    async def names(self, host: str, _: int) -> list[str]:
        return {"named.test": ["127.0.0.1"], "mixed.test": ["93.184.215.14", "10.0.0.1"]}.get(host, [host])


@pytest.fixture
def fetching(fort: Fort) -> Iterator[Callable[[Outside], str]]:
    """Let the server fetch from a server of others; returns where that is."""
    rules = MediaRules(fort.spool, MOST, (fort.root,), allow_remote=True)

    def let(outside: Outside) -> str:
        open_doors(fort.served, rules, Remote(["named.test"], MOST, 3.0, resolve=outside.names))
        return f"http://named.test:{outside.port}"

    yield let
    open_doors(fort.served, rules)


def test_hosts_of_others(fort: Fort, fetching: Callable[[Outside], str]) -> None:
    behaviours = {
        "/clip": gives(fort.clip.read_bytes()),
        "/onward": leads_to("/clip"),
        "/inward": leads_to("http://127.0.0.1/clip"),
        "/cloud": leads_to("http://169.254.169.254/latest/meta-data/"),
        "/file": leads_to(f"file://{fort.root}/clip.mp4"),
        "/endless": never_ends(),
        "/page": gives(b"<html></html>"),
        "/missing": gives(b"", status="404 Not Found"),
    }
    with Outside(behaviours) as outside:
        there = fetching(outside)
        assert fort.answers(f"{there}/clip")
        assert fort.answers(f"{there}/onward")
        fort.refuses(f"{there}/inward", 403, "url_not_allowed")
        fort.refuses(f"{there}/cloud", 403, "url_not_allowed")
        fort.refuses("http://mixed.test/clip", 403, "url_not_allowed")
        fort.refuses(f"http://127.0.0.1:{outside.port}/clip", 403, "url_not_allowed")
        fort.refuses(f"{there}/file", 400, "invalid_url")
        fort.refuses(f"{there}/endless", 413, "clip_too_large")
        fort.refuses(f"{there}/page", 400, "unreadable_video")
        fort.refuses(f"{there}/missing", 400, "url_failed")


def test_the_server_itself_is_no_host(fort: Fort) -> None:
    """Who may not ask for the metrics from outside cannot let the server ask."""
    fort.refuses(f"http://127.0.0.1:{fort.served.port}/metrics", 403, "url_not_allowed")
    fort.refuses(f"http://localhost:{fort.served.port}/metrics", 403, "url_not_allowed")
    fort.refuses("http://localhost/metrics", 403, "url_not_allowed")


def test_doors_are_closed_unless_opened(fort: Fort) -> None:
    open_doors(fort.served, MediaRules(fort.spool, MOST))
    try:
        check(fort.ask(fort.clip.as_uri()), 403, "path_not_allowed")
        check(fort.ask("https://example.org/clip.mp4"), 403, "remote_not_allowed")
        assert fort.answers(data_url(fort.clip.read_bytes()))
    finally:
        open_doors(fort.served, MediaRules(fort.spool, MOST, (fort.root,), allow_remote=True))


# --- uploads ---------------------------------------------------------------------------------------

BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="../../a.mp4"\r\n\r\n'


def said(fort: Fort, parts: Iterable[bytes], *, pause: float = 0.0, hang_up: bool = False) -> tuple[int, str]:
    """Send parts until the server has heard enough; returns the status and the body of what it says then."""
    with socket.create_connection(("127.0.0.1", fort.served.port), PATIENCE_SECONDS) as connection:
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
                if select.select([connection], [], [], pause)[0]:
                    break
        if hang_up:
            return 0, ""
        answer = b""
        with suppress(OSError):
            while block := connection.recv(65536):
                answer += block
                if b"\r\n\r\n" in answer and len(answer) - answer.index(b"\r\n\r\n") > 10:
                    break
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode()


def request(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {KEY}", *headers, "", ""]
    return "\r\n".join(lines).encode()


FORM = "Content-Type: multipart/form-data; boundary=b"
JSON = "Content-Type: application/json"
PIECE = b"10000\r\n" + bytes(65536) + b"\r\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (lambda: [request("/v1/files", FORM, f"Content-Length: {2**50}")], "too_large"),
        (
            lambda: chain([request("/v1/files", FORM, "Transfer-Encoding: chunked"), chunk(HEAD)], repeat(PIECE)),
            "too_large",
        ),
        (lambda: chain([request("/v1/files", FORM, "Transfer-Encoding: chunked")], repeat(PIECE)), "invalid_form"),
        (
            lambda: chain(
                [request("/v1/files", FORM, "Transfer-Encoding: chunked"), chunk(b"--b\r\n")],
                repeat(chunk(b"X: y\r\n")),
            ),
            "invalid_form",
        ),
        (lambda: [request("/v1/chat/completions", JSON, f"Content-Length: {2**50}")], "too_large"),
        (
            lambda: chain([request("/v1/chat/completions", JSON, "Transfer-Encoding: chunked")], repeat(PIECE)),
            "too_large",
        ),
    ],
    ids=["length", "file", "preamble", "headers", "question", "endless question"],
)
def test_endless_bodies(fort: Fort, parts: Callable[[], Iterable[bytes]], code: str) -> None:
    """Each is refused while it is still being sent."""
    status, body = said(fort, parts())
    assert status == (413 if code == "too_large" else 400)
    assert not body or f'{code}"' in body  # the connection may be reset before all of it has been read
    fort.served.settle()
    assert [path.name for path in fort.spool.glob("file-*")] == []


def test_upload_of_a_twin(fort: Fort) -> None:
    """Control: what is not endless is kept, under a harmless name."""
    kept = fort.upload(HEAD + fort.clip.read_bytes() + b"\r\n--b--\r\n", **BOUNDARY).json()
    assert kept["filename"] == "a.mp4"
    assert fort.answers(kept["id"])
    fort.refuses(kept["id"] + "x", 404, "file_not_found")
    removed = httpx2.delete(
        f"{fort.served.url}/v1/files/{kept['id']}", headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE_SECONDS
    )
    assert removed.json()["deleted"]
    fort.refuses(kept["id"], 404, "file_not_found")


@pytest.mark.parametrize(
    "name", ["..", "../..", "%2e%2e%2flock", "..%2f..%2fsecret.mp4", "file-", "file-%00", "\N{BOMB}", "a" * 5000]
)
def test_names_of_files_lead_nowhere(fort: Fort, name: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    for method in ("GET", "DELETE"):
        response = httpx2.request(method, f"{fort.served.url}/v1/files/{name}", headers=headers)
        assert response.status_code in (404, 405, 307), response.text
    assert fort.clip.exists()


def test_quota_is_not_passed_by_many_at_once(fort: Fort) -> None:
    """The quota has room for eight; a place among them comes back when one is deleted."""
    headers = {"authorization": f"Bearer {KEY}"}
    body = HEAD + bytes(MOST) + b"\r\n--b--\r\n"
    with ThreadPoolExecutor(12) as clients:
        responses = list(clients.map(lambda _: fort.upload(body, **BOUNDARY), range(12)))
    kept = [response.json()["id"] for response in responses if response.status_code == 200]
    for response in responses:
        if response.status_code != 200:
            check(response, 507, "quota_exceeded")
    assert 1 <= len(kept) <= 8
    assert sum(path.stat().st_size for path in fort.spool.glob("file-*")) == len(kept) * MOST
    assert fort.answers(fort.clip.as_uri())
    for name in kept:
        httpx2.delete(f"{fort.served.url}/v1/files/{name}", headers=headers)
    assert list(fort.spool.glob("file-*")) == []
    again = fort.upload(body, **BOUNDARY).json()["id"]  # control
    httpx2.delete(f"{fort.served.url}/v1/files/{again}", headers=headers)


def test_clients_that_leave_in_the_middle(fort: Fort) -> None:
    for head in (
        [request("/v1/files", FORM, "Content-Length: 100000"), HEAD + bytes(5000)],
        [request("/v1/chat/completions", JSON, "Content-Length: 100000"), b'{"model": "demo"'],
        [request("/v1/chat/completions", JSON)[:50]],
    ):
        said(fort, head, hang_up=True)
    assert fort.answers(fort.clip.as_uri())  # by now the server has heard of all of them
    fort.served.settle()
    wait_until(lambda: list(fort.spool.glob("file-*")) == [])


def test_clients_that_drip(tmp_path: Path) -> None:
    """A body that never ends for want of speed holds its place no longer than any request may."""
    with serving(lambda: load("demo"), tmp_path, timeout_seconds=1.0, api_key=KEY) as served:
        fort = Fort(served, tmp_path, tmp_path, tmp_path)
        for path, kind, start, status in (
            ("/v1/files", FORM, HEAD, 408),
            ("/v1/chat/completions", JSON, b"{", 504),
        ):
            began = time.monotonic()
            drops = chain([request(path, kind, "Content-Length: 100000"), start], repeat(b"-"))
            assert said(fort, drops, pause=0.05)[0] == status
            assert time.monotonic() - began < 10
            served.settle()


# --- junk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    [
        b"\0" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + b"\xff" * 500,
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda junk: repr(junk[:24]),
)  # fmt: skip
def test_junk_for_http(fort: Fort, junk: bytes) -> None:
    assert said(fort, [junk])[0] in (0, 400, 401, 404, 431)
    assert fort.answers(fort.clip.as_uri())


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=\xff"}, {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=b"}, {"content-encoding": "gzip"}, {"expect": "200-ok"},
        {"x-forwarded-for": "127.0.0.1", "host": "evil.test"}, {"range": "bytes=0-"}, {"upgrade": "websocket"},
    ],
    ids=str,
)  # fmt: skip
def test_junk_in_headers(fort: Fort, headers: dict[str, str]) -> None:
    """They are refused, or have no effect."""
    encoded: Any = {name: value.encode("latin-1") for name, value in headers.items()}
    response = fort.served.post(
        fort.served.body(fort.clip.as_uri(), "What?", max_tokens=2),
        headers={"authorization": f"Bearer {KEY}", **encoded},
    )
    assert response.status_code in (200, 400, 415), response.text
    assert ("choices" in response.json()) == (response.status_code == 200)


# --- bombs -----------------------------------------------------------------------------------------


def piece_of_png(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    """A white or black picture, which takes next to nothing."""
    packing = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join(packing.compress(row) for _ in range(height)) + packing.flush()
    head = piece_of_png(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + piece_of_png(b"IDAT", packed) + piece_of_png(b"IEND", b"")


def gif(width: int, height: int, frames: int) -> bytes:
    """Frames of one point each on a canvas, 0.01 s apart: 23 bytes for any number of points."""
    frame = b"\x21\xf9\x04\x00\x01\x00\x00\x00,\0\0\0\0\1\0\1\0\0\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
    return head + bytes([0, 0, 0, 255, 255, 255]) + frame * frames + b";"


def test_pictures_that_unfold(fort: Fort) -> None:
    assert len(png(30_000, 30_000)) < 2**17
    fort.refuses(data_url(png(30_000, 30_000)), 400, "unreadable_video")  # 900 million points
    fort.refuses(data_url(png(1500, 1500)), 413, "clip_too_large")
    assert fort.answers(data_url(png(1000, 1000)))


def test_canvases_that_unfold(fort: Fort) -> None:
    fort.refuses(data_url(gif(60_000, 60_000, 3)), 400, "unreadable_video")
    fort.refuses(data_url(gif(2000, 2000, 3)), 413, "clip_too_large")
    fort.refuses(data_url(gif(16, 16, 10_000)), 413, "clip_too_large")  # 100 s
    assert fort.answers(data_url(gif(200, 200, 30)))


def test_clips_that_are_long(fort: Fort, tmp_path: Path) -> None:
    """A few frames, hours apart."""
    hours = make(tmp_path / "hours.mkv", frames=4, ticks=[0, 40, 80, 36_000_000])
    fort.refuses(data_url(hours.read_bytes()), 413, "clip_too_large")
    seconds = make(tmp_path / "seconds.mkv", frames=4, ticks=[0, 40, 80, 36_000])
    assert fort.answers(data_url(seconds.read_bytes()))


def test_pictures_that_are_large(fort: Fort, tmp_path: Path) -> None:
    large = make(tmp_path / "large.mp4", frames=2, size=(1600, 1280))
    fort.refuses(data_url(large.read_bytes()), 413, "clip_too_large")
    smaller = make(tmp_path / "smaller.mp4", frames=2, size=(1600, 1248))
    assert fort.answers(data_url(smaller.read_bytes()))


def test_tables_that_unfold(fort: Fort, demo_clip: Path) -> None:
    fort.refuses(data_url(announcing(demo_clip.read_bytes(), 2**31)), 400, "unreadable_video")
    assert fort.answers(data_url(demo_clip.read_bytes()))
    assert Worker.most_bytes is not None  # what such tables do below and above it: tests/video/test_memory.py
    assert Worker.most_bytes * reader_count() <= psutil.virtual_memory().total / 2


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile://{clip}\n", b"ffconcat version 1.0\nfile '{clip}'\n",
        b"v=0\nm=video 1 RTP/AVP 96\n",
        b"<MPD><Period><BaseURL>file://{clip}</BaseURL></Period></MPD>", b"[playlist]\nFile1={clip}\n",
        b"<smil><video src='{clip}'/></smil>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\x7fELF",
        b"PK\3\4", b"\x1f\x8b" + bytes(100), b"\x1aE\xdf\xa3" + b"\xff" * 1000,
        b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 100,
        b"\0\0\0\x18ftypmp42" + b"\xff" * 1000, b"GIF89a" + b"\xff" * 100, b"\x89PNG\r\n\x1a\n" + b"\xff" * 100,
        b"\xff\xd8\xff",
        b" ", b"\0" * 100_000, random.Random(0).randbytes(10_000),
    ],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_files_that_are_no_videos(fort: Fort, content: bytes) -> None:
    """Lists of other files among them: what they name would be allowed by itself."""
    named = content.replace(b"{clip}", str(fort.clip).encode())
    fort.refuses(data_url(named), 400, "unreadable_video")


def test_nothing_is_left(fort: Fort) -> None:
    """After all this, no descriptor, place, row, or file of a request is."""
    fort.served.settle()
    assert fort.answers(fort.clip.as_uri())
    fort.served.settle()
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert [link for link in links if str(fort.root) in link or str(fort.spool) in link] == []
    assert list(fort.spool.iterdir()) == []
