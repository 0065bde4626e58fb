"""The server as a process: signals, workers that die, and the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from holitom_cli import pipeline
from holitom_cli.model.loading import Model
from holitom_cli.video import worker_link
from tests.make_random_checkpoint import RANDOM
from tests.program import PROGRAM, Done, invoke
from tests.serve.served import Served, asked, stream, wait_until
from tests.serve.test_answers import QUESTIONS, alone
from tests.serve.test_refusals import refused

__all__ = ["invoke"]
GRACE_SECONDS = 8.0


@contextmanager
def program(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`holitom serve` as a process that is ready, and its address."""
    command = [
        str(PROGRAM), "serve", "--port", "0", "--num-frames", "4", "--device", "cpu", "--tokens-ceiling", "9000",
        "--grace", str(GRACE_SECONDS), *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            said = ""
            while "Ready" not in said:
                assert process.stderr
                line = process.stderr.readline()
                assert line, said
                said += line
            address = re.search(r"http://127.0.0.1:\d+", said)
            assert address
            yield process, address[0]
        finally:
            process.kill()


def post(address: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that can be heard")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_under_load_lets_short_answers_end(
    clips: list[Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A long one is cut off in time, and told so."""
    endless = shutil.copytree(RANDOM, tmp_path / "endless")
    (endless / "generation_config.json").write_text('{"eos_token_id": []}', encoding="utf-8")
    with program("--model", str(endless), "--rows", "3") as (process, address):
        model = httpx2.get(f"{address}/v1/models").json()["data"][0]["id"]
        body = {"model": model, "messages": [asked(clips[1], QUESTIONS[0])]}
        whole = post(address, {**body, "max_tokens": 100}).json()["choices"][0]["message"]["content"]
        texts: list[str] = []

        def long() -> None:
            response = post(address, {**body, "max_tokens": 8000, "stream": True})
            texts.append(response.text)

        def short() -> None:
            texts.append(post(address, {**body, "max_tokens": 100}).json()["choices"][0]["message"]["content"])

        threads = [threading.Thread(target=work) for work in (long, short)]
        for thread in threads:
            thread.start()
        wait_until(lambda: "holitom_rows_busy 2.0" in httpx2.get(f"{address}/metrics").text)
        began = time.monotonic()
        process.send_signal(number)
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == code
        assert time.monotonic() - began < GRACE_SECONDS
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{address}/health")
    assert whole in texts  # the short one has ended as if nothing had happened
    (other,) = (text for text in texts if text != whole)
    last = [line for line in other.splitlines() if line.startswith("data: ")][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_decoder_that_is_killed_spoils_its_clip_alone(
    served: Served, demo: Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two clips: its worker is killed once it has begun to decode."""
    whole = pipeline.read
    own = alone(demo, clips[2], QUESTIONS[0]).text
    doomed = {"num_frames": 7}

    def killing(checkpoint: Any, device: Any, path: Any, sampling: Any, *rest: Any, **more: Any) -> Any:
        listen = more["on_frame"]

        def kill(done: int, total: int) -> None:
            listen(done, total)
            (worker,) = [one for one in worker_link._live if one not in worker_link._idle and not one.ended]
            os.kill(worker._process.pid, signal.SIGKILL)

        if sampling.num_frames == doomed["num_frames"]:
            more["on_frame"] = kill
        return whole(checkpoint, device, path, sampling, *rest, **more)

    monkeypatch.setattr(pipeline, "read", killing)
    said = refused(served.post(served.body(clips[0], "What?", holitom=doomed)), 400, "unreadable_video", "messages")
    assert "ended unexpectedly" in said or "frames" in said
    with ThreadPoolExecutor(2) as pool:
        heard = pool.map(lambda _: stream(served, messages=[asked(clips[2], QUESTIONS[0])]).text, range(2))
        assert list(heard) == [own, own]
    monkeypatch.undo()
    assert served.post(served.body(clips[0], "What?", holitom=doomed)).status_code == 200  # control
    served.settle()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "Others can reach 0.0.0.0"),
        (("--api-key", " "), "The API key is empty"),
        (("--allow-host", "intranet"), "Without --allow-remote nothing is fetched"),
        (("--num-frames", "129"), "--num-frames 129 is above its ceiling"),
        (("--max-new-tokens", "2000"), "--max-new-tokens 2000 is above its ceiling"),
        (("--allow-path", "/nowhere"), "is not a folder"),
        (("--host", "203.0.113.7", "--api-key", "x"), "Nothing can listen at 203.0.113.7"),
        (("--method", "magic"), "There is no method 'magic'"),
    ],
)
def test_command_line_is_checked_first(invoke: Any, options: tuple[str, ...], said: str) -> None:
    done: Done = invoke("serve", "--model", str(RANDOM), "--device", "cpu", "--port", "0", "--quiet", *options)
    done.sentence(2, said)


def test_missing_libraries_are_told(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "starlette" else name)
    invoke("serve").sentence(2, "The server needs the library starlette")


def test_model_that_cannot_be_loaded_ends_the_server(invoke: Any, tmp_path: Path) -> None:
    broken = shutil.copytree(RANDOM, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done: Done = invoke("serve", "--model", str(broken), "--device", "cpu", "--port", "0", "--quiet")
    assert done.code == 1
    assert "cannot be loaded" in done.err
    assert "Traceback" not in done.err
