"""The page about a batch: every row, the reasons of failures, and distributions that are what they say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holitom_cli.errors import VideoError
from holitom_cli.report.record import error_record, flat_record
from holitom_cli.report.summary import summary_page
from tests.program import FAST, Invoke, invoke
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
        rows.append(good | {"key": str(number), "video": {"path": path}, "tokens": tokens, "timings": times})
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
