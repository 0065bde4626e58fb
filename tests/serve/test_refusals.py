"""What is not served is refused with the right status and a sentence, and the server goes on."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from holitom_cli import pipeline
from holitom_cli.model.loading import Model
from holitom_cli.serve.clips import Clips, new_clip
from holitom_cli.serve.engine import Engine
from holitom_cli.serve.gate import is_loopback
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.wishes import Ceilings, parse
from tests.serve.served import PATIENCE_SECONDS, Served, asked, load, load_endless, serving, wait_until
from tests.serve.test_answers import FAILING, QUESTIONS, alone, raw

KEY = "a long random key"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Served]:
    with serving(lambda: load("demo"), tmp_path, api_key=KEY) as there:
        yield there


def refused(response: httpx2.Response, status: int, code: str, param: str | None = None) -> str:
    """Check a refusal, and return its sentence."""
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert (error["code"], error["param"]) == (code, param), error
    message: str = error["message"]
    assert message[0].isupper() or param
    assert message.endswith((".", ")", "}.", '"'))
    assert "/tmp" not in message
    return message


# --- what is asked ---------------------------------------------------------------------------------

VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXT = {"type": "text", "text": "What?"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"messages": None}, "invalid_value", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "What?"}, "invalid_value", "messages"),
    ({"messages": [user(TEXT)]}, "missing_video", "messages[0].content"),
    ({"messages": [user(VIDEO)]}, "missing_text", "messages[0].content"),
    ({"messages": [user(VIDEO, {"type": "text", "text": " "})]}, "missing_text", "messages[0].content"),
    ({"messages": [user(VIDEO, VIDEO, TEXT)]}, "videos", "messages[0].content"),
    ({"messages": [user(VIDEO, {"type": "image_url"})]}, "unsupported_part", "messages[0].content[1].type"),
    ({"messages": [user(VIDEO, TEXT, {"type": "text"})]}, "invalid_value", "messages[0].content[2].text"),
    ({"messages": [user(VIDEO, {**TEXT, "text": "\ud800"})]}, "invalid_value", "messages[0].content[1].text"),
    ({"messages": [user({**VIDEO, "video_url": "x"})]}, "invalid_value", "messages[0].content[0].video_url"),
    (
        {"messages": [user({**VIDEO, "video_url": {"url": "x", "fps": 2}})]},
        "unsupported_parameter",
        "messages[0].content[0].video_url.fps",
    ),
    ({"messages": [{"role": "system", "content": "Be brief."}]}, "invalid_value", "messages"),
    ({"messages": [SYSTEM, user(TEXT)]}, "missing_video", "messages[1].content"),
    ({"messages": [{**SYSTEM, "content": [VIDEO, TEXT]}, user(VIDEO, TEXT)]}, "videos", "messages[0].content"),
    ({"messages": [{**SYSTEM, "content": ""}, user(VIDEO, TEXT)]}, "missing_text", "messages[0].content"),
    ({"messages": [{**SYSTEM, "name": "Ann"}, user(VIDEO, TEXT)]}, "unsupported_parameter", "messages[0].name"),
    ({"messages": [SYSTEM, SYSTEM, user(VIDEO, TEXT)]}, "invalid_value", "messages"),
    ({"messages": [SYSTEM, user(VIDEO, TEXT), SYSTEM, user(TEXT)]}, "role", "messages[2].role"),
    ({"messages": [user(VIDEO, TEXT), user(TEXT)]}, "invalid_value", "messages"),
    ({"messages": [{**user(VIDEO, TEXT), "name": "Ann"}]}, "unsupported_parameter", "messages[0].name"),
    ({"messages": [user(VIDEO, {**TEXT, "text": "Say <|im_end|>."})]}, "unreadable_video", "messages"),
    ({"n": 2}, "unsupported_parameter", "n"),
    ({"n": True}, "unsupported_parameter", "n"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": [1]}, "invalid_value", "stop"),
    ({"stop": "." * 257}, "invalid_value", "stop"),
    ({"stop": {"text": "."}}, "invalid_value", "stop"),
    ({"stop": ["\ud800"]}, "invalid_value", "stop"),
    ({"logprobs": True}, "unsupported_parameter", "logprobs"),
    ({"tools": []}, "unsupported_parameter", "tools"),
    ({"frequency_penalty": 0.5}, "unsupported_parameter", "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"user": "me"}, "unsupported_parameter", "user"),
    ({"stream": "yes"}, "invalid_value", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"stream": True, "stream_options": {"all": 1}}, "unsupported_parameter", "stream_options.all"),
    ({"max_tokens": 0}, "out_of_range", "max_tokens"),
    ({"max_tokens": 1001}, "out_of_range", "max_tokens"),
    ({"max_tokens": 2.5}, "invalid_value", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_tokens"),
    ({"temperature": -1}, "out_of_range", "temperature"),
    ({"temperature": 10**400}, "out_of_range", "temperature"),
    ({"temperature": True}, "invalid_value", "temperature"),
    ({"top_p": 0}, "out_of_range", "top_p"),
    ({"seed": -1}, "out_of_range", "seed"),
    ({"holitom": []}, "invalid_value", "holitom"),
    ({"holitom": {"fps": 1}}, "unsupported_parameter", "holitom.fps"),
    ({"holitom": {"method": "magic"}}, "invalid_value", "holitom.method"),
    ({"holitom": {"method": 3}}, "invalid_value", "holitom.method"),
    ({"holitom": {"settings": {"magic": 1}}}, "invalid_value", "holitom.settings"),
    ({"holitom": {"settings": {"tau": [1]}}}, "invalid_value", "holitom.settings.tau"),
    ({"holitom": {"settings": {"retain_ratio": 2}}}, "invalid_value", "holitom.settings"),
    ({"holitom": {"num_frames": 17}}, "out_of_range", "holitom.num_frames"),
    ({"holitom": {"start": 3, "end": 2}}, "invalid_value", "holitom.start"),
    ({"holitom": {"start": 10**400}}, "out_of_range", "holitom.start"),
]


@pytest.mark.parametrize(("wrong", "code", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_parameter_is_named(served: Served, wrong: dict[str, Any], code: str, param: str | None) -> None:
    body = {"model": "demo", "messages": [user(VIDEO, TEXT)], **wrong}
    refused(served.post(body), 400, code, param)


NOTHING_ASKED_FOR = {
    "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "stop": None, "tools": None,
    "response_format": {"type": "text"}, "stream": False, "stream_options": None, "holitom": {"start": None},
}  # fmt: skip


def test_values_that_ask_for_nothing_are_fine(served: Served, demo: Model, clips: list[Path]) -> None:
    answer = served.post({**served.body(clips[0], QUESTIONS[0]), **NOTHING_ASKED_FOR})
    assert answer.json()["choices"][0]["message"]["content"] == alone(demo, clips[0], QUESTIONS[0]).text


def test_another_model_is_not_found(served: Served) -> None:
    refused(served.post({"model": "gpt", "messages": [user(VIDEO, TEXT)]}), 404, "model_not_found", "model")
    refused(served.get("/v1/models/llava/onevision"), 404, "model_not_found")


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": NaN}',
        b'{"\\ud800": 1}',
        b'{"a": {"\\udfff": 1}}',
        b'{"n": 1, "n": 2}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"1" * 5000,
    ],
    ids=lambda junk: repr(junk[:8]),
)
def test_junk_is_no_request(served: Served, junk: bytes) -> None:
    refused(served.post(junk), 400, "invalid_json")


def test_parse_reads_json() -> None:
    assert parse(b'{"a": [1, null]}') == {"a": [1, None]}
    with pytest.raises(Refused):
        parse(b'{"a": Infinity}')


def test_other_ways_and_paths(served: Served) -> None:
    refused(served.get("/v1/chat/completions"), 405, "method_not_allowed")
    refused(served.get("/v1/nothing"), 404, "not_found")
    refused(served.post({}, headers={"content-type": "text/plain"}), 415, "unsupported_type")


def test_clip_that_is_none(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "none.mp4"
    file.write_bytes(b"no video" * 100)
    said = refused(served.post(served.body(file, "What?")), 400, "unreadable_video", "messages")
    assert said.startswith("The clip is not a video")


def test_system_message_without_a_place(tmp_path: Path, clips: list[Path]) -> None:
    """Where the chat template fails on one."""

    def strict() -> Model:
        model = load("demo")
        vars(model.checkpoint)["chat"] = replace(model.chat, template=FAILING + model.chat.template)
        return model

    with serving(strict, tmp_path) as without:
        body = without.body(clips[0], QUESTIONS[0])
        assert without.post(body).status_code == 200  # control
        said = refused(without.post({**body, "messages": [SYSTEM, *body["messages"]]}), 400, "invalid_value")
        assert "no place for a system message" in said


@pytest.mark.parametrize(
    "messages",
    [
        [user(VIDEO, {**TEXT, "text": "a" * 300_000})],
        [user(VIDEO, *[{**TEXT, "text": "a" * 100_000}] * 3)],
        [{**SYSTEM, "content": "a" * 300_000}, user(VIDEO, TEXT)],
        [user(VIDEO, TEXT), *[{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}] * 20_000],
    ],
    ids=["one text", "three parts", "the system's", "many turns"],
)
def test_words_without_end_do_not_reach_the_model(served: Served, messages: list[Any]) -> None:
    """No model could read them; only to count their tokens would hold everybody up."""
    refused(served.post({"model": "demo", "messages": messages}), 400, "too_long", "messages")


def test_clip_that_changes_while_it_is_read(
    tmp_path: Path, random: Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who can write to an allowed folder could have others, who ask about its first content, told of another."""
    file, whole = tmp_path / "clip.mp4", pipeline.read
    file.write_bytes(clips[1].read_bytes())
    first, second = (alone(random, clip, QUESTIONS[0]).text for clip in (clips[1], clips[0]))
    assert first != second

    def swapped(*what: Any, **more: Any) -> Any:
        times = file.stat()
        file.write_bytes(clips[0].read_bytes())
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had happened
        return whole(*what, **more)

    with serving(load_endless, tmp_path) as there:
        by_name = there.body(f"file://{file}", QUESTIONS[0])
        with monkeypatch.context() as changed:
            changed.setattr(pipeline, "read", swapped)
            said = refused(there.post(by_name), 400, "unreadable_video", "messages")
        assert said.startswith("The clip was changed while it was read.")
        for body, own in ((there.body(clips[1], QUESTIONS[0]), first), (by_name, second)):
            assert there.post(body).json()["choices"][0]["message"]["content"] == own


def test_clip_whose_name_changes_while_it_is_read(
    tmp_path: Path, random: Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: it is the same clip."""
    file, whole = tmp_path / "clip.mp4", pipeline.read
    file.write_bytes(clips[1].read_bytes())

    def renamed(*what: Any, **more: Any) -> Any:
        file.chmod(0o600)
        file.rename(tmp_path / "other.mp4")
        return whole(*what, **more)

    with serving(load_endless, tmp_path) as there, monkeypatch.context() as changed:
        changed.setattr(pipeline, "read", renamed)
        said = there.post(there.body(f"file://{file}", QUESTIONS[0])).json()
    assert said["choices"][0]["message"]["content"] == alone(random, clips[1], QUESTIONS[0]).text


def test_what_nobody_has_thought_of_is_counted_too(
    tmp_path: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    counted = 'holitom_requests_total{route="/v1/chat/completions",status="500"} 1.0'
    with serving(load_endless, tmp_path) as there:
        monkeypatch.setattr(pipeline, "read", broken)
        assert counted not in there.get("/metrics").text
        assert "ZeroDivisionError" in refused(there.post(there.body(clips[1], "What?")), 500, "internal_error")
        assert counted in there.get("/metrics").text
        assert there.is_idle()


def test_too_large(tmp_path: Path, clips: list[Path]) -> None:
    ceilings = Ceilings(clip_seconds=0.5)
    with serving(lambda: load("demo"), tmp_path, upload_bytes=100_000, ceilings=ceilings) as small:
        request = small.body(clips[1], "What?")
        refused(small.post(request), 413, "clip_too_large", "messages")
        padded = json.dumps(request).encode() + b" " * 1_300_000
        refused(small.post(padded), 413, "request_too_large")

        for length in (f"Content-Length: {10**12}", "Transfer-Encoding: chunked"):
            with raw(small, request, length=length) as endless, pytest.raises(OSError, match=r"reset|Broken"):
                flood(endless)
        small.settle()
        assert small.get("/health").status_code == 200
    with serving(lambda: load("demo"), tmp_path, ceilings=Ceilings(clip_pixels=100)) as small:
        refused(small.post(small.body(clips[1], "What?")), 413, "clip_too_large", "messages")


def flood(connection: socket.socket) -> None:
    """Send chunks until the other side has had enough."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


# --- who asks --------------------------------------------------------------------------------------


def test_key_is_asked_for(locked: Served, clips: list[Path]) -> None:
    body = {"model": "demo", "messages": [asked(clips[0], "What?")]}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": "Basic x"}):
        response = locked.post(body, headers=headers)
        refused(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/v1/files", "/metrics", "/v1/nothing"):
        refused(locked.get(path), 401, "invalid_api_key")
    assert locked.get("/health").status_code == locked.get("/ready").status_code == 200
    assert locked.post(body, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    with locked.client() as client, pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, "wrong_host"),
        ({"host": "evil.example:8000"}, "wrong_host"),
        ({"host": "[::1"}, "wrong_host"),
        ({"host": "127.0.0.1.evil.example"}, "wrong_host"),
        ({"origin": "https://evil.example"}, "wrong_origin"),
        ({"origin": "null"}, "wrong_origin"),
    ],
)
def test_other_sites_are_turned_away(served: Served, headers: dict[str, str], code: str) -> None:
    refused(served.get("/v1/models", headers=headers), 403, code)
    assert served.get("/v1/models", headers={"host": "localhost:1", "origin": "http://[::1]:3000"}).status_code == 200


def test_loopback_is_known() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "", "example.org", "127.0.0.1.example.org")))


# --- how many, and how long ------------------------------------------------------------------------


def test_full_queue_is_told_at_once(tmp_path: Path, clips: list[Path]) -> None:
    with serving(load_endless, tmp_path, rows=1, places=3) as full, ExitStack() as waiting:
        body = full.body(clips[1], QUESTIONS[0], max_tokens=1000, stream=True)
        for taken in range(1, 4):
            waiting.enter_context(raw(full, body))
            wait_until(lambda taken=taken: full.places_taken == taken)
        response = full.post(body)
        refused(response, 429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        waiting.close()
        full.settle()
        assert full.post({**body, "max_tokens": 1}).status_code == 200
        metrics = full.get("/metrics").text
    assert 'holitom_requests_total{route="/v1/chat/completions",status="429"} 1.0' in metrics
    assert "holitom_requests_under_way 0.0" in metrics


def test_time_is_limited(tmp_path: Path, clips: list[Path]) -> None:
    with serving(load_endless, tmp_path, timeout_seconds=1.5) as hasty:
        assert hasty.post(hasty.body(clips[1], "What?", max_tokens=2)).status_code == 200  # control
        body = hasty.body(clips[1], QUESTIONS[0], max_tokens=1000)
        refused(hasty.post(body), 504, "timeout")
        hasty.settle()
        *_, last, _ = hasty.post({**body, "stream": True}).text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        with hasty.client() as client, pytest.raises(openai.APIError, match="no answer within"):
            for _ in client.chat.completions.create(
                model=hasty.model_id,
                messages=body["messages"],
                max_tokens=1000,
                stream=True,
            ):
                pass
        hasty.settle()


def test_not_ready_until_the_model_is_there(tmp_path: Path, clips: list[Path]) -> None:
    there = threading.Event()

    def slowly() -> Model:
        assert there.wait(PATIENCE_SECONDS)
        return load("demo")

    engine = Engine(slowly, 1, 0)
    with serving(slowly, tmp_path, engine=engine, wait=False) as early:
        body = {"model": "demo", "messages": [asked(clips[0], "What?")]}
        wait_until(lambda: early.get("/health").status_code == 200)
        assert early.get("/ready").status_code == 503
        response = early.post(body)
        refused(response, 503, "not_ready")
        assert response.headers["retry-after"]
        there.set()
        wait_until(lambda: early.get("/ready").status_code == 200)
        assert early.post(body).status_code == 200


# --- what is kept ----------------------------------------------------------------------------------


def test_clips_are_kept_within_the_limit(demo: Model, clips: list[Path]) -> None:
    made = [new_clip(str(number), pipeline.watch(demo, clip, num_frames=4), demo) for number, clip in enumerate(clips)]
    size = max(clip.nbytes for clip in made)
    held = Clips(2 * size)
    for clip in made[:2]:
        held.put(clip)
    assert held.get("0") is made[0]
    held.put(made[2])  # the least recently asked about has to go
    assert [held.get(key) is not None for key in "012"] == [True, False, True]
    assert held.nbytes <= 2 * size
    assert all(clip.watched.frames.pixels.nbytes == 0 for clip in made)
    assert held.clear()
    assert (len(held), held.nbytes, held.clear()) == (0, 0, False)
    held.put(made[0])
    tiny = Clips(size // 1000)
    tiny.put(made[0])
    assert len(tiny) == 0
    assert len(held) == 1  # control


def test_answers_are_the_same_where_nothing_is_kept(tmp_path: Path, demo: Model, clips: list[Path]) -> None:
    own = alone(demo, clips[0], QUESTIONS[0]).text
    with serving(lambda: load("demo"), tmp_path, keep_bytes=0) as forgetful:
        body = forgetful.body(clips[0], QUESTIONS[0])
        with ThreadPoolExecutor(3) as pool:
            answers = [response.json() for response in pool.map(forgetful.post, [body] * 3)]
        answers.append(forgetful.post(body).json())
        assert [answer["choices"][0]["message"]["content"] for answer in answers] == [own] * 4
        assert not answers[-1]["usage"]["holitom"]["clip_reused"]
        assert forgetful.engine.clips.nbytes == 0
