"""Downloading through the real hub library, from a hub that this test serves on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from tests.make_random_checkpoint import RANDOM

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "llava-hf/tiny"


class Hub(BaseHTTPRequestHandler):
    """The few routes of the hub that a download takes, over the random checkpoint's files."""

    downloads: ClassVar[list[str]] = []
    files: ClassVar = {path.name: path.read_bytes() for path in RANDOM.iterdir()}

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"'}
        if path.startswith(f"/{MODEL}/resolve/{COMMIT}/") and name in self.files:
            self.send(200, self.files[name] if with_body else b"", len(self.files[name]), headers)
            self.downloads.extend([name] if with_body else [])
        elif path.startswith(f"/api/models/{MODEL}/revision/") and name in ("main", COMMIT):
            siblings = [{"rfilename": file} for file in self.files]
            body = json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode()
            self.send(200, body, len(body), headers)
        elif path == f"/api/models/{MODEL}/tree/{COMMIT}":
            tree = [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in self.files.items()]
            body = json.dumps(tree).encode()
            self.send(200, body, len(body), headers)
        else:
            code = "RevisionNotFound" if path.startswith(f"/api/models/{MODEL}") else "RepoNotFound"
            self.send(404, b"", 0, {"X-Error-Code": code})

    def send(self, status: int, body: bytes, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(length)} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("hub")
    address = f"http://127.0.0.1:{server.server_port}"
    yield dict(os.environ) | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()
    server.server_close()


def holitom(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holitom_cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_a_checkpoint_is_pulled_once_and_known_by_its_commit(environment: dict[str, str], demo_clip: Path) -> None:
    # Off a terminal no weight is downloaded without --yes, but its size, commit, place and the free disk are told.
    refused = holitom(environment, "pull", MODEL)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert COMMIT[:12] in refused.stderr
    assert "free" in refused.stderr
    assert Hub.downloads == ["config.json"]  # which says whether it is the right model
    pulled = holitom(environment, "pull", MODEL, "--yes")
    assert pulled.returncode == 0, pulled.stderr
    place = Path(pulled.stdout.strip())
    assert place.name == COMMIT
    assert (place / "model.safetensors").read_bytes() == Hub.files["model.safetensors"]
    assert "README.md" not in Hub.downloads
    # A second time nothing is fetched again.
    fetched = len(Hub.downloads)
    assert holitom(environment, "pull", MODEL).returncode == 0
    assert len(Hub.downloads) == fetched
    # Offline it answers, and names the commit.
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    ask = ["ask", str(demo_clip), "What is it?", "--num-frames", "2", "--max-new-tokens", "2", "--json", "--quiet"]
    answered = holitom(offline, *ask, "--model", MODEL)
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["model"]["revision"] == COMMIT
    # Half of a download is told from a whole one, and mended by fetching only what is missing.
    (place / "model.safetensors").resolve().unlink()
    (place / "model.safetensors").unlink()
    broken = holitom(offline, *ask, "--model", MODEL)
    assert broken.returncode == 1
    assert "error" in json.loads(broken.stdout)
    mended = holitom(environment, "pull", MODEL, "--yes")
    assert mended.returncode == 0, mended.stderr
    assert Hub.downloads[fetched:] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["llava-hf/none"], "The hub has no public model llava-hf/none."),
        ([MODEL, "--revision", "v9"], f"{MODEL} has no such revision."),
    ],
)
def test_what_the_hub_lacks_is_told_in_a_sentence(
    environment: dict[str, str], arguments: list[str], sentence: str
) -> None:
    failed = holitom(environment, "pull", *arguments)
    assert failed.returncode == 1
    assert sentence in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr
