"""What clients may name as a clip: each refusal beside a twin that is allowed."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from holitom_cli.errors import UsageError
from holitom_cli.serve import media as media_module
from holitom_cli.serve.files import FileRules, FileStore
from holitom_cli.serve.media import Media, MediaRules
from holitom_cli.serve.refusals import Refused

MOST = 3000
CONTENT = bytes(range(256)) * 8  # 2048 bytes


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    return folder


def media(spool: Path, *roots: Path, allow_remote: bool = False) -> Media:
    rules = MediaRules(spool, MOST, allow_paths=roots, allow_remote=allow_remote)
    return Media(rules, FileStore(FileRules(spool, MOST, 10**8, 60)))


def content(opener: Media, url: str) -> bytes:
    """What is found under a URL."""

    async def read() -> bytes:
        async with opener.open(url) as path:
            return path.read_bytes()

    return asyncio.run(read())


def refused(opener: Media, url: str) -> tuple[int, str]:
    """With which status and code a URL is refused; nothing may be left of it."""
    before = sorted(opener._rules.spool.iterdir())
    with pytest.raises(Refused) as caught:
        content(opener, url)
    assert sorted(opener._rules.spool.iterdir()) == before
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    return caught.value.status, caught.value.code


def data(content: bytes, head: str = "data:video/mp4;base64,") -> str:
    return head + base64.b64encode(content).decode()


# --- data URLs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [4, 64, 4 * 2**18])
@pytest.mark.parametrize("size", [1, 2, 3, 48, 49, 2048, MOST])
def test_data_url_is_what_python_decodes(spool: Path, size: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "_PIECE", piece)
    sent = os.urandom(size)
    assert content(media(spool), data(sent)) == sent
    assert list(spool.iterdir()) == []


def test_spooled_file_is_private_while_it_is_there(spool: Path) -> None:
    async def look() -> int:
        async with media(spool).open(data(CONTENT)) as path:
            assert path.parent == spool
            return stat.S_IMODE(path.stat().st_mode)

    assert asyncio.run(look()) == 0o600


@pytest.mark.parametrize(
    "head",
    ["data:video/mp4;base64,", "DATA:Video/MP4;Base64,", "data:;base64,", "data:video/webm;codecs=vp9;base64,"],
)
def test_heads_that_are_taken(spool: Path, head: str) -> None:
    assert content(media(spool), data(CONTENT, head)) == CONTENT


@pytest.mark.parametrize("piece", [64, 4 * 2**18])
@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,",
        "data:video/mp4;base64,",
        "data:video/mp4,plain",
        "data:video/mp4;base64",
        data(CONTENT, "data:text/html;base64,"),
        data(CONTENT, "data:audio/mpeg;base64,"),
        data(CONTENT, "data:" + "x" * 300 + ";base64,"),
        data(CONTENT) + "!",
        data(CONTENT) + "\n",
        data(CONTENT) + "=",
        data(CONTENT) + "====",
        data(CONTENT) + "A",
        data(CONTENT).rstrip("="),  # its padding is missing
        data(b"abcd") + data(CONTENT, ""),  # an end before the end
        "data:video/mp4;base64," + "A" * 62 + "==" + "AAAA" * 20,  # the same where pieces meet
        "data:video/mp4;base64,AA\N{FULLWIDTH LATIN CAPITAL LETTER A}A",
        "data:video/mp4;base64,AA-_",  # letters of another alphabet
        "data:video/mp4;base64,\ud800AAA",
    ],
)
def test_junk_in_data_urls(spool: Path, url: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "_PIECE", piece)
    assert refused(media(spool), url) == (400, "invalid_url")


@pytest.mark.parametrize("more", [1, 2, 3, 4, 10**6])
def test_too_much_data(spool: Path, more: int) -> None:
    assert refused(media(spool), data(bytes(MOST + more))) == (413, "clip_too_large")
    assert content(media(spool), data(bytes(MOST))) == bytes(MOST)  # control


@pytest.mark.parametrize("most", [1, 2, 3, 100, 101, 102])
def test_limit_is_exact(spool: Path, most: int) -> None:
    """Also where padding hides how much there is until it has been decoded."""
    opener = Media(MediaRules(spool, most), FileStore(FileRules(spool, most, 10**8, 60)))
    assert content(opener, data(bytes(most))) == bytes(most)
    assert refused(opener, data(bytes(most + 1))) == (413, "clip_too_large")


def test_full_disk(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device that is always full stands for the disk."""
    monkeypatch.setattr(media_module, "new_path", lambda _: spool / "new")
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777, **more: _full(real_open, path, flags, mode, more))
    assert refused(media(spool), data(CONTENT)) == (507, "disk_full")
    monkeypatch.setattr(os, "open", real_open)
    assert content(media(spool), data(CONTENT)) == CONTENT  # control


def _full(real_open: Callable[..., int], path: Path, flags: int, mode: int, more: dict[str, int]) -> int:
    if Path(path).name == "new":
        os.close(real_open(path, flags, mode, **more))
        return real_open("/dev/full", os.O_WRONLY)
    return real_open(path, flags, mode, **more)


def test_cancelled_while_writing_leaves_nothing(spool: Path) -> None:
    async def cancel() -> None:
        opener = media(spool)
        task = asyncio.ensure_future(opener.open(data(CONTENT)).__aenter__())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert list(spool.iterdir()) == []


# --- other schemes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "", "clip.mp4", "/etc/passwd", "ftp://example.org/a.mp4", "gopher://x", "concat:a|b", "pipe:0", "rtmp://x/y",
        "fd:", "crypto:data:x", "subfile,,start,0,end,0,,:/etc/passwd", "javascript:1", "\0", " file:///etc/passwd",
        "file", "https", "\ud800",
    ],
)  # fmt: skip
def test_unknown_kinds(spool: Path, url: str) -> None:
    assert refused(media(spool, Path("/etc"), allow_remote=True), url) == (400, "unsupported_url")


def test_remote_is_off_by_default(spool: Path) -> None:
    assert refused(media(spool), "https://example.org/clip.mp4") == (403, "remote_not_allowed")
    assert refused(media(spool), "HTTP://example.org/clip.mp4") == (403, "remote_not_allowed")
    assert refused(media(spool, allow_remote=True), "https://127.0.0.1/") == (403, "url_not_allowed")  # control


def test_no_url_of_a_clip_is_endless(spool: Path, tmp_path: Path) -> None:
    opener = media(spool, tmp_path, allow_remote=True)
    for start in ("https://example.org/", f"file://{tmp_path}/"):
        assert refused(opener, start + "a" * 8192) == (400, "invalid_url")


def test_uploaded_file_by_its_id(spool: Path) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        yield CONTENT

    store = FileStore(FileRules(spool, MOST, 10**8, 60))
    opener = Media(MediaRules(spool, MOST), store)

    async def walk() -> None:
        stored = await store.save(blocks())
        async with opener.open(stored.id) as path:
            assert path.read_bytes() == CONTENT
        for name in (stored.id + "x", "file-", f"file-/../{path.name}", "file-" + "a" * 32, "file-../lock"):
            with pytest.raises(Refused) as caught:
                async with opener.open(name):
                    raise AssertionError(name)
            assert (caught.value.status, caught.value.code) == (404, "file_not_found")

    asyncio.run(walk())


# --- files of this machine -------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of clips with all that must not be followed, and a secret beside it."""
    root = tmp_path / "clips"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "clip.mp4").write_bytes(CONTENT)
    (root / "a b%41?#\N{LATIN SMALL LETTER E WITH ACUTE}.mp4").write_bytes(CONTENT)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "clips2").mkdir()
    (tmp_path / "clips2" / "clip.mp4").write_bytes(b"secret")
    (root / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "relative_out.mp4").symlink_to("../secret.mp4")
    (root / "outer").symlink_to(tmp_path)
    (root / "in.mp4").symlink_to("inner/clip.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(root / "fifo.mp4")
    return root


def test_files_are_off_by_default(spool: Path, root: Path) -> None:
    url = f"file://{root}/inner/clip.mp4"
    assert refused(media(spool), url) == (403, "path_not_allowed")
    assert content(media(spool, root), url) == CONTENT  # control


@pytest.mark.parametrize(
    "name",
    [
        "inner/clip.mp4", "in.mp4", "inner/../inner/./clip.mp4", "inner//clip.mp4", "%69nner%2Fclip%2emp4",
        "a%20b%2541%3F%23%C3%A9.mp4", "inner/../in.mp4",
    ],
)  # fmt: skip
def test_files_below_the_root(spool: Path, root: Path, name: str) -> None:
    for start in ("file://", "file://localhost", "FILE://", "file:"):
        assert content(media(spool, root), f"{start}{root}/{name}") == CONTENT
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret.mp4", "inner/../../secret.mp4", "%2e%2e/secret.mp4", "..%2fsecret.mp4", "%2E%2E%2Fsecret.mp4",
        ".%2e/secret.mp4", "../clips2/clip.mp4", "../../../../../../../../etc/passwd", "out.mp4", "relative_out.mp4",
        "outer/secret.mp4", "outer/clips2/clip.mp4", "..", "", ".", "../nothing.mp4", "inner/../..//secret.mp4",
        "outer/../../secret.mp4",
    ],
)  # fmt: skip
def test_ways_out_of_the_root(spool: Path, root: Path, name: str) -> None:
    assert refused(media(spool, root), f"file://{root}/{name}") == (403, "path_not_allowed")


@pytest.mark.parametrize(
    "name",
    [
        "nothing.mp4", "inner", "inner/", "fifo.mp4", "loop.mp4", "inner/clip.mp4/x", "%252e%252e/secret.mp4",
        "..%5csecret.mp4", "%c0%ae%c0%ae/secret.mp4", "\\..\\secret.mp4", "a" * 300,
    ],
)  # fmt: skip
def test_no_files(spool: Path, root: Path, name: str) -> None:
    assert refused(media(spool, root), f"file://{root}/{name}") == (404, "file_not_found")


@pytest.mark.parametrize(
    "url",
    [
        "file://elsewhere{root}/inner/clip.mp4", "file://localhost:80{root}/inner/clip.mp4",
        "file://user@localhost{root}/inner/clip.mp4", "file://127.0.0.1{root}/inner/clip.mp4",
        "file://[::1{root}/inner/clip.mp4", "file:", "file://", "file:inner/clip.mp4", "file://{root}/inner/clip.mp4?x",
        "file://{root}/inner/clip.mp4#x", "file://{root}/inner/clip.mp4%00", "file://{root}/%00/../inner/clip.mp4",
    ],
)  # fmt: skip
def test_urls_that_name_no_path(spool: Path, root: Path, url: str) -> None:
    assert refused(media(spool, root), url.format(root=root)) == (400, "invalid_url")
    assert content(media(spool, root), f"file://{root}/inner/clip.mp4") == CONTENT  # control


def test_device_below_a_root(spool: Path) -> None:
    assert refused(media(spool, Path("/dev")), "file:///dev/zero") == (404, "file_not_found")


def test_root_that_is_a_link_or_all(spool: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(root)
    opener = media(spool, tmp_path / "linked")
    assert content(opener, f"file://{tmp_path}/linked/inner/clip.mp4") == CONTENT
    assert content(opener, f"file://{root}/inner/clip.mp4") == CONTENT
    assert refused(opener, f"file://{tmp_path}/linked/../secret.mp4") == (403, "path_not_allowed")
    assert content(media(spool, Path("/")), f"file://{tmp_path}/secret.mp4") == b"secret"
    assert content(media(spool, root, tmp_path / "clips2"), f"file://{tmp_path}/clips2/clip.mp4") == b"secret"


def test_what_is_read_is_what_was_checked(spool: Path, root: Path, tmp_path: Path) -> None:
    """Names change after the check: the file that was checked is read."""
    clip = root / "inner" / "clip.mp4"

    async def change() -> tuple[bytes, bytes]:
        async with media(spool, root).open(f"file://{clip}") as path:
            assert path.suffix == ".mp4"
            (root / "inner").rename(root / "moved")
            (root / "inner").symlink_to(tmp_path / "clips2")
            return path.read_bytes(), clip.read_bytes()

    assert asyncio.run(change()) == (CONTENT, b"secret")  # the name itself would lead out


def test_no_step_is_a_link(root: Path, tmp_path: Path) -> None:
    """Names change between the check and the opening: nothing is opened."""
    from holitom_cli.serve.roots import _open_below

    os.close(_open_below(str(root), "inner/clip.mp4"))  # control
    for changed in ("outer/secret.mp4", "outer/clips2/clip.mp4", "out.mp4", "in.mp4"):
        assert (root / changed).read_bytes() in (b"secret", CONTENT)  # who follows links gets it
        with pytest.raises(OSError, match=r"not a regular file|Not a directory|symbolic links"):
            _open_below(str(root), changed)


def test_name_becomes_a_link_after_it_was_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.serve.roots import _open_below

    regular = (root / "inner" / "clip.mp4").stat()
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)  # what it was a moment ago
    with pytest.raises(OSError, match="symbolic links"):
        _open_below(str(root), "out.mp4")
    os.close(_open_below(str(root), "inner/clip.mp4"))  # control


def test_no_descriptor_stays_open(spool: Path, root: Path) -> None:
    opener = media(spool, root)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("inner/clip.mp4", "fifo.mp4", "inner", "nothing", "out.mp4") * 3:
        try:
            content(opener, f"file://{root}/{name}")
        except Refused:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_root_has_to_be_a_folder(spool: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        media(spool, tmp_path / "nothing")


def test_decoder_reads_through_the_held_file(spool: Path, root: Path, demo_clip: Path) -> None:
    """Another process follows the link: the worker that decodes."""
    from holitom_cli import video

    (root / "demo.mp4").write_bytes(demo_clip.read_bytes())

    async def probe() -> tuple[int, int]:
        async with media(spool, root).open(f"file://{root}/demo.mp4") as path:
            info = await asyncio.to_thread(video.probe, path)
            return info.frame_count, info.size_bytes

    here = video.probe(demo_clip)
    assert asyncio.run(probe()) == (here.frame_count, here.size_bytes)
