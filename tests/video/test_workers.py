"""Workers that hang, die or are interrupted: nothing waits, nothing leaks, the other decoder answers.

Faults are put into the child by a bootstrap that replaces a function there before it serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from holitom_cli.errors import VideoError
from holitom_cli.video import client, probe, read, stop_workers, unless, warm_up, worker_link
from tests import clips

pytestmark = pytest.mark.skipif(os.name == "nt", reason="faults are made with POSIX signals")
needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel for this platform")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")

PATH_LINE, _, SERVE = worker_link.BOOTSTRAP.partition("; from ")
HANG = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
DIE = "import os; os._exit(7)"
COMPLAIN = "import os; os.write(2, b'lost a frame'); yield from real(*a); return"


def faulty(target: str, body: str, pid_file: Path | None = None) -> str:
    """Bootstrap whose child runs `body` in place of a generator method or function, e.g. "decord_reader.read"."""
    module, _, name = target.partition(".")
    note = f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))" if pid_file else "pass"
    code = textwrap.dedent(f"""
        import os
        from holitom_cli.video import {module} as module
        real = module.{name}
        def fault(*a):
            {note}
            {body}
            yield
        module.{name} = fault
    """)
    return f"{PATH_LINE}; exec({code!r}); from {SERVE}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.make(tmp_path_factory.mktemp("workers") / "clip.mp4", 60)


@pytest.fixture(autouse=True)
def no_worker_from_another_test() -> Iterator[None]:
    worker_link.close_idle()
    yield
    worker_link.close_idle()


def inject(monkeypatch: pytest.MonkeyPatch, target: str, body: str) -> None:
    worker_link.close_idle()
    monkeypatch.setattr(worker_link, "BOOTSTRAP", faulty(target, body))


def kept() -> int:
    """Workers that are alive; those that wait for the next clip are all."""
    assert len(worker_link._live) == len(worker_link._idle)
    return len(worker_link._live)


@needs_decord
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (HANG, "av did not finish in time"),
        (DIE, "av ended unexpectedly (exit status 7)"),
        ("raise OSError('no luck')", "av failed (OSError: no luck)"),
        ("return", "av could read no frame"),
    ],
)
def test_decord_answers_when_av_does_not(clip: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str) -> None:
    inject(monkeypatch, "av_reader.Clip.read", body)
    frames = read(clip, 5, timeout_seconds=1.5 if body == HANG else 60)
    assert (frames.decoder, frames.decoder_reason) == ("decord", reason)
    assert clips.numbers_in(frames.pixels) == [0, 14, 29, 44, 59]
    assert kept() == 0  # what failed is not used again


@needs_decord
def test_a_complaint_of_decord_is_a_failure(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "av_reader.Clip.read", "return")
    one_more = faulty("decord_reader.read", COMPLAIN).removeprefix(f"{PATH_LINE}; ")
    monkeypatch.setattr(worker_link, "BOOTSTRAP", worker_link.BOOTSTRAP.replace(f"from {SERVE}", one_more))
    with pytest.raises(VideoError, match=r"av could read no frame; decord complained about the file \(lost a frame\)"):
        read(clip, 5)


def test_without_a_fault_av_answers(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "av_reader.Clip.read", "yield from real(*a); return")
    assert read(clip, 5).decoder == "av"


def test_a_worker_serves_many_clips_and_then_makes_room(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "MOST_JOBS", 6)
    served = []
    for _ in range(4):  # three requests each: what is in it, which frames, the frames
        read(clip, 2)
        served.append([worker._process.pid for worker in worker_link._idle])
    assert [len(pids) for pids in served] == [1, 0, 1, 0]
    assert served[0] != served[2]


def test_a_started_worker_is_the_one_that_is_used(clip: Path) -> None:
    warm_up()
    (waiting,) = worker_link._idle
    probe(clip)
    assert worker_link._idle == [waiting]


def test_a_worker_that_is_interrupted_before_it_can_be_talked_to_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def interrupted(process: subprocess.Popen[bytes]) -> None:
        begun.append(process)
        raise KeyboardInterrupt

    before = set(worker_link._live)
    monkeypatch.setattr("holitom_cli.video.pipes.Pipes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker_link.Worker()
    assert begun[0].returncode is not None
    assert worker_link._live == before


def test_a_file_that_changes_is_looked_at_again(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.mp4"
    path.write_bytes(clip.read_bytes())
    assert probe(path).frame_count == 60
    path.write_bytes(clips.make(tmp_path / "other.mp4", 20).read_bytes())
    assert probe(path).frame_count == 20
    assert clips.numbers_in(read(path, 2).pixels) == [0, 19]


def test_few_cells_of_shared_memory_do(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More frames than there is room for at a time: each cell is used again once it has been emptied."""
    monkeypatch.setattr(client, "ARENA_BYTES", 0)
    assert clips.numbers_in(read(clip, 60).pixels) == list(range(60))


@pytest.mark.timeout(10)
def test_an_error_when_both_hang(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "worker.Server._frames", HANG)
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"clip\.mp4 could not be read within 1 s \(av.*\)") as caught:
        read(clip, timeout_seconds=1)
    assert time.monotonic() - started < 5
    assert "ffmpeg -i" in caught.value.hint
    assert kept() == 0


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("body", "message"), [(HANG, "within 0.5 s"), (DIE, "ended unexpectedly")])
def test_a_probe_that_fails(clip: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    inject(monkeypatch, "worker.Server.answer", body)
    with pytest.raises(VideoError, match=message):
        probe(clip, timeout_seconds=0.5 if body == HANG else 60)


def test_half_a_reply_is_not_taken_for_a_whole_one(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = "import sys; fd = sys._getframe(1).f_locals['replies']; fd.write(b'{\"size\": 10'); os._exit(0)"
    inject(monkeypatch, "worker.Server.answer", short)
    with pytest.raises(VideoError, match="ended unexpectedly"):
        probe(clip)


@pytest.mark.timeout(10)
def test_stop_workers_ends_a_read_at_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "worker.Server.answer", HANG)
    threading.Timer(0.5, stop_workers).start()
    started = time.monotonic()
    with pytest.raises(VideoError, match="was stopped"):
        read(clip)
    assert time.monotonic() - started < 1.5
    assert kept() == 0


@pytest.mark.timeout(10)
def test_a_read_that_nobody_wants_any_more_ends(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other: the event is of one thread's reads."""
    inject(monkeypatch, "worker.Server.answer", HANG)
    unwanted = threading.Event()
    threading.Timer(0.5, unwanted.set).start()
    with pytest.raises(VideoError, match="was stopped"), unless(unwanted):
        read(clip)
    assert kept() == 0
    monkeypatch.undo()
    with unless(unwanted), pytest.raises(VideoError, match="was stopped"):
        read(clip)
    assert len(read(clip, 2)) == 2  # outside, it has no effect
    with ThreadPoolExecutor(1) as other, unless(unwanted):
        assert len(other.submit(read, clip, 2).result()) == 2


# No main guard: a library that ran the caller's module again would fork without end here.
SCRIPT = """
import sys
from holitom_cli.video import read, worker_link
worker_link.BOOTSTRAP = sys.argv[2]
read(sys.argv[1])
"""


def start_hanging_reader(clip: Path, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A process inside read(), and the id of its worker, which hangs."""
    script, pid_file = folder / "script.py", folder / "pid"
    script.write_text(SCRIPT)
    bootstrap = faulty("worker.Server.answer", HANG, pid_file)
    root = str(Path(__file__).parents[2])
    reader = subprocess.Popen(
        [sys.executable, str(script), str(clip), bootstrap],
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return reader, int(pid_file.read_text())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_ctrl_c_ends_within_half_a_second_and_leaves_no_worker(clip: Path, tmp_path: Path) -> None:
    reader, worker = start_hanging_reader(clip, tmp_path)
    assert alive(worker)
    started = time.monotonic()
    reader.send_signal(signal.SIGINT)
    _, stderr = reader.communicate(timeout=10)
    assert time.monotonic() - started < 0.5
    assert stderr.strip().endswith(b"KeyboardInterrupt")
    assert not alive(worker)


def test_a_worker_does_not_outlive_a_killed_parent(clip: Path, tmp_path: Path) -> None:
    reader, worker = start_hanging_reader(clip, tmp_path)
    assert alive(worker)
    reader.kill()
    reader.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(worker)


@needs_proc
def test_nothing_leaks(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)

    def resources() -> tuple[int, int, int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), len(children)

    def use_everything() -> None:
        read(clip, 40)
        with pytest.raises(VideoError):
            read(tmp_path / "junk.mp4")
        with monkeypatch.context() as patch:
            inject(patch, "av_reader.Clip.read", DIE)
            with suppress(VideoError):  # where there is no decord
                read(clip, 2)
        read(clip, 3)

    use_everything()
    before = resources()
    for _ in range(2):
        use_everything()
    assert resources() == before


@pytest.mark.parametrize("options", [worker_link.CHILD_OPTIONS, ["-S"]])
def test_a_folder_of_clips_cannot_slip_in_code(clip: Path, tmp_path: Path, options: list[str]) -> None:
    """A json.py beside the clip stays unread; without the option that sees to it, it runs (the control)."""
    (tmp_path / "json.py").write_text("open('was_run', 'w')\nfrom _json import *")
    lines = [
        "import json, os",
        "from holitom_cli.video import probe, worker_link",
        f"worker_link.CHILD_OPTIONS = {options}",
        f"os.chdir({str(tmp_path)!r})",
        f"probe({str(clip)!r})",
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, check=False)
    assert (done.returncode == 0) == (options == worker_link.CHILD_OPTIONS)
    assert (tmp_path / "was_run").exists() == (options != worker_link.CHILD_OPTIONS)


def test_timings_and_frames_belong_to_the_caller(clip: Path) -> None:
    frames = read(clip, 4)
    assert set(frames.timings_ms) == {"probe", "decode"}
    assert min(frames.timings_ms.values()) > 0
    assert frames.pixels.flags.writeable
    assert frames.pixels.dtype == np.uint8
    assert frames.video == probe(clip)


def test_reading_imports_no_heavy_library() -> None:
    """Neither the room itself nor a worker that is ready to decode has loaded torch; the parent needs no av."""
    code = (
        "import sys, holitom_cli.video.worker; import holitom_cli.video; "
        "assert not {'torch', 'av', 'decord', 'numpy', 'transformers'} & set(sys.modules); "
        "import holitom_cli.video.av_reader; assert not {'torch', 'numpy', 'decord'} & set(sys.modules); "
        "import holitom_cli.video.decord_reader; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
