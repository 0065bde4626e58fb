"""Words about the clip before the question: told only when asked for, and written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

from holitom_cli.model.loading import load_model
from tests.make_random_checkpoint import RANDOM
from tests.program import FAST, Invoke, invoke  # noqa: F401  a fixture

TIMES = "The video is 7.0 seconds long, and you see what it shows at these seconds: 0.0, 2.3, 4.6, 7.0."


def result(invoke: Invoke, clip: Path, *more: str) -> dict[str, Any]:  # noqa: F811
    done = invoke("ask", clip, "What?", *FAST, "--no-cache", "--json", *more)
    assert done.code == 0, done.err
    (found,) = done.document()["results"]
    return dict(found)


def test_times_are_told_where_it_is_asked_for(invoke: Invoke, demo_clip: Path) -> None:  # noqa: F811
    chat = load_model(RANDOM, device="cpu").chat
    silent, told = result(invoke, demo_clip), result(invoke, demo_clip, "--time-instruction")
    assert "context" not in silent
    assert told["context"] == TIMES
    assert told["question"] == silent["question"] == "What?"
    for found, text in ((silent, "What?"), (told, f"{TIMES}\nWhat?")):
        assert found["tokens"]["text"] == sum(map(len, chat.encode(text)))
    assert told["tokens"]["text"] > silent["tokens"]["text"]


def test_the_baseline_is_told_the_same(invoke: Invoke, demo_clip: Path) -> None:  # noqa: F811
    done = invoke("ask", demo_clip, "What?", *FAST, "--json", "--baseline", "--time-instruction")
    assert [found["context"] for found in done.document()["results"]] == [TIMES] * 2


def test_the_report_shows_it(invoke: Invoke, demo_clip: Path) -> None:  # noqa: F811
    done = invoke("ask", demo_clip, "What?", *FAST, "--time-instruction")
    assert TIMES in " ".join(done.err.split())


SRT = """1
00:00:00,500 --> 00:00:01,500
Hello <i>there</i>,
you.

2
00:00:06,000 --> 00:00:06,500
{\\an8}Goodbye.

3
00:01:00,000 --> 00:01:01,000
After the end.
"""
SAID = "What is said in the video, and when:\n[0.5 s] Hello there, you.\n[6.0 s] Goodbye."


def test_subtitles_beside_the_clip_and_named(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:  # noqa: F811
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(demo_clip.read_bytes())
    invoke("ask", clip, "What?", *FAST, "--subtitles", "auto").sentence(1, "clip.mp4 has no subtitles in words.")
    clip.with_suffix(".srt").write_text(SRT, encoding="utf-8")
    assert "context" not in result(invoke, clip)
    assert result(invoke, clip, "--subtitles", "auto")["context"] == SAID
    assert result(invoke, demo_clip, "--subtitles", str(clip.with_suffix(".srt")))["context"] == SAID
    both = result(invoke, clip, "--subtitles", "auto", "--time-instruction")["context"]
    assert both == f"{TIMES}\n{SAID}"


def test_only_lines_inside_the_sampled_range_are_told(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:  # noqa: F811
    words = tmp_path / "words.srt"
    words.write_text(SRT, encoding="utf-8")
    late = result(invoke, demo_clip, "--subtitles", str(words), "--start", "5")
    assert late["context"] == "What is said in the video, and when:\n[6.0 s] Goodbye."
    assert "context" not in result(invoke, demo_clip, "--subtitles", str(words), "--start", "2", "--end", "3")


def test_subtitles_in_the_clip(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:  # noqa: F811
    words, path = tmp_path / "words.srt", tmp_path / "both.mkv"
    words.write_text(SRT, encoding="utf-8")
    with av.open(str(demo_clip)) as film, av.open(str(words)) as spoken, av.open(str(path), "w") as target:
        sources = (film.streams.video[0], spoken.streams.subtitles[0])
        copies = [target.add_stream_from_template(source) for source in sources]
        for container, source, copy in zip((film, spoken), sources, copies, strict=True):
            for packet in container.demux(source):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    assert result(invoke, path, "--subtitles", "auto")["context"] == SAID


def test_subtitles_that_are_none(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:  # noqa: F811
    junk = tmp_path / "junk.srt"
    junk.write_bytes(bytes(range(256)))
    invoke("ask", demo_clip, "What?", *FAST, "--subtitles", junk).sentence(1, "junk.srt")
    invoke("ask", demo_clip, "What?", *FAST, "--subtitles", "no.srt").sentence(1, "There is no file no.srt.")
