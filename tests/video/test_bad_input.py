"""Files that are no videos, broken ones, and names that look like something else."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from holitom_cli.errors import UsageError, VideoError
from holitom_cli.types import Sampling
from holitom_cli.video import av_reader, client, opening, probe, read
from tests import clips


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.make(tmp_path_factory.mktemp("bad") / "clip.mp4", 120, container_options={"movflags": "faststart"})


def refusal(path: Path | str) -> str:
    """What probe and read both say: one sentence, with a hint."""
    with pytest.raises(VideoError) as by_probe:
        probe(path)
    with pytest.raises(VideoError) as by_read:
        read(path)
    assert by_probe.value.message == by_read.value.message
    assert by_read.value.hint
    assert "\n" not in by_read.value.message
    return by_read.value.message


def sound(path: Path, *, cover: bool = False) -> Path:
    """A second of silence, with a cover picture on request."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        assert isinstance(stream, av.AudioStream)
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if isinstance(picture, av.VideoStream):
            picture.width, picture.height, picture.pix_fmt = clips.WIDTH, clips.HEIGHT, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(clips.draw(1), format="rgb24")))
            container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_no_such_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.mp4") == "There is no file none.mp4."


def test_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path.name} is a folder without pictures."


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "e.mp4").touch()
    assert refusal(tmp_path / "e.mp4") == "e.mp4 is empty (0 bytes)."


@pytest.mark.parametrize("content", [b"not a video\n" * 50, bytes(range(256)) * 40])
@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.mpg"])
def test_junk(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path / name)


def test_sound_only(tmp_path: Path) -> None:
    assert refusal(sound(tmp_path / "a.mp4")) == "a.mp4 has sound but no moving pictures."


def test_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.mp4", cover=True)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert refusal(path) == "a.mp4 has sound but no moving pictures."


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.timeout(10)
def test_fifo_and_device_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refusal(tmp_path / "pipe.mp4") == "pipe.mp4 is not a regular file."
    assert refusal("/dev/zero") == "zero is not a regular file."


def test_no_permission(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # the mode bits do not bind root, who may run these tests
    assert refusal(clip) == "clip.mp4 cannot be opened: permission denied."


def test_path_with_a_zero_byte() -> None:
    assert "null" in refusal("a\0.mp4")


@pytest.mark.parametrize("count", [0, -3])
def test_no_frames_asked_for(clip: Path, count: int) -> None:
    with pytest.raises(UsageError):
        read(clip, count)


NAMES = [
    "with space.mp4",
    "ünï — 動画.mp4",
    "two\nlines.mp4",
    "-i.mp4",
    "--help",
    "concat:a.mp4",
    "file:x.mp4",
    "%03d.mp4",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"not-utf8-\xff.mp4")])
def test_names_are_only_names(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copy(clip, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert clips.numbers_in(read(name, 3).pixels) == [0, 59, 119]


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/x.mp4", "pipe:0", "concat:a.mp4|b.mp4"])
def test_addresses_are_looked_for_as_files(name: str) -> None:
    assert "There is no file" in refusal(name)


def huge(path: Path, codec: str, side: int) -> Path:
    """A small file of one picture with so many pixels on a side, all black."""
    with av.open(str(path), "w", options={"update": "1"} if path.suffix == ".png" else {}) as container:
        stream = container.add_stream(codec, rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = side, side, "monob"
        picture = av.VideoFrame(side, side, "monob")
        picture.planes[0].update(bytes(picture.planes[0].buffer_size))
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def test_pictures_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = huge(tmp_path / "bomb.mov", "png", 10_100)
    assert path.stat().st_size < 100_000
    assert refusal(path) == "bomb.mov has pictures of 10,100 x 10,100 pixels; 100 million is the most."
    (tmp_path / "folder").mkdir()
    huge(tmp_path / "folder" / "bomb.png", "png", 10_100)
    assert refusal(tmp_path / "folder") == "bomb.png has pictures of 10,100 x 10,100 pixels; 100 million is the most."
    assert read(huge(tmp_path / "large.mov", "png", 2000), 1).pixels.shape == (1, 2000, 2000, 3)  # control


# --- files that change meanwhile --------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed there")
def test_a_file_that_vanishes(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.mp4"
    shutil.copy(clip, path)
    with pytest.raises(VideoError, match=r"^gone\.mp4 could not be read: ") as caught:
        read(path, 3, accept=lambda *_: path.unlink())
    assert "\n" not in caught.value.message


def test_a_file_that_grows(clip: Path, tmp_path: Path) -> None:
    """What was written after the index was read is not looked at; what was there is read right."""
    path = tmp_path / "growing.mp4"
    shutil.copy(clip, path)

    def grow(*_: object) -> None:
        with path.open("ab") as file:
            file.write(bytes(100_000))

    assert clips.numbers_in(read(path, 3, accept=grow).pixels) == [0, 59, 119]


# --- files that point at other files -----------------------------------------------------------

HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n{}\n#EXT-X-ENDLIST\n"
DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">
<Period><AdaptationSet><Representation id="0" mimeType="video/mp4" bandwidth="1"><BaseURL>{}</BaseURL></Representation>
</AdaptationSet></Period></MPD>"""


@pytest.mark.parametrize("decoder", ["auto", "av", "decord"])
@pytest.mark.parametrize("content", [HLS, "ffconcat version 1.0\nfile '{}'\n", DASH])
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.mkv"])
def test_playlists_are_not_followed(tmp_path: Path, name: str, content: str, decoder: client.Decoder) -> None:
    secret, inside = clips.make(tmp_path / "secret.ts", 30), tmp_path / "inside"
    inside.mkdir()
    (inside / name).write_text(content.format(secret))
    with pytest.raises(VideoError) as caught:
        read(inside / name, 3, decoder=decoder)
    assert caught.value.message == f"{name} is a playlist: it points at other files, and those are not read."


def test_control_a_decoder_would_follow_a_playlist(tmp_path: Path) -> None:
    """What is refused is not refused for being broken: without our list of formats, av reads the other file."""
    secret, inside = clips.make(tmp_path / "secret.ts", 30), tmp_path / "inside"
    inside.mkdir()
    (inside / "list.m3u8").write_text(HLS.format(secret))
    with av.open(f"file:{inside / 'list.m3u8'}") as container:
        first = np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), np.uint8)
        assert clips.number_in(first) == 0


@pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel for this platform")
def test_control_decord_would_follow_a_playlist_named_as_a_video(tmp_path: Path) -> None:
    secret, inside = clips.make(tmp_path / "secret.ts", 30), tmp_path / "inside"
    inside.mkdir()
    (inside / "list.mp4").write_text(HLS.format(secret))
    code = "import sys, decord; print(len(decord.VideoReader(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, inside / "list.mp4"], capture_output=True, check=False)
    assert done.stdout.strip() == b"30"


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content


def found(content: bytes, begin: int, end: int, *names: bytes) -> tuple[int, int]:
    """Where the first box at this path of names begins and ends."""
    while content[begin + 4 : begin + 8] != names[0]:
        begin += int.from_bytes(content[begin : begin + 4])
        assert begin < end, names
    end = begin + int.from_bytes(content[begin : begin + 4])
    return found(content, begin + 8, end, *names[1:]) if names[1:] else (begin, end)


DREF = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")


def with_reference(movie: bytes, entry: bytes) -> bytes:
    """The movie without its pictures, and with another data reference: a box of its own kind."""
    begin, end = found(movie, 0, len(movie), *DREF)
    other = box(b"dref", struct.pack(">II", 0, 1) + entry)
    changed = bytearray(movie[:begin] + other + movie[end:])
    for depth in range(1, len(DREF)):  # the boxes around it are longer by as much
        around = found(movie, 0, len(movie), *DREF[:depth])[0]
        longer = int.from_bytes(movie[around : around + 4]) + len(other) - (end - begin)
        changed[around : around + 4] = longer.to_bytes(4)
    begin, end = found(bytes(changed), 0, len(changed), b"mdat")
    return bytes(changed[:begin] + changed[end:])


def url(file: Path) -> bytes:
    return box(b"url ", bytes(4) + b"file://" + bytes(file) + b"\0")


def alias(file: Path) -> bytes:
    """An alias record of classic Mac OS that names a path (tag 2), as QuickTime writes it."""
    name, path = file.name.encode(), bytes(file)
    record = bytes(6) + struct.pack(">HH", 2, 0) + b"\4disk".ljust(28, b"\0") + bytes(12)
    record += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">hh", -1, -1) + bytes(16)
    record += struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2) + struct.pack(">HH", 0xFFFF, 0)
    return box(b"alis", bytes(4) + record)


@pytest.mark.parametrize("decoder", ["auto", "av", "decord"])
@pytest.mark.parametrize("reference", [url, alias])
@pytest.mark.parametrize("ending", ["mov", "mp4"])
def test_movies_that_point_at_other_files_are_refused(
    tmp_path: Path, ending: str, reference: Callable[[Path], bytes], decoder: client.Decoder
) -> None:
    secret, path = clips.make(tmp_path / f"secret.{ending}", 30), tmp_path / f"pointer.{ending}"
    path.write_bytes(with_reference(secret.read_bytes(), reference(secret)))
    with pytest.raises(VideoError) as caught:
        read(path, 3, decoder=decoder)
    assert caught.value.message == f"pointer.{ending} keeps its pictures in another file, and others are not read."


def test_control_a_decoder_would_follow_a_data_reference(tmp_path: Path) -> None:
    """Asked to, av reads the other file; what opens files here does not ask, and without the check gets nothing."""
    secret, path = clips.make(tmp_path / "secret.mov", 30), tmp_path / "pointer.mov"
    path.write_bytes(with_reference(secret.read_bytes(), alias(secret)))
    with av.open(str(path), container_options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        first = np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), np.uint8)
        assert clips.number_in(first) == 0
    with opening.opened(str(path)) as (container, stream):
        assert next(opening.frames_of(opening.packets_of(container, stream), stream), None) is None


@pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel for this platform")
@pytest.mark.parametrize("reference", [url, alias])
def test_decord_follows_no_data_reference_either(tmp_path: Path, reference: Callable[[Path], bytes]) -> None:
    """By itself it raises an error; on the other file it does not."""
    secret, path = clips.make(tmp_path / "secret.mov", 30), tmp_path / "pointer.mov"
    path.write_bytes(with_reference(secret.read_bytes(), reference(secret)))
    code = "import sys, decord; print(len(decord.VideoReader(sys.argv[1])), decord.VideoReader(sys.argv[1])[0].shape)"
    done = [
        subprocess.run([sys.executable, "-c", code, file], capture_output=True, check=False) for file in (secret, path)
    ]
    assert done[0].stdout.split(maxsplit=1)[0] == b"30"
    assert (done[1].returncode, done[1].stdout) == (1, b"")


@pytest.mark.parametrize(
    "entry", [box(b"url ", bytes(4)), box(b"url ", b"\0\0\0\1"), box(b"alis", b"\0\0\0\1" + bytes(20))]
)
def test_references_to_the_file_itself_are_none(clip: Path, tmp_path: Path, entry: bytes) -> None:
    movie = clips.make(tmp_path / "clip.mov", 30).read_bytes()
    begin, end = found(movie, 0, len(movie), b"mdat")
    (tmp_path / "own.mov").write_bytes(movie[:begin] + movie[begin:end] + with_reference(movie, entry)[begin:])
    assert clips.numbers_in(read(tmp_path / "own.mov", 3).pixels) == [0, 14, 29]


def test_pictures_named_by_a_pattern_are_not_opened(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(clips.draw(number)).save(tmp_path / f"p{number}.png")
    assert refusal(tmp_path / "p%d.png") == "There is no file p%d.png."
    (tmp_path / "p%d.png").write_bytes((tmp_path / "p1.png").read_bytes())
    assert clips.numbers_in(read(tmp_path / "p%d.png", 8).pixels) == [1]


def test_mp4_cut_before_its_index(tmp_path: Path) -> None:
    whole = clips.make(tmp_path / "whole.mp4", 120).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    assert refusal(tmp_path / "cut.mp4") == "cut.mp4 is not a video that can be read."


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_mp4_cut_off_is_answered_from_what_is_there(clip: Path, tmp_path: Path, share: float) -> None:
    whole, cut = clip.read_bytes(), tmp_path / "cut.mp4"
    pictures = whole.index(b"mdat")
    cut.write_bytes(whole[: pictures + int((len(whole) - pictures) * share)])
    frames = read(cut, 32)
    assert probe(cut).frame_count == 120
    assert frames.indices is not None
    assert 0 < len(frames) < 32
    assert frames.frames_missing == 32 - len(frames)
    assert frames.warnings[0] == f"{frames.frames_missing} of 32 frames could not be read; the file seems cut off."
    assert clips.numbers_in(frames.pixels) == frames.indices.tolist() == uniform(120, 32)[: len(frames)]
    np.testing.assert_allclose(frames.seconds, frames.indices / 25, atol=1e-9)


@pytest.mark.parametrize("version", ["before av 17", "from av 17 on"])
def test_a_cut_off_mp4_is_told_without_its_index_too(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Before av 17 nobody sees the index: the frames that are there are all that are known of."""
    if version == "before av 17":
        monkeypatch.setattr(av_reader, "indexed_count", lambda *_: None)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    found = av_reader.Clip(str(cut)).plan(Sampling(num_frames=4))
    if version == "before av 17":
        assert found["ends_early"].endswith("of 4.8 s; it seems cut off.")
    else:
        assert found["cut_off"]
    assert av_reader.Clip(str(clip)).plan(Sampling(num_frames=4))["ends_early"] is None


def test_mp4_with_nothing_but_its_index(clip: Path, tmp_path: Path) -> None:
    whole, cut = clip.read_bytes(), tmp_path / "cut.mp4"
    cut.write_bytes(whole[: whole.index(b"mdat") + 8])
    assert refusal(cut) == "No frame of cut.mp4 can be decoded."


@pytest.mark.parametrize("kind", ["mkv", "avi"])
def test_a_container_that_ends_early_says_so(tmp_path: Path, kind: str) -> None:
    whole, cut = clips.make(tmp_path / f"whole.{kind}", 120), tmp_path / f"cut.{kind}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert "of 4.8 s; it seems cut off." in read(cut, 8).warnings[0]
    assert read(whole, 8).warnings == ()


@pytest.mark.parametrize("broken", [40, 48])  # a frame in a group, a key frame
def test_damage_never_shows_a_neighbour(clip: Path, tmp_path: Path, broken: int) -> None:
    """Overwrite one packet: frames may be missing, those that come show their own number."""
    content, path = bytearray(clip.read_bytes()), tmp_path / "damaged.mp4"
    with av.open(str(clip)) as container:
        spans = [
            (packet.pos, packet.size) for packet in container.demux(video=0) if packet.size and packet.pos is not None
        ]
    start, size = spans[broken]
    content[start : start + size] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    frames = read(path, 120)
    assert frames.indices is not None
    assert frames.decoder == "av"
    assert 0 < frames.frames_missing < 30
    assert frames.warnings[0] == f"{frames.frames_missing} of 120 frames could not be read; the file seems damaged."
    assert clips.numbers_in(frames.pixels) == frames.indices.tolist()


def uniform(total: int, count: int) -> list[int]:
    indices: list[int] = np.linspace(0, total - 1, count, dtype=int).tolist()
    return indices
