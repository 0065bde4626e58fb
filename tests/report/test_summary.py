"""The page about a batch: every row, the reasons of failures, and distributions that are what they say."""

from __future__ import annotations

import io
import json
import re
import shutil
from base64 import b64decode
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from holitom_cli.cli import clip_pages as cli_pages
from holitom_cli.errors import VideoError
from holitom_cli.report.record import error_record, flat_record
from holitom_cli.report.summary import places, summary_page, thumbnail, thumbnail_side, write_summary
from holitom_cli.report.text import moment
from tests.program import FAST, SCHEMA, Invoke, invoke
from tests.report.factory import make_answer
from tests.report.test_page import HOSTILE, Reader

__all__ = ["invoke"]


def made_rows(count: int, words: str = "What is there?") -> list[dict[str, Any]]:
    """Rows whose figures grow with their number; every tenth failed."""
    good = flat_record(make_answer(question=words, text=words), "")
    rows = []
    for number in range(count):
        path = f"clips/{words}/{number:05}.mp4"
        if number % 10 == 9:
            rows.append(error_record(path, words, VideoError(f"{words} could not be read."), str(number)))
            continue
        tokens = good["tokens"] | {"visual": 100 + number, "retained_ratio": (100 + number) / 6272}
        times = good["timings"] | {"ttft_ms": 10.0 + number, "time_to_answer_s": 1.0}
        rows.append(
            good | {"key": str(number), "video": good["video"] | {"path": path}, "tokens": tokens, "timings": times}
        )
    return rows


def test_rows_failures_and_figures() -> None:
    made = Reader(summary_page(made_rows(30), "answers.jsonl"))
    assert "27 answers, 3 failed, about 30 clips." in made.words
    assert made.words.count("failed: What is there? could not be read.") == 3
    assert "What is there? could not be read.video3" in made.words
    numbers = [own["data-n"] for own in made.having("td") if "data-n" in own]
    assert len(numbers) == 4 * 30
    assert numbers[:3] == ["100", f"{100 / 6272:.9g}", "10"]
    assert numbers[36:40] == [""] * 4  # the tenth row failed
    (spread,) = [str(own["aria-label"]) for own in made.having("svg") if "visual tokens" in str(own["aria-label"])]
    kept = sorted(100 + number for number in range(30) if number % 10 != 9)
    assert spread == f"visual tokens: least 100, median {kept[13]}, 95% {kept[25]}, most 128"


def test_bars_of_a_distribution_are_in_proportion() -> None:
    rows = [row for row in made_rows(9) for _ in range(1 + 2 * (row["tokens"]["visual"] == 100))]
    (path, *_) = re.findall(r'aria-label="visual tokens.*?<path d="([^"]*)"', summary_page(rows, "x"))
    heights = [float(height) for height in re.findall(r"v-([\d.]+)", path)]
    assert heights == [10.0] + [3.33] * 8


@pytest.mark.parametrize("rows", [[], made_rows(10)[9:]])
def test_a_batch_without_answers_has_a_page(rows: list[dict[str, Any]]) -> None:
    made = Reader(summary_page(rows, "answers.jsonl"))
    assert "0 answers" in made.words
    assert "Distributions" not in made.words


@pytest.mark.parametrize("words", HOSTILE)
def test_words_from_outside_stay_words(words: str) -> None:
    shown, harmless = (Reader(summary_page(made_rows(11, said), said)) for said in (words, "x"))
    assert Counter(tag for tag, _ in shown.elements) == Counter(tag for tag, _ in harmless.elements)
    assert {name for _, own in shown.elements for name in own} == {name for _, own in harmless.elements for name in own}
    assert len(shown.having("script")) == 1  # our own, which sorts


# --- pictures and pages of clips -----------------------------------------------------------------


def picture(red: int) -> bytes:
    return thumbnail(np.full((36, 64, 3), (red, 0, 0), np.uint8))


def test_each_clip_has_its_own_picture() -> None:
    rows = made_rows(10)
    found = places(rows)
    times = rows[0]["sampling"]["frame_times_s"]
    assert places([row | {"video": row["video"] | {"duration_s": 30.0}} for row in rows[:1]])[0][2] is False
    assert found == [(f"clips/What is there?/{number:05}.mp4", times[len(times) // 2], True) for number in range(9)]
    made = Reader(summary_page(rows, "x", {place: picture(25 * n) for n, place in enumerate(found[:8])}))
    shown = made.having("img")
    assert len(shown) == 8  # one was not to be had, and one clip failed
    for number, own in enumerate(shown):
        kind, _, data = str(own["src"]).partition(";base64,")
        assert kind == "data:image/webp"
        red, green, blue = np.asarray(Image.open(io.BytesIO(b64decode(data))).convert("RGB")).reshape(-1, 3).mean(0)
        assert red == pytest.approx(25 * number, abs=6)
        assert max(green, blue) < 8
        assert own["alt"] == f"At {moment(times[len(times) // 2])}"


def test_a_page_of_very_many_rows_has_smaller_pictures_or_none() -> None:
    assert [thumbnail_side(rows) for rows in (1, 2500, 2501, 6000, 6001)] == [96, 96, 64, 64, 0]


def test_rows_link_to_their_pages_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    names = ["a.html", "b #1 & 100%20.html", "gone.html"]
    rows = [row | {"page": str(tmp_path / "pages" / name)} for row, name in zip(made_rows(3), names, strict=True)]
    for name in names[:2]:
        (tmp_path / "pages" / name).write_text("x", encoding="utf-8")
    write_summary(rows, tmp_path / "page.html", "x")
    made = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    links = [str(own["href"]) for own in made.having("a")]
    assert links == ["pages/a.html", "pages/b%20%231%20%26%20100%2520.html"]
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_batch_writes_pages_of_clips(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    shutil.copy(demo_clip, tmp_path / "a <b>.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    asked = ["-q", "What is there?", "-q", "Who moves?", "--output", "rows.jsonl", "--report", "page.html"]
    done = invoke("batch", "a <b>.mp4", "broken.mp4", *asked, *FAST, "--clip-pages", "pages")
    assert done.code == 3, done.err
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        SCHEMA.validate(row)
    ((file,), failed) = ({row["page"] for row in rows if "page" in row}, [row for row in rows if "error" in row])
    assert len(failed) == 2
    assert [str(path) for path in (tmp_path / "pages").iterdir()] == [file]
    page = Reader(Path(file).read_text(encoding="utf-8"))
    first = next(row for row in rows if "answer" in row)
    assert len(page.having("image")) == first["tokens"]["frames"]
    for words in ("a <b>.mp4", "What is there?", "Who moves?", f"keeps {first['tokens']['visual']:,} of"):
        assert words in page.words
    made = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(made.having("img")) == 2
    assert {own["href"] for own in made.having("a")} == {f"pages/{Path(file).name}"}
    again = invoke("batch", "a <b>.mp4", "-q", "A third?", *asked, *FAST, "--clip-pages", "pages")
    assert again.code == 0, again.err
    assert len(list((tmp_path / "pages").iterdir())) == 2  # the first page is left as it is
    assert "A third?" not in Path(file).read_text(encoding="utf-8")


def test_a_page_that_cannot_be_made_ends_nothing(
    invoke: Invoke, demo_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise VideoError("It has been changed.")

    monkeypatch.setattr(cli_pages, "read_again", fail)
    options = ["--output", "rows.jsonl", "--report", "page.html", "--clip-pages", "pages"]
    done = invoke("batch", demo_clip, "-q", "What is there?", *FAST, *options)
    assert done.code == 0, done.err
    assert "1 page of clips could not be made: It has been changed." in " ".join(done.err.split())
    made = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not made.having("a")
    assert made.having("img")


def test_a_clip_that_is_gone_has_no_picture(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    shutil.copy(demo_clip, tmp_path / "a.mp4")
    wanted = ["-q", "What is there?", *FAST, "--output", "rows.jsonl"]
    assert invoke("batch", "a.mp4", *wanted).code == 0
    (tmp_path / "a.mp4").unlink()
    done = invoke("batch", demo_clip, *wanted, "--report", "page.html")
    assert "1 clip could not be read again" in " ".join(done.err.split())
    assert not Reader((tmp_path / "page.html").read_text(encoding="utf-8")).having("img")


def test_pages_need_a_folder(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "pages").write_text("x", encoding="utf-8")
    done = invoke("batch", demo_clip, "-q", "What?", *FAST, "--clip-pages", "pages")
    done.sentence(2, "--clip-pages pages is a file.")


def test_batch_writes_it(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    wanted = ["--output", "rows.jsonl", "--report", "page.html"]
    done = invoke("batch", demo_clip, "broken.mp4", "-q", "What is there?", *FAST, *wanted)
    assert done.code == 3, done.err
    made = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "1 answer, 1 failed, about 2 clips." in made.words
    assert "city.mp4" in made.words
    assert "Wrote page.html." in done.err


def test_batch_refuses_a_page_without_rows(invoke: Invoke, demo_clip: Path) -> None:
    done = invoke("batch", demo_clip, "-q", "What?", *FAST, "--report", "page.html")
    done.sentence(2, "--report is about the rows of --output, which is not given.")
