"""Pictures of what was kept, from the command line: written where they are asked for, or refused in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from holitom_cli import video
from tests.program import FAST, Invoke


def test_all_pictures_at_once(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    wanted = ["--report", "out.html", "--contact-sheet", "out.png", "--overlay", "frames", "--overlay-video", "out.mp4"]
    done = invoke("ask", demo_clip, "What happens?", "-q", "And then?", *FAST, *wanted)
    assert done.code == 0, done.err
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert text.count("<image ") == 4
    assert "What happens?" in text
    assert "And then?" in text
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.format == "PNG"
    assert len(list((tmp_path / "frames").glob("frame-*.png"))) == 4
    assert len(list((tmp_path / "frames").glob("question-2-frame-*.png"))) == 4
    with Image.open(tmp_path / "frames" / "frame-1.png") as picture:
        assert picture.size == (640, 360)  # as the clip is, not as the model saw it
    assert video.probe(tmp_path / "out.mp4").frame_count == 5  # the last one twice, so that it can be seen
    for name in ("out.html", "out.png", "frames", "out.mp4"):
        assert f"Wrote {name}" in done.err


def test_pictures_of_a_clip_that_the_cache_knows(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("first.html", "second.html"):
        done = invoke("ask", demo_clip, "What happens?", *FAST, "--report", name, "--cache-dir", tmp_path)
        assert done.code == 0, done.err
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert "kept from an earlier question" in pages[1]
    first, second = (page.partition('<section id="kept"')[2].partition("</section>")[0] for page in pages)
    assert first == second
    assert first.count("<figure>") == 4


def test_baseline_is_beside_the_answer(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    done = invoke("ask", demo_clip, "What happens?", *FAST, "--baseline", "--report", "out.html")
    assert done.code == 0, done.err
    assert "Against full" in (tmp_path / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--report", "no/such/out.html"], "There is no folder"),
        (["--contact-sheet", "."], "it is a folder"),
        (["--overlay", "taken"], "--overlay taken is a file."),
        (["--report", "same", "--overlay-video", "same"], "to one file"),
    ],
)
def test_impossible_places_are_refused_before_any_work(
    invoke: Invoke, demo_clip: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    invoke("ask", demo_clip, "What happens?", *FAST, *arguments).sentence(2, said)


def test_a_clip_that_changed_meanwhile_is_not_drawn_over(
    invoke: Invoke, demo_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, counts = video.read, iter([4, 3])
    monkeypatch.setattr(
        video, "read", lambda file, _, **more: replace(first(file, next(counts), **more), sampling=None)
    )
    done = invoke("ask", demo_clip, "What happens?", *FAST, "--report", "out.html")
    assert done.code == 1
    assert "gave other frames when it was read again." in done.err
    assert not (tmp_path / "out.html").exists()
