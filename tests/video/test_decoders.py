"""The right frame, upright, at the right time: every decoder against the numbers drawn into the clips."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, features

from holitom_cli.errors import VideoError
from holitom_cli.types import Frames, Sampling
from holitom_cli.video import client, probe, read
from holitom_cli.video.packets import Packet, Table
from holitom_cli.video.worker_link import WorkerError
from tests import clips

needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel for this platform")

COUNT = 60
ASKED = (COUNT, 17)
X264_OPEN = {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}
X264_REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}


def x265(more: str = "") -> dict[str, str]:
    """Open groups of 12, unless it says otherwise."""
    return {"x265-params": f"log-level=none:keyint=12:min-keyint=12:bframes=4:{more}".rstrip(":")}


VP9 = {"cpu-used": "8", "deadline": "realtime"}

# file name -> how to make it, and the decoders that may read it
RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "h264.mp4": ({}, "both"),
    "h264.mkv": ({}, "both"),
    "h264_every_frame_a_key.mp4": ({"group": 1}, "both"),
    "h264_fragments.mp4": ({"container_options": {"movflags": "frag_keyframe+empty_moov"}}, "both"),
    "h264_narrow.mp4": ({"size": (102, 130)}, "both"),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": VP9}, "both"),
    "vp9_odd_size.webm": ({"codec": "libvpx-vp9", "options": VP9, "size": (101, 67)}, "both"),
    "mpeg4.mp4": ({"codec": "mpeg4"}, "both"),
    "mpeg4_b_frames.mp4": ({"codec": "mpeg4", "options": {"bf": "2"}}, "av"),
    "h264_open.mp4": ({"options": X264_OPEN}, "av"),
    "h264_open.mkv": ({"options": X264_OPEN}, "av"),
    "h264_refresh.mp4": ({"options": X264_REFRESH}, "av"),
    "h264_10bit.mp4": ({"pix_fmt": "yuv420p10le"}, "av"),
    "h264.avi": ({}, "av"),
    "h264.ts": ({}, "av"),
    "h264.flv": ({}, "av"),
    "hevc_open.mp4": ({"codec": "libx265", "options": x265()}, "av"),
    "mpeg2.mpg": ({"codec": "mpeg2video", "options": {"bf": "2"}}, "av"),
    "vp8.webm": ({"codec": "libvpx", "options": VP9}, "av"),
    "h264_one_group.mp4": ({"group": 250}, "both"),
    "h264_one_group.ts": ({"group": 250}, "av"),
    "h264_interlaced.mp4": ({"options": {"x264-params": "interlaced=1:tff=1"}}, "av"),
    "h264.mxf": ({}, "av"),
    "hevc_closed.mp4": ({"codec": "libx265", "options": x265("open-gop=0")}, "av"),
    "hevc_one_group.mkv": ({"codec": "libx265", "options": x265("keyint=250"), "group": 250}, "av"),
    "hevc_layers.mp4": ({"codec": "libx265", "options": x265("temporal-layers=3:b-adapt=0")}, "av"),
    "hevc_10bit.mp4": ({"codec": "libx265", "options": x265(), "pix_fmt": "yuv420p10le"}, "av"),
    "vp9_alternate.webm": ({"codec": "libvpx-vp9", "options": {"cpu-used": "5", "lag-in-frames": "16"}}, "both"),
    "mpeg1.mpg": ({"codec": "mpeg1video"}, "av"),
    "mpeg2.ts": ({"codec": "mpeg2video", "options": {"bf": "2"}}, "av"),
    "mjpeg.mov": ({"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "av"),
    "prores.mov": ({"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, "av"),
    "animated.gif": ({"codec": "gif", "pix_fmt": "rgb8"}, "av"),
    "av1.mkv": ({"codec": "libsvtav1", "options": {"preset": "9", "crf": "20"}}, "av"),
    "av1.mp4": ({"codec": "libsvtav1", "options": {"preset": "9", "crf": "20"}}, "av"),
}
EXACT_DECORD = [name for name, (_, decoder) in RECIPES.items() if decoder == "both"]
# What routing keeps decord away from, because it hands out other frames there without a word.
WRONG_DECORD = ["hevc_open.mp4", "h264_open.mp4", "h264_refresh.mp4", "mpeg4_b_frames.mp4", "h264.avi", "mpeg2.mpg"]

Maker = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes each clip once."""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str) -> Path:
        recipe = RECIPES[name][0]
        try:
            av.Codec(recipe.get("codec", "libx264"), "w")
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this FFmpeg has no encoder {recipe['codec']}")
        path = folder / name
        return path if path.exists() else clips.make(path, COUNT, **recipe)

    return make


def misread(frames: Frames, asked: int) -> list[tuple[int, int | None]]:
    """(asked, got) of every frame that shows another number than its index says."""
    assert frames.indices is not None
    assert frames.frames_missing == 0
    assert [warning for warning in frames.warnings if "interlaced" not in warning] == []
    np.testing.assert_array_equal(frames.indices, np.linspace(0, COUNT - 1, asked, dtype=int))
    np.testing.assert_allclose(frames.seconds, frames.indices / 25, atol=1e-3)  # Matroska counts milliseconds
    pairs = zip(frames.indices.tolist(), clips.numbers_in(frames.pixels), strict=True)
    return [(wanted, got) for wanted, got in pairs if wanted != got]


@pytest.mark.parametrize("name", RECIPES)
def test_av_is_exact(made: Maker, name: str) -> None:
    for asked in ASKED:
        assert misread(read(made(name), asked, decoder="av"), asked) == []


@needs_decord
@pytest.mark.parametrize("name", EXACT_DECORD)
def test_decord_is_exact_where_it_is_allowed(made: Maker, name: str) -> None:
    assert misread(read(made(name), COUNT, decoder="decord"), COUNT) == []


@needs_decord
@pytest.mark.parametrize("name", WRONG_DECORD)
def test_decord_is_wrong_where_it_is_not_allowed(made: Maker, name: str) -> None:
    assert misread(read(made(name), 17, decoder="decord"), 17) != []


@needs_decord
@pytest.mark.parametrize("name", RECIPES)
def test_decord_is_tried_only_where_it_is_exact(made: Maker, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(_: object) -> None:
        raise WorkerError("is broken")

    monkeypatch.setattr(client.Task, "_with_first", fail)
    if RECIPES[name][1] == "both":
        frames = read(made(name), 17)
        assert (frames.decoder, frames.decoder_reason) == ("decord", "av is broken")
        assert misread(frames, 17) == []
        return
    with pytest.raises(VideoError, match="could not be read: av is broken"):
        read(made(name), 17)


def test_a_clip_that_has_to_be_decoded_whole_is_said_to_be(made: Maker) -> None:
    frames = read(made("mpeg2.mpg"), 5)
    assert frames.decoder_reason == "decodes the whole clip, whose packets do not tell which frames there are"


def test_av_reads_first(made: Maker) -> None:
    frames = read(made("h264.mp4"), 5)
    assert (frames.decoder, frames.decoder_reason) == ("av", "decodes stretches of the clip side by side")
    assert clips.numbers_in(frames.pixels) == [0, 14, 29, 44, 59]


@needs_decord
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("matrix", [1, 6])  # BT.709, BT.601
def test_decoders_agree_on_colour(tmp_path: Path, pix_fmt: str, matrix: int) -> None:
    """Every pixel equal, and the stream's matrix and range honoured: only the encoder's own gives the colour back."""
    colour = np.empty((64, 64, 3), np.uint8)
    colour[:] = (200, 60, 30)
    path = clips.make(
        tmp_path / "c.mp4", 3, size=(64, 64), pix_fmt=pix_fmt, tags={"colorspace": matrix}, paint=lambda _: colour
    )
    by_av, by_decord = read(path, decoder="av").pixels, read(path, decoder="decord").pixels
    np.testing.assert_array_equal(by_av, by_decord)
    error = np.abs(by_av.astype(int) - colour).max()
    assert error <= 6 if matrix == 6 else error > 8  # the clip maker converts with BT.601 whatever the tag says


@pytest.mark.parametrize("decoder", ["av", pytest.param("decord", marks=needs_decord)])
@pytest.mark.parametrize(("display", "clockwise"), [(90, 270), (180, 180), (-90, 90)])
def test_rotation_is_applied(tmp_path: Path, decoder: client.Decoder, display: int, clockwise: int) -> None:
    upright = (128, 192) if clockwise != 180 else (192, 128)

    def lying(number: int) -> clips.Picture:
        return np.ascontiguousarray(np.rot90(clips.draw(number, *upright), clockwise // 90))

    path = clips.make(tmp_path / "turned.mp4", 12, paint=lying, rotation=display)
    info = probe(path)
    assert (info.rotation, info.width, info.height) == (clockwise, *upright)
    pixels = read(path, decoder=decoder).pixels
    assert clips.numbers_in(pixels) == list(range(12))
    assert set(clips.numbers_in(np.rot90(pixels, 2, axes=(1, 2)))) != set(range(12))


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_mirrored_pictures_are_set_right(tmp_path: Path, turn: int) -> None:
    """The container says: turn counter-clockwise, then flip left to right. The painter undoes it backwards."""
    upright = (128, 192) if turn % 180 else (192, 128)

    def stored(number: int) -> clips.Picture:
        return np.ascontiguousarray(np.rot90(clips.draw(number, *upright)[:, ::-1], -turn // 90))

    try:
        path = clips.make(tmp_path / "mirrored.mp4", 12, paint=stored, rotation=turn, mirrored=True)
    except (TypeError, AttributeError):
        pytest.skip("this av writes no flips")
    info = probe(path)
    assert info.mirrored
    assert (info.width, info.height) == upright
    frames = read(path, 12)
    assert clips.numbers_in(frames.pixels) == list(range(12))
    assert set(clips.numbers_in(frames.pixels[:, :, ::-1])) != set(range(12))


@pytest.mark.parametrize("decoder", ["av", pytest.param("decord", marks=needs_decord)])
def test_variable_frame_rate_keeps_its_times(tmp_path: Path, decoder: client.Decoder) -> None:
    ticks = np.cumsum([1000] + [20 + 13 * (number % 5) for number in range(39)]).tolist()
    path = clips.make(tmp_path / "vfr.mkv", 40, ticks=ticks)
    frames = read(path, 40, decoder=decoder)
    np.testing.assert_allclose(frames.seconds, (np.array(ticks) - ticks[0]) / 1000, rtol=0, atol=1e-9)
    assert clips.numbers_in(frames.pixels) == list(range(40))


def test_probe_tells_what_was_made(made: Maker) -> None:
    info = probe(made("h264.mp4"))
    assert (info.container, info.codec, info.width, info.height, info.rotation) == ("mp4", "h264", 192, 128, 0)
    assert (info.frame_count, info.frames_per_second) == (COUNT, 25.0)
    assert info.duration_seconds == pytest.approx(2.4, abs=0.01)
    assert info.size_bytes == made("h264.mp4").stat().st_size


@pytest.mark.parametrize("name", ["vp9.webm", "mpeg2.mpg", "h264.mkv", "h264.ts", "vp8.webm", "h264_fragments.mp4"])
def test_frames_are_counted_where_the_container_does_not(made: Maker, name: str) -> None:
    with av.open(str(made(name))) as container:
        assert container.streams.video[0].frames == 0
    assert probe(made(name)).frame_count == COUNT


def test_frames_that_an_edit_list_hides_are_not_there(made: Maker, tmp_path: Path) -> None:
    path = tmp_path / "trimmed.mp4"
    with av.open(str(made("h264.mp4"))) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None and stream.time_base:
                early = int(20 / 25 / stream.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, copy
                target.mux(packet)
    frames = read(path, 40)
    assert probe(path).frame_count == 40
    assert (frames.decoder, frames.frames_missing) == ("av", 0)
    assert clips.numbers_in(frames.pixels) == list(range(20, 60))
    np.testing.assert_allclose(frames.seconds, np.arange(40) / 25, atol=1e-9)


def test_a_stream_that_starts_again_in_another_size(tmp_path: Path) -> None:
    """Presentation times repeat, so frames are counted by decoding; all come in the first one's size."""
    parts = [clips.make(tmp_path / f"{w}.ts", 20, size=(w, h)) for w, h in ((192, 128), (96, 64))]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read(path, 40)
    assert frames.pixels.shape == (40, 128, 192, 3)
    assert clips.numbers_in(frames.pixels) == [*range(20), *range(20)]
    assert np.all(np.diff(frames.seconds) > 0)


def test_wide_gaps_are_warned_about(tmp_path: Path) -> None:
    path = clips.make(tmp_path / "slow.mkv", 3, ticks=[0, 4000, 22_800])
    assert read(path, 3).warnings == ("Frames are 18.8 s apart, so short events may be missed; raise --num-frames.",)


def test_times_near_a_cut_are_not_trusted() -> None:
    """Decoding order I0 P3 B1 | B2 lost: P3 is there, but whether it is frame 2 or 3 cannot be known."""
    packets = [Packet(pts, pts == 0) for pts in (0, 3, 1)]
    cut = Table(packets, lost=1, first_lost_dts=2)
    assert (cut.times, cut.total) == ([0, 1], 4)
    assert Table(packets).times == [0, 1, 3]


def test_leading_pictures_start_at_the_group_before() -> None:
    packets = [Packet(pts, pts in (0, 6)) for pts in (0, 2, 1, 6, 4, 5, 8)]
    table = Table(packets)
    assert [table.start_for(pts) for pts in (0, 2, 5, 6, 8)] == [0, 0, 0, 6, 6]
    assert [table.start_for(pts, early=1) for pts in (0, 8)] == [0, 0]
    assert not table.closed
    assert Table([Packet(pts, pts in (0, 3)) for pts in (0, 2, 1, 3, 5, 4)]).closed


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_an_animated_avif_is_its_frames_and_not_the_still_before_them(tmp_path: Path) -> None:
    reds = [12 * number for number in range(20)]
    first, *others = (Image.new("RGB", (64, 64), (red, 0, 255 - red)) for red in reds)
    first.save(tmp_path / "a.avif", save_all=True, append_images=others, duration=100)
    frames = read(tmp_path / "a.avif", Sampling(num_frames=20))
    assert frames.seconds.tolist() == pytest.approx([number / 10 for number in range(20)])
    seen = frames.pixels[:, 32, 32, 0].astype(int)
    assert abs(seen - reds).max() <= 8
