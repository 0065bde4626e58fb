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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest

from holitom_cli import pipeline
from holitom_cli.model.loading import Model
from holitom_cli.types import Sampling
from holitom_cli.video import client, worker_link
from tests.make_random_checkpoint import RANDOM
from tests.program import PROGRAM, Done, invoke
from tests.serve.served import FRAMES, Served, asked, load, serving, wait_until
from tests.serve.test_answers import QUESTIONS, alone, raw
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


DOOMED = {"num_frames": 7}  # which no other request asks for


def strike(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, when: Callable[[], Any] = lambda: None) -> None:
    """Send a signal to the decoder of each doomed request, once it has given a frame and `when` has returned."""
    whole, lent, busy = pipeline.read, worker_link.lent, threading.local()

    @contextmanager
    def noted() -> Iterator[Any]:
        with lent() as busy.worker:
            yield busy.worker

    def struck(*what: Any, **more: Any) -> Any:
        def hit(*_: int) -> None:
            when()
            os.kill(busy.worker._process.pid, number)

        if what[3].num_frames == DOOMED["num_frames"]:
            more["on_frame"] = hit
        return whole(*what, **more)

    monkeypatch.setattr(client, "ARENA_BYTES", 0)
    monkeypatch.setattr(client, "FEWEST_CELLS", 1)  # it cannot be done before it is hit
    monkeypatch.setattr(client, "lent", noted)
    monkeypatch.setattr(pipeline, "read", struck)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_decoder_that_is_killed_spoils_its_clip_alone(
    served: Served, demo: Model, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While other clients wait for their clips, each of which has to be decoded, too."""
    starts = [0.0, 0.1, 0.2, 0.3]
    own = [alone(demo, clips[2], QUESTIONS[0], sampling=Sampling(FRAMES, start_seconds=start)).text for start in starts]
    assert any(own)
    strike(monkeypatch, signal.SIGKILL, lambda: wait_until(lambda: served.places_taken == 1 + len(starts)))
    others = [served.body(clips[2], QUESTIONS[0], holitom={"num_frames": FRAMES, "start": start}) for start in starts]
    doomed = served.body(clips[0], "What?", holitom=DOOMED)
    with ThreadPoolExecutor(5) as pool:
        hit, *beside = pool.map(served.post, [doomed, *others])
    said = refused(hit, 400, "unreadable_video", "messages")
    assert said.startswith("The clip could not be read: av ended unexpectedly (exit status -9")
    assert [answer.json()["choices"][0]["message"]["content"] for answer in beside] == own
    assert not any(answer.json()["usage"]["holitom"]["clip_reused"] for answer in beside)  # control
    assert served.get("/ready").status_code == 200
    monkeypatch.undo()
    assert served.post(doomed).status_code == 200  # control: nothing but the blow was wrong
    served.settle()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
def test_decoder_that_hangs_holds_nothing_up(
    served: Served, tmp_path: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the end of its request nor, where the client leaves, the place of another one."""
    strike(monkeypatch, signal.SIGSTOP)
    body = served.body(clips[1], "What?", holitom=DOOMED)
    with raw(served, body):
        wait_until(lambda: any(stopped(worker) for worker in worker_link._live))
        assert served.places_taken == 1
    wait_until(served.is_idle, 2)  # its decoder would have had a minute
    monkeypatch.undo()
    strike(monkeypatch, signal.SIGSTOP, lambda: time.sleep(1))  # so that its own time would end after the request's
    with serving(lambda: load("demo"), tmp_path, timeout_seconds=2.0) as hasty:
        began = time.monotonic()
        refused(hasty.post({**body, "model": hasty.model_id}), 504, "timeout")
        assert time.monotonic() - began < 2.7
        hasty.settle()
    assert not any(stopped(worker) for worker in worker_link._live)
    monkeypatch.undo()
    assert served.post(body).status_code == 200  # control
    served.settle()


def stopped(worker: worker_link.Worker) -> bool:
    """Whether a decoder has been stopped, as by SIGSTOP."""
    try:
        return bool(psutil.Process(worker._process.pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


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
