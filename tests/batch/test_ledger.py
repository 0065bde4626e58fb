"""Which rows there are, who makes them, and that one process writes them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holitom_cli.batch.ledger import Claim, Ledger, last_rows
from holitom_cli.cli.rows import appending
from holitom_cli.errors import BatchError

MODEL = {"id": "demo", "revision": None}


def answer(key: str, path: str = "/a.mp4", text: str = "yes") -> str:
    return json.dumps({"key": key, "video": {"path": path}, "answer": text, "model": MODEL}) + "\n"


def error(key: str, path: str = "/a.mp4") -> str:
    return json.dumps({"key": key, "video": {"path": path}, "error": {}}) + "\n"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(answer("1") + error("2") + answer("3")[:20], encoding="utf-8")
    return path


def test_what_is_there_is_not_made_again(output: Path) -> None:
    ledger, clip = Ledger(output), Path("/a.mp4")
    assert [ledger.claim(key, clip) for key in "123"] == [Claim.ANSWERED, Claim.FAILED, Claim.OPEN]
    assert ledger.claim("2", Path("/b.mp4")) is Claim.OPEN  # equal content, another path: a row of its own
    assert ledger.model == ("demo", None)
    assert [Ledger(output, retry_failed=True).claim(key, clip) for key in "12"] == [Claim.ANSWERED, Claim.OPEN]
    assert [Ledger(output, force=True).claim(key, clip) for key in "12"] == [Claim.OPEN, Claim.OPEN]


def test_a_row_is_claimed_once() -> None:
    ledger, clip = Ledger(), Path("/a.mp4")
    assert [ledger.claim("1", clip) for _ in range(2)] == [Claim.OPEN, Claim.TAKEN]
    ledger.settle("1", answered=False)
    assert ledger.peek("1", clip) is Claim.OPEN
    assert ledger.claim("1", clip) is Claim.OPEN
    ledger.settle("1", answered=True)
    assert ledger.claim("1", clip) is Claim.ANSWERED


def test_the_last_row_of_a_key_counts(output: Path) -> None:
    output.write_text(
        error("1", "/a.mp4") + answer("2") + error("3", "/a.mp4") + error("3", "/b.mp4") + answer("1", "/b.mp4")
        + answer("2", text="no"),
        encoding="utf-8",
    )  # fmt: skip
    assert [(row["key"], row.get("answer")) for row in last_rows(output)] == [
        ("3", None), ("3", None), ("1", "yes"), ("2", "no"),
    ]  # fmt: skip


WRITER = """
import sys, time
from pathlib import Path
from holitom_cli.cli.rows import appending
with appending(Path(sys.argv[1])) as add:
    add({"key": "1", "answer": ""})
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_one_process_writes_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        before = output.read_bytes()
        with pytest.raises(BatchError, match=r"Another run is writing to .*rows\.jsonl"), appending(output):
            pass
        assert output.read_bytes() == before
        process.send_signal(signal.SIGKILL)
    with appending(output) as add:
        add({"key": "2", "answer": ""})
    assert len(output.read_text(encoding="utf-8").splitlines()) == 2
