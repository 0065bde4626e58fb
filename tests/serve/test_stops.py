"""An answer ends before the texts that a client names, and shows no part of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from holitom_cli.model.loading import Model
from holitom_cli.model.prompt import Chat
from holitom_cli.serve.stops import Stops
from tests.serve.served import Served, asked, stream, wait_until
from tests.serve.test_answers import alone

QUESTION = "What is shown?"


def cut(text: str, stops: list[str]) -> str:
    """The slow way: the whole text, up to the first of them."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("a red cup.", ["cup"]),
        ("a red cup.", ["d c"]),
        ("a red cup.", ["a"]),
        ("a red cup.", ["."]),
        ("a red cup.", ["cups", "."]),
        ("a red cup.", ["p.!"]),
        ("aaab", ["aab"]),
        ("abababc", ["ababc"]),
        ("one\n\ntwo\n\n", ["\n\n", "two"]),
        ("Grüße 🎬🎬 日本", ["🎬 "]),
        ("nothing", ["else"]),
    ],
)
def test_pieces_of_any_size_end_where_the_whole_text_would(text: str, stops: list[str], size: int) -> None:
    until = Stops(stops)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    shown = [until.show(piece) for piece in pieces]
    whole = "".join(shown)
    assert until.met == (cut(text, stops) != text)
    if until.met:
        assert whole == cut(text, stops)
    else:
        assert text.startswith(whole)
        assert any(stop.startswith(text[len(whole) :]) for stop in stops)  # held back: it may become one of them
    until.begin()
    assert [until.show(piece) for piece in pieces] == shown  # as it began


def test_without_texts_everything_is_shown_at_once() -> None:
    until = Stops(())
    assert [until.show(piece) for piece in ("a", " red", "")] == ["a", " red", ""]
    assert not until.met


@pytest.fixture(scope="module")
def said(random: Model, clips: list[Path]) -> str:
    """What the model says at length."""
    own = alone(random, clips[1], QUESTION, max_new_tokens=40)
    assert own.tokens.generated == 40
    assert len(own.text) > 60
    return own.text


@pytest.mark.parametrize("start", [1, 11, 30])
def test_an_answer_ends_before_the_text(talkative: Served, clips: list[Path], said: str, start: int) -> None:
    stop = said[start : start + 7]  # several tokens
    request = {"messages": [asked(clips[1], QUESTION)], "max_tokens": 40}
    heard = stream(talkative, **request, stop=stop, stream_options={"include_usage": True})
    assert (heard.text, heard.finish_reason) == (cut(said, [stop]), "stop")
    assert heard.usage
    assert heard.usage["completion_tokens"] < 40
    with talkative.client() as client:
        whole = client.chat.completions.create(  # type: ignore[call-overload]
            model=talkative.model_id, stop=["never said", stop], **request
        )
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (heard.text, "stop")
    wait_until(talkative.is_idle)
    assert stream(talkative, **request).text == said  # control: without it the answer goes on


def test_half_of_a_text_is_told_in_the_end(talkative: Served, clips: list[Path], said: str) -> None:
    request = {"messages": [asked(clips[1], QUESTION)], "max_tokens": 40}
    heard = stream(talkative, **request, stop=[said[-5:] + " and so on"])
    assert (heard.text, heard.finish_reason) == (said, "length")


def test_what_is_told_in_the_end_is_cut_too(
    talkative: Served, clips: list[Path], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer holds text back that stands in one token with half a character; here it holds back everything."""
    monkeypatch.setattr(Chat, "pieces", lambda _: lambda _: "")
    request = {"messages": [asked(clips[1], QUESTION)], "max_tokens": 40}
    heard = stream(talkative, **request, stop=[said[20:25]])
    assert (heard.text, heard.finish_reason) == (cut(said, [said[20:25]]), "stop")
    assert stream(talkative, **request).text == said  # control
