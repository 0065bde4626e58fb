"""Clips that are sent once: the form they come in, the quota, their end, and what leftovers of servers become."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from holitom_cli.serve import spool
from holitom_cli.serve.files import FileRules, FileStore, label_of
from holitom_cli.serve.forms import Form
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.spool import private_folder, remove_leftovers

T = TypeVar("T")
MIB = 1024**2


async def blocks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def store(folder: Path, *, most: int = 3 * MIB, quota: int = 10 * MIB, seconds: float = 60.0) -> FileStore:
    return FileStore(FileRules(folder, most, quota, seconds))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def refusal(work: Coroutine[Any, Any, object]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value.status, caught.value.code


def missing(action: Callable[[str], object], name: str) -> bool:
    """Whether a store says that there is no such file."""
    try:
        action(name)
    except Refused as refused:
        return (refused.status, refused.code) == (404, "file_not_found")
    return False


# --- what is kept ----------------------------------------------------------------------------------


def test_kept_as_it_came(tmp_path: Path) -> None:
    async def walk() -> None:
        files = store(tmp_path)
        first = await files.save(blocks(b"ab", b"", b"c"), "../../my clip.mp4")
        second = await files.save(blocks(b"x" * 100))
        assert files.list() == [second, first]
        assert files.get(first.id) == first
        assert (first.label, first.size_bytes, first.expires_at - first.created_at) == ("my clip.mp4", 3, 60)
        assert first.as_json()["filename"] == "my clip.mp4"
        with files.opened(first.id) as path:
            assert path.parent == tmp_path
            assert path.read_bytes() == b"abc"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        files.delete(first.id)
        assert files.list() == [second]
        assert missing(files.get, first.id)
        assert missing(files.delete, first.id)
        assert len(list(tmp_path.iterdir())) == 1

    run(walk())


def test_ids_cannot_be_guessed(tmp_path: Path) -> None:
    async def ids() -> list[str]:
        files = store(tmp_path, quota=1000 * MIB)
        return [(await files.save(blocks(b"a"))).id for _ in range(100)]

    found = run(ids())
    assert len({name[:12] for name in found}) == 100  # they have no beginning in common beyond "file-"
    assert all(len(name) == 37 for name in found)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("clip.mp4", "clip.mp4"), ("../../etc/passwd", "passwd"), ("C:\\clips\\a.mp4", "a.mp4"), ("", "clip"),
        ("/", "clip"),
        ("a\r\nSet-Cookie: b", "aSet-Cookie: b"), ("\x1b[31mred\0", "[31mred"), ("\u202egpj.exe", "gpj.exe"),
        ("x" * 500, "x" * 128), ("\N{LATIN SMALL LETTER E WITH ACUTE}.mp4", "\N{LATIN SMALL LETTER E WITH ACUTE}.mp4"),
    ],
)  # fmt: skip
def test_labels(name: str, label: str) -> None:
    assert label_of(name) == label


def test_size_limit_of_a_file(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    async def walk() -> None:
        files = store(tmp_path, most=MIB)
        assert await refusal(files.save(endless())) == (413, "clip_too_large")
        assert await refusal(files.save(blocks(bytes(MIB), b"x"))) == (413, "clip_too_large")
        assert await refusal(files.save(blocks())) == (400, "empty_file")
        assert await refusal(files.save(blocks(b"", b""))) == (400, "empty_file")
        assert (files.used_bytes, files.list(), list(tmp_path.iterdir())) == (0, [], [])
        assert (await files.save(blocks(bytes(MIB)))).size_bytes == MIB  # control

    run(walk())


def test_quota_of_all(tmp_path: Path) -> None:
    async def walk() -> None:
        files = store(tmp_path, quota=4 * MIB)
        first = await files.save(blocks(bytes(2 * MIB)))
        assert await refusal(files.save(blocks(bytes(MIB), bytes(MIB), b"x"))) == (507, "quota_exceeded")
        second = await files.save(blocks(bytes(2 * MIB)))  # control: what was refused holds no room
        assert await refusal(files.save(blocks(b"x"))) == (507, "quota_exceeded")
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 4 * MIB
        files.delete(first.id)
        await files.save(blocks(b"x"))
        assert files.used_bytes == 3 * MIB  # a small file counts as 1 MiB
        files.delete(second.id)
        assert files.used_bytes == MIB

    run(walk())


def test_quota_holds_among_uploads_at_once(tmp_path: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(MIB // 4)
            await asyncio.sleep(0.001)

    async def walk() -> None:
        files = store(tmp_path, quota=9 * MIB)
        ended = await asyncio.gather(*(files.save(slow()) for _ in range(20)), return_exceptions=True)
        refused = [end for end in ended if isinstance(end, Refused)]
        kept = [end for end in ended if not isinstance(end, BaseException)]
        assert len(kept) + len(refused) == 20
        assert {(end.status, end.code) for end in refused} == {(507, "quota_exceeded")}
        assert files.used_bytes == 2 * MIB * len(kept) <= 9 * MIB
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == files.used_bytes

    run(walk())


def test_uploads_that_break_off(tmp_path: Path) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        raise ConnectionError("the client has gone")

    async def stalls() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        await asyncio.sleep(60)

    async def walk() -> None:
        files = store(tmp_path)
        with pytest.raises(ConnectionError):
            await files.save(breaks())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await files.save(stalls())
        assert (files.used_bytes, files.list(), list(tmp_path.iterdir())) == (0, [], [])

    run(walk())


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device that is always full stands for the disk."""

    async def walk() -> None:
        files = store(tmp_path)
        with monkeypatch.context() as patch, Path("/dev/full").open("wb", buffering=0) as full:
            patch.setattr(spool, "write_all", lambda _, block: full.write(block))
            assert await refusal(files.save(blocks(b"abc"))) == (507, "disk_full")
        assert (files.used_bytes, list(tmp_path.iterdir())) == (0, [])
        await files.save(blocks(b"abc"))  # control

    run(walk())


# --- how long --------------------------------------------------------------------------------------


def test_expiry(tmp_path: Path) -> None:
    async def walk() -> None:
        files = store(tmp_path, seconds=0.2)
        stored = await files.save(blocks(b"abc"))
        assert files.get(stored.id) == stored  # control
        await asyncio.sleep(0.35)
        assert list(tmp_path.iterdir()) == []  # although nobody has asked for it
        assert (files.list(), files.used_bytes) == ([], 0)
        assert missing(files.get, stored.id)
        assert missing(lambda name: files.opened(name).__enter__(), stored.id)

    run(walk())


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_what_is_being_read_stays(tmp_path: Path, how: str) -> None:
    async def walk() -> None:
        files = store(tmp_path, seconds=0.2 if how == "expired" else 60)
        stored = await files.save(blocks(b"abc"))
        with files.opened(stored.id) as path:
            with files.opened(stored.id):
                if how == "deleted":
                    files.delete(stored.id)
                else:
                    await asyncio.sleep(0.35)
                assert missing(files.get, stored.id)  # nobody else finds it
                assert path.read_bytes() == b"abc"
            assert path.read_bytes() == b"abc"
            assert files.used_bytes == MIB  # its room is not another's yet
        assert not path.exists()
        assert files.used_bytes == 0

    run(walk())


# --- forms -----------------------------------------------------------------------------------------


def encoded(files: Any, data: Any = None) -> tuple[str, bytes]:
    """A form as a client encodes it."""
    request = httpx2.Request("POST", "http://x", files=files, data=data)
    return request.headers["content-type"], request.read()


async def parsed(kind: str, body: bytes, step: int) -> tuple[str | None, bytes]:
    form = Form(kind, blocks(*(body[at : at + step] for at in range(0, len(body), step))))
    found = b"".join([block async for block in await form.file()])
    return form.label, found


CONTENT = b"\r\n--" + bytes(range(256)) * 3 + b"\r\n--not the boundary--\r\n"


@pytest.mark.parametrize("step", [1, 7, 64, 10**6])
def test_form_as_clients_encode_it(step: int) -> None:
    kind, body = encoded({"file": ("clip.mp4", CONTENT)}, {"purpose": "user_data"})
    assert run(parsed(kind, body, step)) == ("clip.mp4", CONTENT)
    assert run(parsed(*encoded({"file": ("a.mp4", CONTENT)}), step)) == ("a.mp4", CONTENT)
    behind = encoded([("file", ("a.mp4", CONTENT)), ("purpose", (None, b"vision"))])
    assert run(parsed(*behind, step)) == ("a.mp4", CONTENT)


ONE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n%s\r\n'
END = b"--b--\r\n"


@pytest.mark.parametrize("step", [1, 10**6])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_form"), (END, "missing_file"), (b"junk", "invalid_form"), (ONE, "invalid_form"),
        (ONE + ONE + END, "invalid_form"), (ONE[:-5], "invalid_form"), (b"\0" * 1000, "invalid_form"),
        (PURPOSE % b"user_data" + END, "missing_file"), (ONE + PURPOSE % b"fine-tune" + END, "invalid_value"),
        (PURPOSE % b"fine-tune" + ONE + END, "invalid_value"), (PURPOSE % (b"x" * 10**5) + ONE + END, "invalid_form"),
        (ONE.replace(b'; filename="a"', b"") + END, "missing_file"),
        (ONE.replace(b"file", b"other", 1) + END, "missing_file"),
        (ONE.replace(b"Content-Disposition", b"X-Other") + END, "unsupported_parameter"),
        (ONE.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 10**5 + b"\r\n\r\n") + END, "invalid_form"),
        (ONE.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 100 + b"\r\n") + END, "invalid_form"),
        (ONE.replace(b": form", b"\xff form") + END, "invalid_form"),
    ],
)  # fmt: skip
def test_junk_in_forms(body: bytes, code: str, step: int) -> None:
    kind = "multipart/form-data; boundary=b"
    assert run(refusal(parsed(kind, body, step))) == (400, code)
    assert run(parsed(kind, ONE + PURPOSE % b"user_data" + END, step)) == ("a", b"abc")  # control


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "a; boundary=" + "x" * 71])
def test_forms_without_a_boundary(kind: str) -> None:
    assert run(refusal(parsed(kind, ONE + END, 10))) == (400, "invalid_form")


def test_file_that_fails_behind_is_not_kept(tmp_path: Path) -> None:
    async def walk() -> None:
        files = store(tmp_path)
        form = Form("multipart/form-data; boundary=b", blocks(ONE, PURPOSE % b"fine-tune", END))
        assert await refusal(files.save(await form.file())) == (400, "invalid_value")
        assert (files.used_bytes, list(tmp_path.iterdir())) == (0, [])

    run(walk())


def test_upload_takes_no_memory(tmp_path: Path) -> None:
    """64 MiB through a form to the disk, and what Python has allocated on the way."""

    async def body() -> AsyncIterator[bytes]:
        yield ONE.removesuffix(b"abc\r\n")
        for _ in range(1024):
            yield bytes(65536)
        yield b"\r\n" + END

    async def walk() -> int:
        files = store(tmp_path, most=100 * MIB, quota=100 * MIB)
        tracemalloc.start()
        form = Form("multipart/form-data; boundary=b", body())
        stored = await files.save(await form.file())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert stored.size_bytes == 64 * MIB
        return peak

    assert run(walk()) < 2 * MIB


# --- the folder ------------------------------------------------------------------------------------


def test_private_folder_is_private_and_goes(tmp_path: Path) -> None:
    with private_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "clip").write_bytes(b"abc")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_servers_go_and_others_stay(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from holitom_cli.serve.spool import private_folder\n"
        "with private_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'clip').write_bytes(b'abc'); print(folder, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        folder = Path(server.stdout.readline().strip())
        others = [tmp_path / "holitom-serve-mine", tmp_path / "else"]
        for other in others:
            other.mkdir()
            (other / "kept").write_bytes(b"abc")
        (tmp_path / "holitom-serve-link").symlink_to(others[1])
        (others[1] / "lock").write_bytes(b"")
        remove_leftovers(tmp_path)
        assert (folder / "clip").exists()  # it runs
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert (folder / "clip").exists()  # control: nobody has cleaned up
    with private_folder(tmp_path):
        assert not folder.exists()
        assert all((other / "kept").exists() for other in others)


def test_no_two_processes_use_a_folder(tmp_path: Path) -> None:
    with private_folder(tmp_path) as one, private_folder(tmp_path) as two:
        assert {one, two} == set(tmp_path.iterdir())
        assert (one / "lock").exists()
