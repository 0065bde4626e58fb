"""Words about the clip before the question: told only when asked for, and written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
