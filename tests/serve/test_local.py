"""`holitom ask` by a running server: it says what the process that was asked would have said, or is not asked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from holitom_cli import methods, pipeline, video
from holitom_cli.model.loading import Model
from holitom_cli.report.record import document
from holitom_cli.serve import link as linking
from holitom_cli.serve import sockets, wire
from holitom_cli.serve.link import BrokenOffError, Clip, ElsewhereError, Link, Wanted, link
from holitom_cli.serve.local import Local
from holitom_cli.serve.wishes import Ceilings
from holitom_cli.types import AnswerRecord, Generation, Sampling
from tests.clips import make
from tests.make_random_checkpoint import RANDOM
from tests.program import PROGRAM, SCHEMA, Done, environment, invoke
from tests.serve.served import Served, load_endless, serving, wait_until
from tests.serve.served import load as load_model
from tests.serve.test_answers import QUESTIONS

__all__ = ["invoke"]
pytestmark = pytest.mark.skipif(not sockets.OFFERED, reason="there are no such sockets here")

DEMO = Wanted("demo", None, "cpu", "float32", None)
HOLITOM: dict[str, Any] = {"name": "holitom", "preset": None, "budget": None, "settings": {}}
SAMPLING = Sampling(num_frames=4)
GREEDY = Generation(max_new_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r") / "holitom" / "servers"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's; with a short name, since that of a socket in it may have some hundred characters."""
    return tmp_path_factory.mktemp("h")


@pytest.fixture(scope="module")
def near(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, served to this user."""
    with serving(lambda: load_model("demo"), tmp_path_factory.mktemp("near"), local=folder) as served:
        yield served


@pytest.fixture
def path(near: Served, folder: Path) -> Path:
    (found,) = sockets.found(folder)
    return found


def ask(
    path: Path,
    clip: Path,
    questions: list[str],
    *,
    sampling: Sampling = SAMPLING,
    method: dict[str, Any] = HOLITOM,
    generation: Generation = GREEDY,
    wanted: Wanted = DEMO,
) -> list[AnswerRecord]:
    """What a server says, and what of it came in pieces."""
    said: list[str] = []
    with link(path, wanted) as linked:
        linked.ask(Clip(str(clip), sampling, None), method, generation, questions, nullcontext)
        answers = [linked.answer(said.append, str(clip)) for _ in questions]
    assert "".join(said) == "".join(answer.text for answer in answers)
    return answers


# --- the same answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["holitom", "full", "fastv"])
def test_tokens_are_those_of_this_process(path: Path, demo: Model, clips: list[Path], name: str) -> None:
    watched = pipeline.watch(demo, clips[0], method=name, sampling=SAMPLING)
    own = [pipeline.ask(demo, watched, question, max_new_tokens=8) for question in QUESTIONS]
    heard = ask(path, clips[0], list(QUESTIONS), method={**HOLITOM, "name": name})
    again = ask(path, clips[0], list(QUESTIONS), method={**HOLITOM, "name": name})
    assert [answer.token_ids for answer in heard] == [answer.token_ids for answer in own]
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in own]
    assert (heard[0].frames.cached, again[0].frames.cached) == (False, True)
    assert len({answer.token_ids for answer in own}) > 1  # control: answers differ where questions do


def test_sampled_tokens_are_those_of_this_process(path: Path, demo: Model, clips: list[Path]) -> None:
    warm = Generation(max_new_tokens=8, temperature=20.0, top_p=1.0, seed=7)
    watched = pipeline.watch(demo, clips[0], sampling=SAMPLING)
    keywords = {name: getattr(warm, name) for name in ("max_new_tokens", "temperature", "top_p")}
    own = [pipeline.ask(demo, watched, QUESTIONS[0], **keywords, seed=seed).token_ids for seed in range(7, 12)]
    heard = [
        ask(path, clips[0], [QUESTIONS[0]], generation=replace(warm, seed=seed))[0].token_ids for seed in range(7, 12)
    ]
    assert heard == own
    assert len(set(own)) > 1  # control: the seed matters


def test_record_is_the_one_of_this_process(path: Path, demo: Model, tmp_path: Path) -> None:
    """All of it but times and memory; so are frames, which came from here, and the model's names."""
    clip = tmp_path / "clip.mp4"
    make(clip, frames=30, size=(320, 180))
    (heard,) = ask(path, clip, [QUESTIONS[0]])
    own = pipeline.ask(demo, pipeline.watch(demo, clip, sampling=SAMPLING), QUESTIONS[0], max_new_tokens=8)
    told, expected = document([heard]), document([own])
    SCHEMA.validate(told)
    assert told.pop("served_by") == {"version": wire.program()[1], "pid": os.getpid()}
    for one in (told, expected):
        assert one["results"][0].pop("timings")["stages_ms"]["decode"] > 0
        one["results"][0].pop("memory")
    assert told == expected


def test_large_and_turned_pictures_arrive_as_they_are(path: Path, demo: Model, tmp_path: Path) -> None:
    make(tmp_path / "large.mp4", frames=12, size=(1280, 720), rotation=90)
    (heard,) = ask(path, tmp_path / "large.mp4", [QUESTIONS[0]], sampling=Sampling(num_frames=6))
    watched = pipeline.watch(demo, tmp_path / "large.mp4", sampling=Sampling(num_frames=6))
    own = pipeline.ask(demo, watched, QUESTIONS[0], max_new_tokens=8)
    assert heard.token_ids == own.token_ids
    assert heard.tokens == own.tokens
    assert heard.segments == own.segments


# --- who may ask, and who is asked -----------------------------------------------------------------


def test_only_this_user_can_open_it(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_uid == os.getuid()


def test_others_are_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom the system says to be another user hears nothing, not even what the server is."""
    with link(path, DEMO):
        pass  # control
    with socket.socket(socket.AF_UNIX) as other:
        monkeypatch.setattr(sockets, "peer_uid", lambda _: os.getuid() + 1)
        other.settimeout(10)
        other.connect(str(path))
        assert other.recv(1) == b""


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can be somebody else")
def test_system_tells_who_has_connected() -> None:
    """A process of another user gets as far as the connection only where everybody is let in."""
    connects = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    with tempfile.TemporaryDirectory() as place, sockets.listening(Path(place) / "s") as listener:
        (door,) = sockets.found(Path(place) / "s")

        def connect(user: int) -> int:
            command = ["/usr/bin/env", "python3", "-c", connects, str(door)]
            return subprocess.run(command, user=user, cwd="/", capture_output=True, check=False, timeout=30).returncode

        assert connect(65534) != 0
        for open_to_all in (Path(place), door.parent):
            open_to_all.chmod(0o755)
        door.chmod(0o666)
        for user in (65534, 0):
            assert connect(user) == 0
            connection, _ = listener.accept()
            with connection, nullcontext() if user == 0 else pytest.raises(sockets.UnsafeError, match="user 65534"):
                sockets.check_peer(connection)


def test_servers_of_others_are_not_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "peer_uid", lambda _: os.getuid() + 1)
    with pytest.raises(ElsewhereError, match="belongs to user"), link(path, DEMO):
        pass


def test_folder_that_others_can_enter_is_not_used(tmp_path: Path, path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    with pytest.raises(sockets.UnsafeError, match="others can enter"), sockets.listening(open_folder):
        pass
    (open_folder / "x.sock").symlink_to(path)
    with pytest.raises(ElsewhereError, match="others can enter"), link(open_folder / "x.sock", DEMO):
        pass


def test_sockets_of_the_killed_are_removed_and_those_of_the_living_kept(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with sockets.listening(folder):
        (alive,) = sockets.found(folder)
        dead = folder / "1-00000000.sock"
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(dead))
        with pytest.raises(ElsewhereError, match="cannot be reached"), link(dead, DEMO):
            pass
        with sockets.listening(folder):  # another server of the same user has a socket of its own
            both = sockets.found(folder)
            assert alive in both
            assert dead not in both
            assert len(both) == 2
    assert sockets.found(folder) == []


# --- only where nothing differs --------------------------------------------------------------------


def hello(path: Path) -> dict[str, Any]:
    with link(path, DEMO) as linked:
        return dict(linked._hello)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (replace(DEMO, model=str(RANDOM)), "it has the model demo"),
        (replace(DEMO, model=None), "it has the model demo"),
        (replace(DEMO, model="llava-hf/llava-onevision-qwen2-0.5b-ov-hf"), "it has the model demo"),
        (replace(DEMO, revision="main"), "another revision"),
        (replace(DEMO, dtype="bfloat16"), "not bfloat16"),
        (replace(DEMO, device="cuda"), "not cuda"),
        (replace(DEMO, quantize="int8"), "kept whole"),
    ],
)
def test_other_models_are_not_answered_for(path: Path, wanted: Wanted, why: str) -> None:
    with pytest.raises(ElsewhereError, match=why), link(path, wanted):
        pass


def test_auto_is_what_it_would_be_here(path: Path) -> None:
    from holitom_cli.model.device import choose_device, choose_dtype

    said = linking.disagreement(hello(path), replace(DEMO, device="auto", dtype="auto"))
    same = choose_device("auto").type == "cpu" and str(choose_dtype("auto", choose_device("cpu"))) == "torch.float32"
    assert (said == "") == same


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"ready": False}, "not ready"),
        ({"program": None}, "another version"),
        ({"program": ["0", *wire.program()[1:]]}, "another version"),
        ({"program": [wire.program()[0], "0.0.0", *wire.program()[2:]]}, "another version"),
        ({"program": [*wire.program()[:3], "/elsewhere"]}, "another installation"),
        ({"weights": []}, "have changed"),
        ({"quantize": "int4"}, "kept in int4"),
    ],
)
def test_other_servers_are_not_asked(path: Path, changed: dict[str, Any], why: str) -> None:
    told = hello(path)
    assert linking.disagreement(told, DEMO) == ""
    assert why in linking.disagreement({**told, **changed}, DEMO)


def test_branch_that_has_moved_is_another_revision(path: Path, tmp_path: Path) -> None:
    """As the hub's cache has it: a folder a commit, and a file a branch that names one."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (refs := tmp_path / "models--a--b" / "refs").mkdir()
    (refs / "main").write_text("c0ffee")
    model = {"id": "a/b", "kind": "published", "path": str(snapshot), "revision": "c0ffee", "usual": True, "why": ""}
    told = {**hello(path), "model": model, "weights": []}
    for name, revision in (("a/b", None), (None, None), ("a/b", "main"), ("a/b", "c0ffee")):
        assert linking.disagreement(told, replace(DEMO, model=name, revision=revision)) == ""
    assert "another revision" in linking.disagreement(told, replace(DEMO, model="a/b", revision="v2"))
    (refs / "main").write_text("decaf")
    assert "another revision" in linking.disagreement(told, replace(DEMO, model="a/b"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": {**HOLITOM, "settings": {"tau": "7"}}}, "tau"),
        ({"sampling": Sampling(num_frames=17)}, "17 frames are more than it takes"),
        ({"generation": Generation(max_new_tokens=1001)}, "longer than the server allows"),
        ({"generation": Generation(temperature=-1)}, "temperature"),
    ],
)
def test_what_a_server_refuses_is_no_error(path: Path, clips: list[Path], options: dict[str, Any], why: str) -> None:
    with pytest.raises(ElsewhereError, match=why):
        ask(path, clips[1], [QUESTIONS[0]], **options)


def test_clips_for_bright_screens_are_not_sent(path: Path, near: Served, tmp_path: Path) -> None:
    quiet = {"x265-params": "log-level=none"}
    for name, transfer, primaries in (("bright.mp4", 16, 9), ("ordinary.mp4", 1, 1)):
        tags = {"color_trc": transfer, "color_primaries": primaries, "colorspace": primaries}
        make(tmp_path / name, 8, "libx265", options=quiet, pix_fmt="yuv420p10le", tags=tags)
    with pytest.raises(ElsewhereError, match="bright screens are not sent"):
        ask(path, tmp_path / "bright.mp4", [QUESTIONS[0]])
    assert ask(path, tmp_path / "ordinary.mp4", [QUESTIONS[0]])  # control: the tags are why
    near.settle()


def test_no_place_is_kept_by_those_who_send_junk(path: Path, near: Served, clips: list[Path]) -> None:
    for junk in (b"GET / HTTP/1.1\r\n\r\n", wire.packed({}), wire.HEAD.pack(2, 0) + b"[]", bytes(12), b"\xff" * 100):
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(20)
            other.connect(str(path))
            other.sendall(junk)
            other.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while other.recv(65536):
                    pass
    near.settle()
    assert ask(path, clips[0], [QUESTIONS[0]])[0].text  # it still answers


def test_frames_in_an_order_that_is_none_are_junk(
    path: Path, near: Served, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which ends the connection, and nothing else."""
    facts = wire.frames_as_json(video.read(clips[1], Sampling(num_frames=2)))
    asked = {"clip": "", "sampling": asdict(SAMPLING), "method": HOLITOM, "generation": asdict(GREEDY)}
    ended: list[BaseException | None] = []
    call = Local._call

    async def noted(local: Local, connection: socket.socket) -> None:
        (outcome,) = await asyncio.gather(call(local, connection), return_exceptions=True)
        ended.append(outcome)

    monkeypatch.setattr(Local, "_call", noted)
    with link(path, DEMO) as linked:
        linked._tell({**asked, "questions": ["What?"]})
        assert linked._next() == {"frames": "wanted"}
        linked._tell({"frames": facts, "order": [7]})
        with pytest.raises(ElsewhereError, match="does not answer"):
            linked._next()
    near.settle()
    wait_until(lambda: ended)
    assert ended == [None]


# --- ends ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends its answer by itself."""
    copy = shutil.copytree(RANDOM, tmp_path_factory.mktemp("endless") / "endless")
    (copy / "generation_config.json").write_text('{"eos_token_id": []}', encoding="utf-8")
    return copy


@contextmanager
def server(
    home: Path, model: str | Path, *options: str, device: str = "cpu"
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`holitom serve` as a process that is ready, and its socket."""
    command = [str(PROGRAM), "serve", "--port", "0", "--device", device, "--model", str(model), *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(home), start_new_session=True
    ) as process:
        try:
            assert process.stderr
            while "Ready" not in (line := process.stderr.readline()):
                assert line
            (path,) = sockets.found(home / ".cache" / "holitom" / "servers")
            yield process, path
        finally:
            process.kill()


LONG = ("--num-frames", "4", "--max-new-tokens", "1000", "--device", "cpu")


def asking(home: Path, clip: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(PROGRAM), "ask", str(clip), "What happens?", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
    )


def test_server_that_is_killed_in_the_middle_is_a_sentence(home: Path, endless: Path, clips: list[Path]) -> None:
    """What has been said stays; before, it answers by itself."""
    with server(home, endless) as (process, path):
        with asking(home, clips[1], "--model", str(endless), *LONG) as client:
            assert client.stdout
            assert client.stdout.read(1)
            process.kill()
            process.wait()
            _, err = client.communicate(timeout=60)
        assert client.returncode == 1
        assert "error: The server that was answering has gone." in err
        assert "Traceback" not in err
        assert path.exists()  # it was killed, so it is still there, and in nobody's way
        short = ("--num-frames", "4", "--max-new-tokens", "4", "--device", "cpu", "--json")
        with asking(home, clips[1], "--model", str(endless), *short) as client:
            out, err = client.communicate(timeout=60)
        assert client.returncode == 0, err
        assert "served_by" not in json.loads(out)
        assert "cannot be reached" in json.loads(out)["not_served"]


def test_interrupt_frees_the_row(home: Path, endless: Path, clips: list[Path]) -> None:
    with server(home, endless, "--rows", "1") as (process, path):
        with asking(home, clips[1], "--model", str(endless), *LONG) as client:
            assert client.stdout
            assert client.stdout.read(1)
            client.send_signal(signal.SIGINT)
            client.communicate(timeout=20)
        assert client.returncode == 130
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)  # which waits for whoever still is answered
        assert process.wait(30) == 0
        assert time.monotonic() - began < 5
        assert not path.exists()


def test_caller_that_leaves_frees_its_row_and_place(talkative_near: tuple[Served, Path], clips: list[Path]) -> None:
    near, path = talkative_near
    wanted = replace(DEMO, model=str(RANDOM))
    with link(path, wanted) as linked:
        linked.ask(
            Clip(str(clips[1]), SAMPLING, None), HOLITOM, Generation(max_new_tokens=1000), ["What?"], nullcontext
        )
        linked._next()
        assert (near.places_taken, near.engine.speaking) == (1, 1)
    near.settle()


def test_caller_that_is_stopped_gives_its_place_back(tmp_path: Path, clips: list[Path]) -> None:
    """In the middle of its frames, where nothing else would end it."""
    folder = tmp_path / "servers"
    with serving(lambda: load_model("demo"), tmp_path, local=folder, timeout_seconds=1.0) as hasty:
        (door,) = sockets.found(folder)
        with link(door, DEMO) as linked:
            asked = {"clip": "", "sampling": asdict(SAMPLING), "method": HOLITOM, "generation": asdict(GREEDY)}
            linked._tell({**asked, "questions": ["What?"]})
            assert linked._next() == {"frames": "wanted"}
            assert hasty.places_taken == 1
            wait_until(lambda: hasty.places_taken == 0, 5)
        assert ask(door, clips[1], ["What?"])[0].token_ids  # control: who goes on is answered


def test_signs_of_life_are_heard_while_nothing_is_said(
    talkative_near: tuple[Served, Path], clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that thinks for longer than silence is borne is waited for; one that is silent is not."""
    _, path = talkative_near
    wanted = replace(DEMO, model=str(RANDOM))
    real = pipeline.watch

    def slow(*arguments: Any, **more: Any) -> Any:
        time.sleep(1.0)
        return real(*arguments, **more)

    monkeypatch.setattr(pipeline, "watch", slow)
    monkeypatch.setattr(wire, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(linking, "_SILENCE_SECONDS", 0.5)
    sampling = Sampling(num_frames=3)
    (heard,) = ask(path, clips[1], ["What?"], sampling=sampling, wanted=wanted)
    assert heard.token_ids
    monkeypatch.setattr(wire, "BEAT_SECONDS", 60.0)
    with pytest.raises(ElsewhereError, match="does not answer"):  # control
        ask(path, clips[2], ["What?"], sampling=sampling, wanted=wanted)


def test_server_that_is_stopped_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes connections for it, and then nothing comes."""
    monkeypatch.setattr(linking, "_CONNECT_SECONDS", 0.2)
    with sockets.listening(tmp_path / "s"):
        (path,) = sockets.found(tmp_path / "s")
        with pytest.raises(ElsewhereError, match="does not answer"), link(path, DEMO):
            pass


def test_what_has_been_said_is_not_said_again() -> None:
    """The same failure before the first piece and after it."""
    for begun, kind in ((False, ElsewhereError), (True, BrokenOffError)):
        ours, theirs = socket.socketpair()
        linked = Link(ours)
        if begun:
            theirs.sendall(wire.packed({"text": "It "}))
        theirs.close()
        with ours, closing(linked), pytest.raises(kind):
            linked.answer(lambda _: None, "clip.mp4")


@pytest.fixture(scope="module")
def talkative_near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("t") / "servers"
    with serving(load_endless, tmp_path_factory.mktemp("talkative_near"), local=folder, name=RANDOM) as served:
        (path,) = sockets.found(folder)
        yield served, path


def test_server_that_ends_lets_short_answers_end(tmp_path: Path, clips: list[Path]) -> None:
    """A long one is cut off in time, and told so."""
    wanted, folder = replace(DEMO, model=str(RANDOM)), tmp_path / "servers"
    heard: dict[int, Any] = {}

    def work(tokens: int) -> None:
        try:
            heard[tokens] = ask(door, clips[1], ["What?"], wanted=wanted, generation=Generation(tokens))[0]
        except BrokenOffError as error:
            heard[tokens] = error

    threads = [threading.Thread(target=work, args=(tokens,)) for tokens in (150, 7000)]
    ceilings = Ceilings(frames=16, tokens=9000)
    with serving(load_endless, tmp_path, local=folder, name=RANDOM, ceilings=ceilings) as near:
        (door,) = sockets.found(folder)
        for thread in threads:
            thread.start()
        wait_until(lambda: near.engine.speaking == 2)
    for thread in threads:
        thread.join(30)
    assert len(heard[150].token_ids) == 150
    assert "shutting down" in heard[7000].message
    assert sockets.found(folder) == []


# --- on the command line ---------------------------------------------------------------------------

FAST = ("--model", "demo", "--device", "cpu", "--num-frames", "4", "--max-new-tokens", "5")


def command(invoke: Any, clip: Path, folder: Path, *options: str) -> Done:
    done: Done = invoke("ask", clip, QUESTIONS[0], *FAST, "--runtime-dir", str(folder.parent.parent), *options)
    return done


def test_answer_and_document_are_the_same(invoke: Any, near: Served, folder: Path, clips: list[Path]) -> None:
    served = command(invoke, clips[0], folder, "--json").document()
    own = command(invoke, clips[0], folder, "--json", "--server", "off").document()
    assert served["served_by"]["pid"] == os.getpid()
    assert "served_by" not in own
    assert "not_served" not in own
    assert served["results"][0]["answer"] == own["results"][0]["answer"]
    assert served["model"] == own["model"]
    assert served["video"] == own["video"]
    assert set(served["results"][0]) == set(own["results"][0])
    streamed = command(invoke, clips[0], folder)
    assert streamed.out == own["results"][0]["answer"] + "\n"
    assert "served by" in streamed.err
    assert command(invoke, clips[0], folder, "--no-stream", "--quiet").out == streamed.out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--dtype", "bfloat16"), "not bfloat16"),
        (("--method", "evs+inner"), "by one name"),
        (("--max-new-tokens", "1001"), "longer than the server allows"),
    ],
)
def test_reason_is_told(
    invoke: Any, near: Served, folder: Path, clips: list[Path], options: tuple[str, ...], why: str
) -> None:
    done = command(invoke, clips[0], folder, "--json", *options)
    told = done.document()
    assert "served_by" not in told
    assert why in told["not_served"]
    assert why in " ".join(done.err.split())


@pytest.mark.parametrize(
    "options",
    [("--server", "off"), ("--no-cache",), ("--baseline",), ("--choices", "yes,no"), ("--time-instruction",)],
)
def test_what_only_this_process_does_is_not_asked_for(
    invoke: Any, near: Served, folder: Path, clips: list[Path], options: tuple[str, ...]
) -> None:
    arguments = [item for item in FAST if "choices" not in str(options) or item not in ("--max-new-tokens", "5")]
    done: Done = invoke(
        "ask", clips[0], QUESTIONS[0], *arguments, "--runtime-dir", str(folder.parent.parent), "--json", *options
    )
    told = done.document()
    assert "served_by" not in told
    assert "not_served" not in told


def test_clip_that_cannot_be_read_is_told_as_ever(invoke: Any, near: Served, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no clip at all")
    served = command(invoke, broken, folder)
    own = command(invoke, broken, folder, "--server", "off")
    assert served.code == own.code == 1
    assert served.err.splitlines()[-2:] == own.err.splitlines()[-2:]


def test_nothing_heavy_is_imported_where_a_server_answers(near: Served, folder: Path, clips: list[Path]) -> None:
    """Not even numpy or what decodes, where the server knows the clip."""
    program = (
        "import json, sys\nfrom holitom_cli.cli.app import build\n"
        "try:\n    build(sys.argv[1:2])(sys.argv[1:], standalone_mode=False)\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )

    def loaded(*more: str) -> set[str]:
        arguments = ["ask", str(clips[0]), QUESTIONS[0], *FAST, "--runtime-dir", str(folder.parent.parent), *more]
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return set(json.loads(done.stderr.splitlines()[-1])) & {
            "torch",
            "transformers",
            "numpy",
            "av",
            "huggingface_hub",
            "tomllib",
            "holitom_cli.report.page",
            "holitom_cli.report.pictures",
            "holitom_cli.video.worker_link",
        }

    assert loaded() <= {"numpy", "holitom_cli.video.worker_link"}
    assert loaded() == set()
    assert "torch" in loaded("--server", "off")  # control


def test_methods_of_the_hello_are_all_there_are(path: Path) -> None:
    told = hello(path)["methods"]
    assert set(told) == set(methods.available())
    for name, (settings, presets) in told.items():
        cls = methods.find(name)
        assert (settings, presets) == ([item.name for item in methods.settings_of(cls)], bool(cls.presets))
